"""Feeds the entry points what a fuzzer thinks up, guided by the code it reaches.

    pip install atheris
    python tests/fuzz_program.py manifest --seconds 300
    python tests/fuzz_program.py keys --seconds 300
    python tests/fuzz_program.py audio --seconds 300
    python tests/fuzz_program.py safetensors --seconds 300
    python tests/fuzz_program.py torch --seconds 300        # needs torch

Anything but a ValueError or an OSError is a finding: the input is written to
`crash-...` and belongs into `tests/malformed.py`. So is a file that takes ten seconds
or four gigabytes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import pathlib
import struct
import sys
import tempfile
import zipfile

import atheris
import numpy as np

with atheris.instrument_imports(
    include=[
        "apex_jax.manifest",
        "apex_jax.models.convnext_keys",
        "apex_jax.convert",
        "apex_jax.audio",
    ]
):
    from apex_jax import audio, convert, manifest
    from apex_jax.models import convnext, convnext_keys

FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="fuzz-"))
NUMBERS = (0, 1, 2, 3, 4, 5, 7, 8, 12, 16)


def read_manifest(content: bytes) -> None:
    file = FOLDER / "m.csv"
    file.write_bytes(content)
    manifest.read(file)


def read_audio(content: bytes) -> None:
    # The first byte chooses the ending, which libsndfile looks at for some formats.
    ending = ("wav", "flac", "ogg", "mp3", "aiff", "raw", "au")[content[0] % 7]
    file = FOLDER / f"a.{ending}"
    file.write_bytes(content[1:])
    samples = audio.load(file, 8000)
    if not np.isfinite(samples).all():
        raise AssertionError("samples that are no numbers")


def read_safetensors(content: bytes) -> None:
    file = FOLDER / "a.safetensors"
    # Nearly always with a length that fits: else nothing behind it would be reached.
    cut = content[0] * 8 if content[0] else len(content) - 1
    header, data = content[1 : 1 + cut], content[1 + cut :]
    file.write_bytes(struct.pack("<Q", len(header)) + header + data)
    convert.load(file)


def read_torch(content: bytes) -> None:
    """A file of torch's, whose pickle is what was thought up, or which is it."""
    file = FOLDER / "a.pt"
    if content[0] % 2:
        file.write_bytes(content[1:])
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", content[1:])
            archive.writestr("archive/version", b"3\n")
            archive.writestr("archive/byteorder", b"little")
            archive.writestr("archive/data/0", bytes(16))
    convert.load(file)


def read_keys(content: bytes) -> None:
    """A state dict made of a real one's names, with some harmed."""
    given = atheris.FuzzedDataProvider(content)
    state = {name: np.zeros(array.shape) for name, array in TIMM.items()}
    for _ in range(given.ConsumeIntInRange(0, 6)):
        names = sorted(state)
        name = names[given.ConsumeIntInRange(0, len(names) - 1)] if names else "x"
        match given.ConsumeIntInRange(0, 4):
            case 0:
                state.pop(name, None)
            case 1:
                state[given.ConsumeUnicode(40)] = np.zeros(3)
            case 2:
                count = given.ConsumeIntInRange(0, 5)
                shape = [NUMBERS[given.ConsumeIntInRange(0, 9)] for _ in range(count)]
                state[name] = np.zeros(shape)
            case 3:
                number = str(given.ConsumeIntInRange(-1, 10**9))
                at = given.ConsumeIntInRange(0, len(name))
                harmed = name[:at] + number + name[at + 1 :]
                state[harmed] = state.pop(name, np.zeros(1))
            case 4:
                state[name] = np.full(
                    3, np.nan, given.PickValueInList(["f2", "f8", "i4"])
                )
    convnext_keys.from_state_dict(state)


TIMM = convnext_keys.to_state_dict(
    convnext.from_named_arrays(
        (config := convnext.ConvNeXtConfig(depths=(1, 2), dims=(4, 6), num_classes=2)),
        {
            name: np.zeros(array.shape, np.float32)
            for name, array in convnext.named_arrays(convnext.abstract(config)).items()
        },
    ),
    "timm",
)
TARGETS = {
    "manifest": read_manifest,
    "audio": read_audio,
    "safetensors": read_safetensors,
    "keys": read_keys,
    "torch": read_torch,
}


def seeds(target: str) -> pathlib.Path:
    """Inputs to begin with: the malformed ones, and good ones."""
    import malformed

    folder = FOLDER / "seeds"
    folder.mkdir()
    contents = [b"path,label\na.wav,cat\n", b"path,labels,offset_s,group\na,b;c,1,d\n"]
    if target == "audio":
        contents = [
            bytes([i]) + malformed.sound(ending)[:2000]
            for i, ending in enumerate(("wav", "flac", "ogg"))
        ]
    elif target == "safetensors":
        tensor = b'{"stem.0.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        contents = [bytes(1) + tensor, bytes([9]) + tensor.ljust(72) + bytes(4)]
    elif target == "torch":
        contents = [bytes([1]) + b"\x80\x02}q\x00.", bytes(1) + torch_pickle()]
    elif target == "keys":
        contents = [bytes(range(64))]
    for number, content in enumerate(contents):
        (folder / str(number)).write_bytes(content)
    return folder


def torch_pickle() -> bytes:
    """What torch itself writes of one tensor."""
    import torch

    stream = io.BytesIO()
    torch.save({"stem.0.weight": torch.zeros(4)}, stream)
    with zipfile.ZipFile(stream) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("data.pkl"))
        return archive.read(name)


def main(target: str, seconds: int) -> None:
    """Fuzzes, and ends with the status of libFuzzer."""

    def one(content: bytes) -> None:
        with contextlib.suppress(ValueError, OSError):
            TARGETS[target](content or b"\0")

    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={seconds}",
            "-timeout=10",
            "-rss_limit_mb=4096",
            "-print_final_stats=1",
            str(seeds(target)),
        ],
        one,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    asked = parser.parse_args()
    main(asked.target, asked.seconds)
