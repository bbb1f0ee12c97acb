"""ConvNeXt against plain NumPy, against transformers, and against itself."""

import math
import pathlib

import chex
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from flax import nnx

from apex_jax import classifier, convert
from apex_jax.models import convnext, depthwise

DATA = pathlib.Path(__file__).parent / "data" / "convnext"
TINY = convnext.ConvNeXtConfig(
    depths=(1, 2), dims=(4, 6), num_classes=3, head_norm_epsilon=1e-3
)
NAMES = ["a", "b", "c"]
forward = jax.jit(convnext.forward)  # once, so that tests share what is compiled


def lively(config, seed=0):
    """A network in which every array matters: at initialisation a block adds 1e-6."""
    rng = np.random.default_rng(seed)
    arrays = {
        name: np.float32(name.endswith("scale") + rng.normal(0, 0.3, array.shape))
        for name, array in convnext.named_arrays(convnext.abstract(config)).items()
    }
    return convnext.from_named_arrays(config, arrays)


def spectrograms(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


# --- the depthwise step


def depthwise_loop(x, kernel):
    batch, freq, time, chan = x.shape
    rows, columns, _ = kernel.shape
    out = np.zeros(x.shape)
    for b, f, t, c in np.ndindex(batch, freq, time, chan):
        for i in range(rows):
            for j in range(columns):
                row, column = f + i - rows // 2, t + j - columns // 2
                if 0 <= row < freq and 0 <= column < time:
                    out[b, f, t, c] += x[b, row, column, c] * kernel[i, j, c]
    return out


@pytest.mark.parametrize("shape", [(2, 8, 5, 3), (1, 7, 9, 2), (1, 1, 1, 4)])
@pytest.mark.parametrize("form", [depthwise.shifted, depthwise.grouped])
def test_depthwise_values(form, shape):
    x, kernel = spectrograms(*shape), spectrograms(7, 7, shape[-1], seed=2)
    expected = depthwise_loop(np.asarray(x), np.asarray(kernel))
    np.testing.assert_allclose(form(x, kernel), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        jax.jit(depthwise.depthwise)(x, kernel), expected, rtol=1e-5, atol=1e-5
    )


def test_depthwise_gradients_of_both_forms_agree():
    x, kernel = spectrograms(2, 5, 8, 3), spectrograms(7, 7, 3, seed=2)
    cotangent = spectrograms(*x.shape, seed=3)
    automatic = jax.vjp(depthwise.grouped, x, kernel)[1](cotangent)
    for gradients in (depthwise.shifted_gradients, depthwise.grouped_gradients):
        chex.assert_trees_all_close(
            gradients(x, kernel, cotangent), automatic, rtol=1e-4, atol=1e-4
        )
    _, pullback = jax.vjp(depthwise.depthwise, x, kernel)
    chex.assert_trees_all_close(pullback(cotangent), automatic, rtol=1e-4, atol=1e-4)


def test_depthwise_gradient_is_the_finite_difference():
    x, kernel = spectrograms(1, 3, 4, 2), spectrograms(7, 7, 2, seed=2)
    smooth = jax.jit(lambda x, k: jnp.sin(depthwise.depthwise(x, k)))
    jax.test_util.check_grads(smooth, (x, kernel), 1, modes=("rev",), rtol=2e-2)


def test_accelerators_get_the_grouped_convolution():
    x, kernel = spectrograms(1, 8, 8, 2), spectrograms(7, 7, 2)
    lowered = jax.jit(depthwise.depthwise).trace(x, kernel)
    assert (
        "feature_group_count = 2"
        in lowered.lower(lowering_platforms=("cuda",)).as_text()
    )
    assert "convolution" not in lowered.lower(lowering_platforms=("cpu",)).as_text()


# --- the network, once more in NumPy


def layer_norm(x, scale, bias, epsilon):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * scale + bias


def patches(x, kernel, bias):
    size = kernel.shape[0]
    rows, columns = x.shape[1] // size, x.shape[2] // size
    out = np.zeros((x.shape[0], rows, columns, kernel.shape[-1]))
    for f, t in np.ndindex(rows, columns):
        window = x[:, f * size : (f + 1) * size, t * size : (t + 1) * size]
        out[:, f, t] = np.einsum("bijc,ijcd->bd", window, kernel) + bias
    return out


def gelu(x):
    return x * np.vectorize(lambda v: 0.5 * (1 + math.erf(v / math.sqrt(2))))(x)


def convnext_loop(config, arrays, spectrogram):
    """The map before the last norm, and the logits; one block after the other."""
    p = {name: np.asarray(a, np.float64) for name, a in arrays.items()}
    planes = np.repeat(spectrogram[..., None], config.in_channels, axis=-1)
    x = patches(planes.astype(np.float64), p["stem.kernel"], p["stem.bias"])
    x = layer_norm(x, p["stem_norm.scale"], p["stem_norm.bias"], config.norm_epsilon)
    for s, depth in enumerate(config.depths):
        if s > 0:
            name = f"stages.{s}.downsample"
            x = layer_norm(
                x, p[f"{name}_norm.scale"], p[f"{name}_norm.bias"], config.norm_epsilon
            )
            x = patches(x, p[f"{name}.kernel"], p[f"{name}.bias"])
        for b in range(depth):
            q = {
                name.removeprefix(f"stages.{s}.blocks."): a[b]
                for name, a in p.items()
                if name.startswith(f"stages.{s}.blocks.")
            }
            h = depthwise_loop(x, q["depthwise.kernel"]) + q["depthwise.bias"]
            h = layer_norm(h, q["norm.scale"], q["norm.bias"], config.norm_epsilon)
            h = gelu(h @ q["expand.kernel"] + q["expand.bias"])
            x = x + q["scale"] * (h @ q["contract.kernel"] + q["contract.bias"])
    pooled = layer_norm(
        x.mean((1, 2)), p["norm.scale"], p["norm.bias"], config.head_norm_epsilon
    )
    return x, pooled @ p["head.kernel"] + p["head.bias"]


@pytest.mark.parametrize("in_channels", [1, 3])
def test_network_is_the_numpy_one(in_channels):
    config = convnext.ConvNeXtConfig(
        depths=(1, 2), dims=(3, 5), num_classes=4, in_channels=in_channels, patch_size=2
    )
    model, x = lively(config), spectrograms(2, 9, 14)
    arrays = convnext.named_arrays(model)
    body, expected = convnext_loop(config, arrays, np.asarray(x))
    feature_map, logits = forward(model, x)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    pooled = body.mean((1, 2))[:, None, None]  # the fold's mean and deviation
    folded = (body - pooled.mean(-1, keepdims=True)) / np.sqrt(
        pooled.var(-1, keepdims=True) + config.head_norm_epsilon
    )
    folded = folded * np.asarray(arrays["norm.scale"]) + np.asarray(arrays["norm.bias"])
    np.testing.assert_allclose(feature_map, folded, rtol=1e-3, atol=1e-3)


# --- contract 1


@pytest.mark.parametrize("size", [(8, 8), (9, 31), (50, 16)])
def test_head_of_the_pooled_map_is_the_logits(size):
    model, x = lively(TINY), spectrograms(3, *size)
    network = convnext.as_classifier(model, NAMES)
    feature_map, logits = jax.jit(lambda network, x: network(x))(network, x)
    assert feature_map.shape == (3, size[0] // 8, size[1] // 8, 6)
    np.testing.assert_allclose(
        network.head(classifier.pool(feature_map)), logits, rtol=1e-5, atol=1e-5
    )
    # The norm does something: without the fold the contract would not hold.
    body = jax.jit(convnext.ConvNeXt.body)(model, x)
    assert np.abs(network.head(classifier.pool(body)) - logits).max() > 0.1


def test_methods_are_parts_of_the_one_pass():
    model, x = lively(TINY), spectrograms(3, 9, 31)
    feature_map, logits = forward(model, x)
    chex.assert_trees_all_close(
        jax.jit(lambda model, x: (model.feature_map(x), model(x)))(model, x),
        (feature_map, logits),
        rtol=1e-5,
        atol=1e-5,
    )
    eager = convnext.forward(model, x)
    chex.assert_trees_all_close(eager, (feature_map, logits), rtol=1e-4, atol=1e-4)


def test_classifier_says_what_it_is():
    network = convnext.as_classifier(lively(TINY), NAMES)
    assert network.class_names == ("a", "b", "c")
    assert network.stride == (8, 8)
    assert network.head.weight.shape == (3, 6)
    with pytest.raises(ValueError, match="3 classes, got 2"):
        convnext.as_classifier(lively(TINY), ["a", "b"])


def test_weights_are_an_argument_of_the_jitted_classifier():
    x = spectrograms(1, 8, 8)
    call = jax.jit(chex.assert_max_traces(lambda network, x: network(x)[1], n=1))
    networks = [convnext.as_classifier(lively(TINY, s), NAMES) for s in (0, 1)]
    first, second = (call(network, x) for network in networks)
    assert np.abs(first - second).max() > 0.1
    np.testing.assert_allclose(
        second, forward(networks[1].params, x)[1], rtol=1e-4, atol=1e-4
    )


# --- how it is computed does not matter


def unrolled(model, x):
    x = model.embed(x)
    for stage in model.stages:
        if hasattr(stage, "downsample"):
            x = stage.downsample(stage.downsample_norm(x))
        for b in range(stage.blocks.scale.shape[0]):
            block = jax.tree.map(lambda leaf, b=b: leaf[b], stage.blocks)
            x = block(x)
    return model.logits(x)


@pytest.mark.slow
def test_scan_is_the_unrolled_network():
    model, x = lively(TINY), spectrograms(2, 10, 17)

    def loss(network):
        return jax.jit(jax.value_and_grad(lambda m: jnp.sum(network(m, x) ** 2)))

    scanned = loss(convnext.ConvNeXt.__call__)(model)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(scanned))
    chex.assert_trees_all_close(scanned, loss(unrolled)(model), rtol=1e-3, atol=1e-3)


def test_running_blocks_again_takes_less_memory_and_changes_no_gradient():
    deep = convnext.ConvNeXtConfig(depths=(12,), dims=(8,), num_classes=3)
    model, x = lively(deep), spectrograms(2, 64, 128)

    def compiled(change):
        def loss(model):
            return jnp.sum(change(model)(x) ** 2)

        return jax.jit(jax.value_and_grad(loss)).lower(model).compile()

    kept, again = compiled(lambda model: model), compiled(convnext.rematerialised)
    needed = [run.memory_analysis().temp_size_in_bytes for run in (kept, again)]
    assert needed[1] < needed[0] / 3
    chex.assert_trees_all_close(kept(model), again(model), rtol=1e-5, atol=1e-5)
    # What was given stays as it was.
    assert not any(stage.rematerialise for stage in model.stages)


@pytest.mark.slow
def test_eight_devices_are_one():
    model, x = lively(TINY), spectrograms(16, 8, 16)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(model, jax.NamedSharding(mesh, jax.P()))
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))

    @jax.jit
    def loss_and_map(model, x):
        def loss(model):
            feature_map, logits = convnext.forward(model, x)
            return jnp.sum(logits**2), feature_map

        return jax.value_and_grad(loss, has_aux=True)(model)

    on_eight = loss_and_map(spread, sharded)
    feature_map = on_eight[0][1]
    assert len(feature_map.sharding.device_set) == 8
    assert not feature_map.sharding.is_fully_replicated
    chex.assert_trees_all_close(on_eight, loss_and_map(model, x), rtol=1e-3, atol=1e-3)


# --- shapes, names, errors


@pytest.mark.parametrize(
    ("size", "classes", "in_channels", "weights"),
    [
        ("tiny", 1000, 3, 28_589_128),
        ("base", 1000, 3, 88_591_464),
        ("large", 1000, 3, 197_767_336),
        ("base", 2, 1, 87_564_418),
        ("base", 411, 1, 87_983_643),
        ("base", 9736, 1, 97_541_768),
    ],
)
def test_published_sizes(size, classes, in_channels, weights):
    config = convnext.ConvNeXtConfig.named(
        size, num_classes=classes, in_channels=in_channels
    )
    arrays = convnext.named_arrays(convnext.abstract(config))
    assert sum(array.size for array in arrays.values()) == weights
    assert config.size == size
    assert config.stride == 32


def test_initialisation():
    config = convnext.ConvNeXtConfig(depths=(2, 1), dims=(32, 8), num_classes=5)
    model = jax.jit(lambda: convnext.ConvNeXt(config, rngs=nnx.Rngs(0)))()
    arrays = convnext.named_arrays(model)
    for name, array in arrays.items():
        if name.endswith("bias"):
            assert np.all(np.asarray(array) == 0)
        elif name.endswith("blocks.scale"):
            np.testing.assert_allclose(array, 1e-6)
        elif name.endswith("scale"):
            assert np.all(np.asarray(array) == 1)
        else:
            kernel = array[0] if ".blocks." in name else array
            fan_in = np.prod(kernel.shape[:-1])
            assert np.std(kernel) * np.sqrt(fan_in) == pytest.approx(1, abs=0.25)
    kernels = arrays["stages.0.blocks.expand.kernel"]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01  # each block its own draw


def test_arrays_by_name_come_back():
    model = lively(TINY)
    arrays = convnext.named_arrays(model)
    assert arrays["stages.1.blocks.depthwise.kernel"].shape == (2, 7, 7, 6)
    chex.assert_trees_all_equal(convnext.from_named_arrays(TINY, arrays), model)
    missing = {name: a for name, a in arrays.items() if name != "norm.bias"}
    with pytest.raises(ValueError, match=r"norm\.bias$"):
        convnext.from_named_arrays(TINY, missing)


def test_spectrogram_too_small():
    with pytest.raises(ValueError, match=r"at least 8 rows and frames.*\(1, 7, 40\)"):
        lively(TINY)(spectrograms(1, 7, 40))


@pytest.mark.parametrize(
    "changes",
    [
        {"depths": (1, 2, 1)},
        {"depths": (), "dims": ()},
        {"depths": (1, 0)},
        {"num_classes": -1},
        {"in_channels": 2},
    ],
)
def test_impossible_configs(changes):
    settings = {"depths": (1, 2), "dims": (4, 6), "num_classes": 3}
    with pytest.raises(ValueError, match=r"got"):
        convnext.ConvNeXtConfig(**(settings | changes))


def test_going_on_from_a_network_of_images():
    """Three planes and other classes: stem and head begin anew, the rest is kept."""
    shape = {"depths": (1, 2), "dims": (16, 24), "patch_size": 4}
    images = lively(convnext.ConvNeXtConfig(num_classes=50, in_channels=3, **shape))
    config = convnext.ConvNeXtConfig(num_classes=7, in_channels=1, **shape)
    new = convnext.continued(config, images, jax.random.key(3))
    assert new.config == config
    before, after = convnext.named_arrays(images), convnext.named_arrays(new)
    anew = {"head.kernel", "head.bias", "stem.kernel"}
    assert anew < after.keys()
    for name, array in after.items():
        if name not in anew:
            np.testing.assert_array_equal(array, before[name], err_msg=name)
    np.testing.assert_array_equal(after["head.bias"], np.zeros(7))
    for name in ("head.kernel", "stem.kernel"):
        assert np.std(after[name]) == pytest.approx(0.02, rel=0.2)
    assert new(spectrograms(1, 32, 32)).shape == (1, 7)
    same = convnext.continued(images.config, images, jax.random.key(3))
    chex.assert_trees_all_equal(nnx.state(same), nnx.state(images))
    with pytest.raises(ValueError, match=r"depths \(1, 2\) and dims \(16, 24\) cannot"):
        convnext.continued(
            convnext.ConvNeXtConfig(depths=(1,), dims=(16,), num_classes=2),
            images,
            jax.random.key(0),
        )


def test_unknown_size():
    with pytest.raises(Exception, match="huge"):
        convnext.ConvNeXtConfig.named("huge", num_classes=2)


# --- transformers


@jax.jit
def steps(model, spectrogram):
    """After the stem, after each stage, the logits."""
    outputs = [model.embed(spectrogram)]
    for stage in model.stages:
        outputs.append(stage(outputs[-1]))
    return [*outputs, model.logits(outputs[-1])]


@pytest.mark.parametrize("in_channels", [1, 3])
def test_stored_transformers_outputs(in_channels):
    """Outputs recorded by data/make_convnext_references.py; needs no torch."""
    model, _ = convert.load(DATA / f"transformers_{in_channels}")
    expected = np.load(DATA / f"transformers_{in_channels}.npz")
    names = ["embedding", *(f"stage{s}" for s in range(4)), "logits"]
    for name, ours in zip(names, steps(model, expected["spectrogram"]), strict=True):
        np.testing.assert_allclose(
            ours, expected[name], rtol=1e-4, atol=1e-4, err_msg=name
        )


@pytest.mark.parametrize("in_channels", [1, 3])
def test_live_transformers(in_channels, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = transformers.ConvNextConfig(
        num_channels=in_channels,
        depths=[2, 1, 3, 1],
        hidden_sizes=[8, 12, 20, 28],
        num_labels=6,
        layer_scale_init_value=0.5,
        initializer_range=0.3,
    )
    theirs = transformers.ConvNextForImageClassification(settings).eval()
    spectrogram = np.asarray(spectrograms(2, 77, 130))
    planes = torch.tensor(np.repeat(spectrogram[:, None], in_channels, axis=1))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        out = theirs(planes, output_hidden_states=True)
        maps = [theirs.convnext.embeddings(planes), *out.hidden_states[-4:]]
    theirs.save_pretrained(tmp_path)

    model, _ = convert.load(tmp_path)
    *ours, logits = steps(model, spectrogram)
    for our_map, their_map in zip(ours, maps, strict=True):
        their_map = their_map.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(our_map, their_map, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(logits, out.logits.numpy(), rtol=1e-4, atol=1e-4)


# Rounded products


def rounded_to_bfloat16(array):
    """Nearest, ties to even, eight significant bits: by the bits of float32."""
    bits = np.asarray(array, np.float32).view(np.uint32).astype(np.uint64)
    bits = bits + 0x7FFF + ((bits >> 16) & 1)
    return ((bits >> 16) << 16).astype(np.uint32).view(np.float32)


def test_rounded_products_sum_in_float32(rng):
    layer = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.asarray(rng.normal(size=3), jnp.float32)
    x = rng.normal(size=(2, 4, 1, 5)).astype(np.float32)
    kernel = np.asarray(layer.kernel[...])
    bias = np.asarray(layer.bias[...])
    exact = convnext._linear(layer, jnp.asarray(x))
    np.testing.assert_allclose(exact, x @ kernel + bias, rtol=1e-5, atol=1e-6)
    bits = jax.lax.bitcast_convert_type(kernel.astype(jnp.bfloat16), jnp.uint16)
    layer.kernel = nnx.Param(bits)
    expected = rounded_to_bfloat16(x) @ rounded_to_bfloat16(kernel)
    found = convnext._linear(layer, jnp.asarray(x))
    assert found.dtype == jnp.float32
    # Factors of eight bits have products of sixteen: only the sum's order differs.
    expected += bias
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)


def test_only_the_products_of_the_blocks_are_rounded():
    model = convnext.ConvNeXt(TINY, rngs=nnx.Rngs(0))
    rounded = convnext.with_matmul_dtype(model, "bfloat16")
    before, after = convnext.named_arrays(model), convnext.named_arrays(rounded)
    changed = {name for name in before if after[name].dtype != before[name].dtype}
    assert changed == {
        f"stages.{s}.blocks.{layer}.kernel"
        for s in range(len(TINY.depths))
        for layer in ("expand", "contract")
    }
    for name in set(before) - changed:
        np.testing.assert_array_equal(before[name], after[name])
    assert convnext.with_matmul_dtype(model, "float32") is model
    with pytest.raises(ValueError, match="float32, bfloat16, got 'float16'"):
        convnext.with_matmul_dtype(model, "float16")


def test_rounded_products_give_nearly_the_same_answers(rng):
    model = lively(TINY)
    x = jnp.asarray(rng.normal(size=(3, 32, 48)), jnp.float32)
    exact_map, exact = forward(model, x)
    rounded = convnext.with_matmul_dtype(model, "bfloat16")
    feature_map, logits = forward(rounded, x)
    assert feature_map.dtype == logits.dtype == jnp.float32
    for found, expected in ((feature_map, exact_map), (logits, exact)):
        off = np.abs(np.asarray(found - expected)).max() / np.abs(expected).max()
        assert 0 < off < 0.03
    # The contract holds for the rounded network as it does for the exact one.
    head = convnext.as_classifier(rounded, NAMES).head
    np.testing.assert_allclose(
        head(feature_map.mean(axis=(1, 2))), logits, rtol=1e-4, atol=1e-5
    )
