"""Makes tests/data/convnext; needs torch, transformers and safetensors.

    python tests/data/make_convnext_references.py

Two small transformers networks with their outputs, for one and for three input
channels, and the keys with shapes of transformers' ConvNeXt-Tiny.
"""

import pathlib

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent / "convnext"


def channels_last(tensor):
    """`[batch, chan, freq, time]` to `[batch, freq, time, chan]`, NumPy."""
    return tensor.permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def make_network(in_channels):
    """Weights, config and outputs of one network with random, lively weights."""
    torch.manual_seed(in_channels)
    names = ["wren", "robin", "crow", "owl", "tit"]
    config = transformers.ConvNextConfig(
        num_channels=in_channels,
        depths=[1, 2, 1, 1],
        hidden_sizes=[4, 6, 8, 12],
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        layer_scale_init_value=0.5,
        initializer_range=0.3,
        layer_norm_eps=1e-3,
    )
    model = transformers.ConvNextForImageClassification(config).eval()
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(HERE / f"transformers_{in_channels}")
    spectrogram = torch.randn(2, 45, 66)
    planes = spectrogram[:, None].repeat(1, in_channels, 1, 1)
    out = model(planes, output_hidden_states=True)
    np.savez_compressed(
        HERE / f"transformers_{in_channels}.npz",
        spectrogram=spectrogram.numpy(),
        embedding=channels_last(model.convnext.embeddings(planes)),
        logits=out.logits.numpy(),
        **{f"stage{s}": channels_last(h) for s, h in enumerate(out.hidden_states[-4:])},
    )


def make_keys():
    """The keys of transformers' ConvNeXt-Tiny, one "key shape" a line."""
    model = transformers.ConvNextForImageClassification(
        transformers.ConvNextConfig(num_labels=1000)
    )
    lines = [f"{key} {list(t.shape)}" for key, t in model.state_dict().items()]
    (HERE / "transformers_tiny.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    HERE.mkdir(parents=True, exist_ok=True)
    make_network(1)
    make_network(3)
    make_keys()
