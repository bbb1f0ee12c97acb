"""Makes tests/data/audioprotopnet.npz; needs torch and transformers.

    python tests/data/make_audioprotopnet_references.py

A small AudioProtoPNet put together in torch on transformers' own ConvNextModel, with
its arrays under the keys of the published checkpoints, what it makes of two
spectrograms, its two losses, and their gradients. Written from the published
description, with torch's layers, and without a look at `apex_jax`.
"""

import pathlib

import numpy as np
import torch
import transformers

FILE = pathlib.Path(__file__).parent / "audioprotopnet.npz"
CLASSES, EACH, EPSILON = 3, 2, 1e-4


class Head(torch.nn.Module):
    """Prototypes, and the layer of each class that weighs its own."""

    def __init__(self, chan):
        super().__init__()
        self.prototype_vectors = torch.nn.Parameter(
            torch.rand(CLASSES * EACH, chan, 1, 1)
        )
        self.last_layer = torch.nn.Module()
        self.last_layer.weight = torch.nn.Parameter(torch.randn(CLASSES, EACH))
        self.last_layer.bias = torch.nn.Parameter(torch.randn(CLASSES))

    def extended(self, vectors):
        """With two channels more, of epsilon."""
        more = torch.full_like(vectors[:, :2], EPSILON)
        return torch.cat([vectors, more], dim=1)

    def forward(self, body):
        fine = torch.nn.functional.interpolate(
            body, scale_factor=2, mode="bilinear", align_corners=False
        )
        fine, prototypes = map(self.extended, (fine, self.prototype_vectors))
        length = prototypes.pow(2).sum(1, keepdim=True).add(EPSILON).sqrt() + EPSILON
        fine = fine / fine.pow(2).sum(1, keepdim=True).add(EPSILON).sqrt()
        cosine = torch.nn.functional.conv2d(fine, prototypes / length)
        similarity = torch.relu(cosine / 1.01)
        best = torch.nn.functional.max_pool2d(similarity, similarity.shape[-2:])
        best = best.reshape(-1, CLASSES, EACH)
        layer = self.last_layer
        logits = (best * torch.relu(layer.weight)).sum(2) + layer.bias
        return similarity, logits


class AudioProtoPNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = transformers.ConvNextModel(
            transformers.ConvNextConfig(
                num_channels=1,
                depths=[1, 2],
                hidden_sizes=[4, 6],
                num_stages=2,
                layer_scale_init_value=0.5,
                initializer_range=0.3,
            )
        )
        self.head = Head(6)

    def forward(self, spectrogram):
        body = self.backbone(spectrogram[:, None]).last_hidden_state
        return self.head(body)


def asymmetric(logits, target):
    """Ridnik et al., gamma 1 for what is there and 4 for what is not, margin 0.05."""
    probability = torch.sigmoid(logits)
    absence = (1 - probability + 0.05).clamp(max=1)
    certain = torch.where(target > 0, probability, absence)
    gamma = torch.where(target > 0, 1.0, 4.0)
    return -((1 - certain) ** gamma * certain.clamp(min=1e-8).log()).mean()


def orthogonality(prototypes):
    """Frobenius distance of each class's Gram matrix from one, over its entries."""
    vectors = prototypes.reshape(CLASSES, EACH, -1)
    length = vectors.pow(2).sum(-1, keepdim=True).add(EPSILON).sqrt() + EPSILON
    unit = vectors / length
    off = torch.bmm(unit, unit.mT) - torch.eye(EACH)
    return torch.linalg.vector_norm(off) / off.numel()


def main():
    torch.manual_seed(0)
    model = AudioProtoPNet()
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    spectrogram = torch.randn(2, 24, 40)
    target = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    similarity, logits = model(spectrogram)
    losses = {
        "asymmetric": asymmetric(logits, target),
        "orthogonality": orthogonality(model.head.prototype_vectors),
    }
    sum(losses.values()).backward()
    numbers = {
        "spectrogram": spectrogram,
        "target": target,
        "similarity": similarity,
        "logits": logits,
        **losses,
        **{f"state/{name}": array for name, array in model.state_dict().items()},
        **{f"gradient/{n}": p.grad for n, p in model.head.named_parameters()},
    }
    arrays = {name: a.detach().numpy() for name, a in numbers.items()}
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()
