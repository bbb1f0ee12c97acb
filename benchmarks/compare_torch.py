"""Rows of the backbone against the same network in PyTorch, weights and all."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apex_jax import hosts, settings
from apex_jax.models import convnext
from benchmarks import rows, sizes, synthetic, timing

MISSING = (
    "compare-torch needs torch, which is not installed; for this CPU: pip install "
    "torch --index-url https://download.pytorch.org/whl/cpu"
)


def check_torch() -> None:
    """Raises a ModuleNotFoundError that says what to do where there is no torch."""
    if importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError(MISSING)


def backbone(size: sizes.Sizes) -> list[rows.Row]:
    """Ours against torch's, in float32 and in bfloat16.

    In bfloat16 ours rounds the factors of its products and nothing else; torch rounds
    everything, as `network.to(torch.bfloat16)` does. Eager torch with channels last in
    memory, on as many cores; on a GPU compiled torch as well.
    """
    check_torch()
    import torch

    from benchmarks import torch_convnext

    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    torch.set_num_threads(hosts.cores())
    # Float32 on either side; by default cuDNN rounds its factors to 11 bits (TF32).
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    model = synthetic.classifier(size.network).params
    shape = (size.batch, *size.front_end.shape)
    # A copy: torch warns of JAX's arrays, which may not be written.
    images = np.array(jax.random.normal(jax.random.key(0), shape))

    dtypes: tuple[tuple[settings.MatmulDtype, float], ...] = (
        ("float32", 1e-3),
        ("bfloat16", 0.1),
    )
    found = []
    for dtype, tolerance in dtypes:
        ours = _ours(convnext.with_matmul_dtype(model, dtype), images)
        twin = torch_convnext.of(model).to(getattr(torch, dtype))
        planes = torch.from_numpy(images)[:, None]
        planes = planes.expand(-1, model.config.in_channels, -1, -1)
        planes = planes.to(getattr(torch, dtype), memory_format=torch.channels_last)
        if on_gpu:
            twin, planes = twin.cuda(), planes.cuda()
        peers: dict[str, Any] = {"torch, eager": twin}
        if on_gpu:
            peers["torch.compile"] = torch.compile(twin)

        def check(
            logits: Any, *theirs: Any, dtype: str = dtype, tolerance: float = tolerance
        ) -> None:
            for other in theirs:
                timing.check_close(f"backbone in {dtype}", logits, other, tolerance)

        first, *others = timing.alternate(
            {
                "ours": ours,
                **{name: _theirs(peer, planes) for name, peer in peers.items()},
            },
            budget_s=size.budget_s,
            check=check,
            least=size.least,
        )
        found += [
            rows.between(
                "compare-torch",
                f"backbone {size.network.size}, {dtype}",
                first,
                other,
                unit="clip",
                per_call=size.batch,
                floor_is=name,
                goal=rows.Goal(at_most=1.0) if size.judged else None,
                details={
                    "torch": torch.__version__,
                    "threads": torch.get_num_threads(),
                },
            )
            for name, other in zip(peers, others, strict=True)
        ]
    return found


def _ours(model: convnext.ConvNeXt, images: np.ndarray) -> Callable[[], jax.Array]:
    run, given = jax.jit(lambda model, images: model(images)), jnp.asarray(images)
    return lambda: run(model, given)


def _theirs(network: Any, planes: Any) -> Callable[[], np.ndarray]:
    import torch

    def run() -> np.ndarray:
        with torch.inference_mode():
            # To the host: that waits for a GPU.
            return network(planes).float().cpu().numpy()

    return run
