"""The examples in the docstrings give what they say."""

import doctest
import importlib
import pathlib

import pytest

import apex_jax

PACKAGE = pathlib.Path(apex_jax.__file__).parent


def with_examples():
    """Modules that have any, without those that are only shown."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in paths
        if any(
            ">>>" in line and "+SKIP" not in line
            for line in path.read_text().splitlines()
        )
    ]


@pytest.mark.parametrize("name", with_examples())
def test_examples(name):
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried
    assert not failed
