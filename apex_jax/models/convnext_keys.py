"""Key tables: which array of torch's ConvNeXt becomes which of ours, both ways.

Below `convert`, which reads the files. transformers, timm and torchvision each name
and lay out the same arrays in a dialect of their own. `key_table` lists, for the
network at hand, every key with our array and the layout; every key is used exactly
once or nothing is converted, and one error lists all that does not fit.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from apex_jax.models import convnext

SHOWN = 20  # keys of each kind in a message

Dialect = Literal["transformers", "timm", "torchvision"]
Arrays = Mapping[str, np.ndarray]
Transform = Callable[[np.ndarray], np.ndarray]

# Our layers and how torch lays out their weights, then their names in each dialect in
# the same order, for stage s and block b. torchvision counts stem, stages and
# downsamplings in one list: stage s is its number 2s + 1 (odd).
_LAYERS = {
    "stem": "conv",
    "stem_norm": "vector",
    "stages.{s}.downsample_norm": "vector",
    "stages.{s}.downsample": "conv",
    "stages.{s}.blocks.depthwise": "depthwise",
    "stages.{s}.blocks.norm": "vector",
    "stages.{s}.blocks.expand": "linear",
    "stages.{s}.blocks.contract": "linear",
    "stages.{s}.blocks.scale": "vector",
    "norm": "vector",
    "head": "linear",
}
_NAME_LISTS: dict[Dialect, list[str]] = {
    "transformers": [
        "convnext.embeddings.patch_embeddings",
        "convnext.embeddings.layernorm",
        "convnext.encoder.stages.{s}.downsampling_layer.0",
        "convnext.encoder.stages.{s}.downsampling_layer.1",
        "convnext.encoder.stages.{s}.layers.{b}.dwconv",
        "convnext.encoder.stages.{s}.layers.{b}.layernorm",
        "convnext.encoder.stages.{s}.layers.{b}.pwconv1",
        "convnext.encoder.stages.{s}.layers.{b}.pwconv2",
        "convnext.encoder.stages.{s}.layers.{b}.layer_scale_parameter",
        "convnext.layernorm",
        "classifier",
    ],
    "timm": [
        "stem.0",
        "stem.1",
        "stages.{s}.downsample.0",
        "stages.{s}.downsample.1",
        "stages.{s}.blocks.{b}.conv_dw",
        "stages.{s}.blocks.{b}.norm",
        "stages.{s}.blocks.{b}.mlp.fc1",
        "stages.{s}.blocks.{b}.mlp.fc2",
        "stages.{s}.blocks.{b}.gamma",
        "head.norm",
        "head.fc",
    ],
    "torchvision": [
        "features.0.0",
        "features.0.1",
        "features.{even}.0",
        "features.{even}.1",
        "features.{odd}.{b}.block.0",
        "features.{odd}.{b}.block.2",
        "features.{odd}.{b}.block.3",
        "features.{odd}.{b}.block.5",
        "features.{odd}.{b}.layer_scale",
        "classifier.0",
        "classifier.2",
    ],
}
_NAMES = {
    dialect: dict(zip(_LAYERS, names, strict=True))
    for dialect, names in _NAME_LISTS.items()
}
_BLOCK_NORM = "stages.{s}.blocks.norm"
_HEAD_NORM_EPSILON = {"transformers": 1e-12, "timm": 1e-6, "torchvision": 1e-6}

# layout: (torch's array to ours, ours to torch's)
_LAYOUTS: dict[str, tuple[Transform, Transform]] = {
    "vector": (lambda a: a, lambda a: a),
    # [C, 1, 1] and [C]
    "column": (lambda a: a[:, 0, 0], lambda a: a[:, None, None]),
    # [out, in] and [in, out]
    "linear": (lambda a: a.T, lambda a: a.T),
    # [out, in, 1, 1] and [in, out]
    "pointwise": (lambda a: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None]),
    # [out, in, rows, columns] and [rows, columns, in, out]
    "conv": (lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1)),
    # [C, 1, rows, columns] and [rows, columns, C]
    "depthwise": (
        lambda a: a[:, 0].transpose(1, 2, 0),
        lambda a: a.transpose(2, 0, 1)[:, None],
    ),
}


class Row(NamedTuple):
    """One row of a key table.

    Attributes:
      name: our array.
      block: which block of its stage, or None where nothing is stacked.
      key: torch's key.
      layout: how torch lays the array out.
    """

    name: str
    block: int | None
    key: str
    layout: str


def key_table(
    config: convnext.ConvNeXtConfig, dialect: Dialect, *, pointwise: bool = False
) -> list[Row]:
    """Which key of a dialect becomes which array of ours, each exactly once.

    Args:
      config: the network.
      dialect: whose keys.
      pointwise: the linear layers of the blocks are stored as 1x1 convolutions, as
        timm does in its small networks.
    """
    rows = []
    for ours, layout in _LAYERS.items():
        if ours == "head" and not config.num_classes:
            continue
        places: list[tuple[int, int | None]] = [(0, None)]
        if ".blocks." in ours:
            places = [(s, b) for s, n in enumerate(config.depths) for b in range(n)]
        elif ".downsample" in ours:
            places = [(s, None) for s in range(1, len(config.depths))]
        if pointwise and ours.endswith(("expand", "contract")):
            layout = "pointwise"
        weight = "scale" if layout == "vector" else "kernel"
        for s, b in places:
            name, key = ours.format(s=s), _format(_NAMES[dialect][ours], s, b)
            if ours.endswith("scale"):
                layout = "column" if dialect == "torchvision" else "vector"
                rows.append(Row(name, b, key, layout))
            else:
                rows.append(Row(f"{name}.{weight}", b, f"{key}.weight", layout))
                rows.append(Row(f"{name}.bias", b, f"{key}.bias", "vector"))
    return rows


def _format(name: str, stage: int | None, block: int | str | None) -> str:
    """The name with its numbers filled in; for no stage, a pattern for any."""
    if stage is None:
        return name.format(s=r"\d+", odd=r"\d+", b=block)
    return name.format(s=stage, odd=2 * stage + 1, even=2 * stage, b=block)


def from_state_dict(
    state: Arrays, *, head_norm_epsilon: float | None = None, headless: bool = False
) -> tuple[convnext.ConvNeXt, Dialect]:
    """A network from torch's arrays.

    Args:
      state: NumPy arrays by torch's keys. A prefix that all keys share, such as
        "module.", is dropped.
      head_norm_epsilon: epsilon of the norm after pooling; by default the dialect's.
      headless: there is no classifier among the arrays, and none is made.

    Returns:
      The network, and whose names the keys were.

    Raises:
      ValueError: no ConvNeXt, or one error that lists every key that is missing,
        unexpected, of another shape or not finite.
    """
    dialect, prefix = _recognise(state)
    theirs = {
        key.removeprefix(prefix): np.asarray(array, np.float32)
        for key, array in state.items()
        if key.startswith(prefix)
    }
    config, pointwise = _infer(theirs, dialect, head_norm_epsilon)
    if headless:
        config = dataclasses.replace(config, num_classes=0)
    table = key_table(config, dialect, pointwise=pointwise)
    strays = [key for key in state if not key.startswith(prefix)]
    _check(theirs, _expected_shapes(table, config), dialect, strays)

    stacks = collections.defaultdict(list)
    for row in table:
        stacks[row.name].append(_LAYOUTS[row.layout][0](theirs[row.key]))
    arrays = {
        row.name: stacks[row.name][0]
        if row.block is None
        else np.stack(stacks[row.name])
        for row in table
    }
    return convnext.from_named_arrays(config, arrays), dialect


def to_state_dict(
    model: convnext.ConvNeXt, dialect: Dialect, *, pointwise: bool = False
) -> dict[str, np.ndarray]:
    """A network's arrays under torch's keys and in torch's layouts.

    Args:
      model: the network.
      dialect: whose names.
      pointwise: store the blocks' linear layers as 1x1 convolutions.
    """
    arrays = {
        name: np.asarray(array) for name, array in convnext.named_arrays(model).items()
    }
    state = {}
    for row in key_table(model.config, dialect, pointwise=pointwise):
        ours = arrays[row.name] if row.block is None else arrays[row.name][row.block]
        state[row.key] = np.ascontiguousarray(_LAYOUTS[row.layout][1](ours))
    return state


def _recognise(state: Iterable[str]) -> tuple[Dialect, str]:
    """The dialect, and the prefix in front of its keys."""
    if any(".grn." in key for key in state):
        raise ValueError(
            "these are ConvNeXt V2 weights (grn: global response normalisation); only "
            "the first ConvNeXt can be converted"
        )
    for dialect, names in _NAMES.items():
        # Every block of every ConvNeXt has this norm.
        norm = _format(names[_BLOCK_NORM], None, r"\d+")
        for key in state:
            if match := re.search(rf"(?<![^.]){norm}\.(?:weight|bias)$", key):
                return dialect, key[: match.start()]
    keys = sorted(state)
    raise ValueError(
        f"no ConvNeXt classifier of {', '.join(_NAMES)} has these keys: "
        f"{', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
    )


def _infer(
    state: Arrays, dialect: Dialect, head_norm_epsilon: float | None
) -> tuple[convnext.ConvNeXtConfig, bool]:
    """The config, and whether the blocks' linear layers are stored as 1x1 convolutions.

    By majority and with defaults, so that one missing or misshapen tensor is reported
    as what it is.
    """
    names = _NAMES[dialect]
    depths, dims = [], []
    for stage in itertools.count():
        norm = re.compile(_format(names[_BLOCK_NORM], stage, r"(\d+)"))
        found = {key: int(match[1]) for key in state if (match := norm.match(key))}
        if not found:
            break
        last = max(found, key=found.__getitem__)
        # Else a name alone, with a billion in it, would make a table of as many rows.
        if found[last] >= len(state):
            raise ValueError(
                f"{last} is of block {found[last]}, but there are {len(state)} tensors"
            )
        depths.append(found[last] + 1)
        dims.append(_majority((state[key].size for key in found), default=1))

    expand = re.compile(_format(names["stages.{s}.blocks.expand"], None, r"\d+"))
    pointwise = dialect == "timm" and any(
        array.ndim == 4 for key, array in state.items() if expand.match(key)
    )
    stem = state.get(f"{names['stem']}.weight", np.empty(0))
    _, in_channels, patch_size, _ = stem.shape if stem.ndim == 4 else (0, 1, 4, 4)
    heads = (state.get(f"{names['head']}.{part}") for part in ("bias", "weight"))
    classes = (head.shape[0] for head in heads if head is not None and head.ndim)
    config = convnext.ConvNeXtConfig(
        depths=tuple(depths),
        dims=tuple(dims),
        num_classes=_majority(classes, default=1),
        in_channels=in_channels,
        patch_size=patch_size,
        head_norm_epsilon=head_norm_epsilon or _HEAD_NORM_EPSILON[dialect],
    )
    return config, pointwise


def _majority(values: Iterable[int], *, default: int) -> int:
    return next(iter(collections.Counter(values).most_common(1)), (default, 0))[0]


def _expected_shapes(
    table: Sequence[Row], config: convnext.ConvNeXtConfig
) -> dict[str, tuple[int, ...]]:
    ours = convnext.named_arrays(convnext.abstract(config))
    expected = {}
    for row in table:
        shape = ours[row.name].shape[0 if row.block is None else 1 :]
        stand_in = np.broadcast_to(np.float32(0), shape)  # a shape that owns no memory
        expected[row.key] = _LAYOUTS[row.layout][1](stand_in).shape
    return expected


def _some(keys: Sequence[str]) -> str:
    """Names for a message that a person reads."""
    more = f", and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more


def _check(
    state: Arrays,
    expected: Mapping[str, tuple[int, ...]],
    dialect: Dialect,
    strays: Sequence[str],
) -> None:
    problems = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected] + list(strays),
        "misshapen": [
            f"{key} {state[key].shape} instead of {shape}"
            for key, shape in expected.items()
            if key in state and state[key].shape != shape
        ],
        "not finite": [key for key, a in state.items() if not np.isfinite(a).all()],
    }
    if any(problems.values()):
        lists = [f"{name}: {_some(keys)}" for name, keys in problems.items() if keys]
        raise ValueError(
            f"state is no whole ConvNeXt of {dialect}. " + "; ".join(lists)
        )
