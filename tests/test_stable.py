"""What stays of an explanation, on networks whose answer hangs on a known cell."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import test_trust

from apex_jax import stability
from experiments.localisation import stable, variants

clips = test_trust.clips  # a fixture
# Stretching works on windows that are longer than these clips.
pytestmark = pytest.mark.filterwarnings("ignore:n_fft=2048 is too large")

# As the network of `test_trust`, but its answer hangs on the cell (1, 0).
ELSEWHERE = np.zeros((2, 3, 2), np.float32)
ELSEWHERE[0, 0, 0] = ELSEWHERE[1, 0, 1] = 1


def forward(params, spectrogram):
    heard = (spectrogram - test_trust.SILENCE).reshape(-1, 2, 4, 3, 4).mean(axis=(2, 4))
    maps = heard[..., None] * jnp.asarray(ELSEWHERE)[None]
    return maps, jnp.mean(maps, axis=(1, 2)) @ test_trust.WEIGHT.T


def explainer_of(clips):
    """Whose prototypes are of a clip that is there."""
    return dataclasses.replace(test_trust.explainer_of("square"), clips=(clips[0],))


def test_what_stays_is_the_networks_doing(clips):
    """A network that hears one cell finds it in every clip, another one does not."""
    explainer = explainer_of(clips)
    untrained = dataclasses.replace(
        test_trust.CLASSIFIER, params=jnp.int32(0), forward_fn=forward
    )
    told = []
    rows = stable.measured(
        {"paper": explainer},
        {"paper": explainer},
        clips,
        1,
        untrained=untrained,
        on_progress=told.append,
    )
    assert sum(told) == len(clips)
    changes = list(dict.fromkeys(row["change"] for row in rows))
    assert changes[-3:] == [stable.SEED, stable.RANDOM, stable.ANOTHER]
    assert len(changes) == len(stable.DISTURBANCES) + 3
    found = {
        (row["change"], row["evidence"], row["locate"]): row
        for row in rows
        if row["method"] == "paper"
    }
    assert {key[1:] for key in found} == set(variants.ways_of("paper"))
    for change in changes:
        row = found[change, "contrastive", "occlusion"]
        assert all(len(row[name]) == len(clips) for name in ("region", "prototypes"))
    # The event's cell, in any clip and by another U of the same network.
    for change in ("noise at 30 dB", stable.SEED, stable.ANOTHER):
        row = found[change, "contrastive", "occlusion"]
        assert row["region"] == [1.0] * len(clips)
    assert (
        found[stable.ANOTHER, "contrastive", "occlusion"]["same_channel"] == [1.0] * 4
    )
    assert found[stable.SEED, "contrastive", "occlusion"]["rank"] == [None] * 4
    # Where the other network hears, the two have nothing in common.
    assert found[stable.RANDOM, "contrastive", "occlusion"]["region"] == [0.0] * 4


def test_what_is_compared_with_what(clips, monkeypatch):
    """Another clip is another one; only where time was stretched, regions move on."""
    compared, stretches, real = [], [], stability.compare

    def compare(one, other, **options):
        compared.append((tuple(one.logits), tuple(other.logits)))
        stretches.append(options.get("stretch", 1.0))
        return real(one, other, **options)

    monkeypatch.setattr(stability, "compare", compare)
    stable.measured(
        {"paper": explainer_of(clips)},
        {},
        clips,
        1,
        untrained=test_trust.CLASSIFIER,
        on_progress=lambda _: None,
    )
    ways = len(variants.ways_of("paper"))
    last = compared[-len(clips) * ways :: ways]
    owns = [own for own, _ in last]
    assert len(set(owns)) == len(clips)
    assert [other for _, other in last] == [owns[-1], *owns[:-1]]
    expected = [
        amount if kind == "stretch" else 1.0 for kind, amount in stable.DISTURBANCES
    ]
    assert stretches[: ways * len(expected) : ways] == expected
    assert sorted(set(stretches)) == [0.95, 1.0, 1.05]


def test_another_clip_takes_another(clips):
    alone = stable.measured(
        {"paper": explainer_of(clips)},
        {},
        clips[:1],
        1,
        untrained=test_trust.CLASSIFIER,
        on_progress=lambda _: None,
    )
    assert not {stable.SEED, stable.ANOTHER} & {row["change"] for row in alone}
