"""The same ConvNeXt in plain torch, to compare with: eager, channels last.

As timm and torchvision write it, under timm's names, so that the key tables of
`apex_jax.models.convnext_keys` fill it. Imported only where torch is wanted.
"""

from __future__ import annotations

import torch
from torch import nn

from apex_jax.models import convnext, convnext_keys


class ChannelsFirstNorm(nn.LayerNorm):
    """A norm over the channels of `[batch, chan, freq, time]`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape; with channels last in memory the permutations copy nothing."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Mlp(nn.Module):
    """The two linear layers."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape."""
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Depthwise convolution, norm, two linear layers, scaled and added."""

    def __init__(self, dim: int, epsilon: float):
        super().__init__()
        self.conv_dw = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=epsilon)
        self.mlp = Mlp(dim)
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape."""
        y = self.conv_dw(x).permute(0, 2, 3, 1)
        y = self.mlp(self.norm(y)) * self.gamma
        return x + y.permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Blocks of one width, after a halving in all but the first."""

    def __init__(self, config: convnext.ConvNeXtConfig, index: int):
        super().__init__()
        dim, epsilon = config.dims[index], config.norm_epsilon
        self.downsample: nn.Module = nn.Identity()
        if index > 0:
            before = config.dims[index - 1]
            self.downsample = nn.Sequential(
                ChannelsFirstNorm(before, eps=epsilon), nn.Conv2d(before, dim, 2, 2)
            )
        self.blocks = nn.Sequential(
            *(Block(dim, epsilon) for _ in range(config.depths[index]))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, chan, freq, time]`."""
        return self.blocks(self.downsample(x))


class Head(nn.Module):
    """Pooling, norm, linear layer."""

    def __init__(self, config: convnext.ConvNeXtConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.dims[-1], eps=config.head_norm_epsilon)
        self.fc = nn.Linear(config.dims[-1], config.num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `[batch, classes]`."""
        return self.fc(self.norm(x.mean(dim=(2, 3))))


class ConvNeXt(nn.Module):
    """The network; takes `[batch, in_channels, freq, time]`."""

    def __init__(self, config: convnext.ConvNeXtConfig):
        super().__init__()
        first, size = config.dims[0], config.patch_size
        self.stem = nn.Sequential(
            nn.Conv2d(config.in_channels, first, size, size),
            ChannelsFirstNorm(first, eps=config.norm_epsilon),
        )
        self.stages = nn.Sequential(
            *(Stage(config, index) for index in range(len(config.depths)))
        )
        self.head = Head(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `[batch, classes]`."""
        return self.head(self.stages(self.stem(x)))


def of(model: convnext.ConvNeXt) -> ConvNeXt:
    """The same network in torch, channels last in memory, ready to run."""
    state = convnext_keys.to_state_dict(model, "timm")
    twin = ConvNeXt(model.config)
    # A copy: JAX's arrays are read-only, and torch warns of what it may not write.
    twin.load_state_dict({k: torch.from_numpy(a.copy()) for k, a in state.items()})
    return twin.eval().to(memory_format=torch.channels_last)
