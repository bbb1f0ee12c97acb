"""What WaveFake's command line makes of its flags; nothing is trained."""

import sys

import pytest

from apex_jax import settings
from experiments import command
from experiments.wavefake import options


def parsed(monkeypatch, *arguments):
    """The options that a command line gives to what it runs."""
    seen = []
    monkeypatch.setattr(sys, "argv", ["wavefake", *arguments])
    command.run(
        options.Config,
        "experiments.wavefake",
        "",
        lambda config: seen.append,
        options.Config.usual,
    )
    (config,) = seen
    return config


def test_without_flags_the_small_recipe(monkeypatch):
    config = parsed(monkeypatch)
    assert config == options.Config()
    assert (config.activation, config.model) == ("softmax", "atto")


def test_the_published_recipe(monkeypatch):
    """Of the configurations that docs/decisions/0026 names."""
    config = parsed(monkeypatch, "--recipe", "published")
    assert config.model == "base"
    assert config.front_end.shape == (256, 626)
    assert (config.front_end.sample_rate, config.front_end.clip_s) == (32_000, 5.0)
    assert (config.front_end.mean, config.front_end.std) == (-13.369, 13.162)
    train, other = config.train, config.audioprotopnet
    assert (train.epochs, train.batch_size, train.learning_rate) == (10, 64, 5e-4)
    assert (train.weight_decay, train.loss, train.warmup) == (1e-4, "asymmetric", 0.05)
    assert config.activation == "sigmoid"
    assert (other.epochs, other.batch_size, other.prototype_rate) == (10, 64, 0.05)
    assert other.augment == train.augment
    assert (train.augment.mix, train.augment.noise, train.augment.gain) == (
        0.8,
        0.2,
        0.2,
    )
    assert not train.augment.needs_background


def test_flags_count_over_the_recipe(monkeypatch):
    arguments = ["--train.epochs", "3", "--recipe", "published", "--model", "tiny"]
    config = parsed(monkeypatch, *arguments)
    assert (config.train.epochs, config.model) == (3, "tiny")
    assert config.train.batch_size == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--push-prototypes", "--push-prototypes is for --table 1"),
        ("--table 2 --audioprotopnet.epochs 3", "--audioprotopnet.* is for --table 1"),
        ("--table 2 --scheme time", "--scheme and --table 2"),
        ("--weights a --pretrained b", "--pretrained and --weights"),
        ("--weights a --train.epochs 3", "--train.* and --weights"),
    ],
)
def test_what_would_have_no_effect_is_refused(arguments, message, monkeypatch):
    with pytest.raises(SystemExit) as ended:
        parsed(monkeypatch, *arguments.split())
    assert str(ended.value).startswith(f"error: {message}")


def test_under_the_recipe_its_own_settings_have_an_effect_nowhere_else(monkeypatch):
    for table in ([], ["--table", "2"], ["--weights", "a"]):
        parsed(monkeypatch, "--recipe", "published", *table)


def test_evidence_against_other_classes_takes_classes_that_exclude_each_other():
    options.Config(evidence="contrastive").check()
    with pytest.raises(ValueError, match="--evidence contrastive sets a class against"):
        options.Config(
            evidence="contrastive", train=settings.Training(loss="asymmetric")
        ).check()
