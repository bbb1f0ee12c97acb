"""Malformed inputs of every kind, made from good ones by a fixed seed.

Each is a name, a way to make it in a folder, and the entry point that a user would
give it to. `tests/test_malformed.py` holds what must come of them; who adds a finding
adds it here.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE = 8000


@dataclasses.dataclass(frozen=True)
class Input:
    """One malformed input.

    Attributes:
      name: of the kind and the harm, unique.
      make: writes it into a folder and returns what to give to `use`.
      use: the entry point.
      may_pass: it may also be fine after all, as a flipped bit in a comment is; then
        what comes of it must be finite.
    """

    name: str
    make: Callable[[Path], Path]
    use: Callable[[Path], Any]
    may_pass: bool = False


def inputs() -> list[Input]:
    """All of them."""
    return [
        *sounds(),
        *places(),
        *folders(),
        *manifests(),
        *safetensors(),
        *torch_files(),
        *checkpoints(),
        *archives(),
    ]


# --- sounds


def use_sound(path: Path) -> Any:
    from apex_jax import audio

    return audio.load(path, 16_000)


def use_windows(path: Path) -> Any:
    from apex_jax import audio, look

    front_end = audio.FrontEnd(sample_rate=16_000, clip_s=1.0, n_mels=8)
    return look.offsets(front_end, path, 0.5)


def sound(ending: str) -> bytes:
    """A quarter of a second of a tone."""
    stream = io.BytesIO()
    time = np.arange(RATE // 4) / RATE
    tone = 0.3 * np.sin(2 * np.pi * 440 * time)
    subtype = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS"}[ending]
    soundfile.write(stream, tone, RATE, format=ending.upper(), subtype=subtype)
    return stream.getvalue()


def written(content: bytes, name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def sounds() -> Iterator[Input]:
    """Headers cut, chunks that lie, bits flipped, words instead of sound."""
    for ending in ("wav", "flac", "ogg"):
        whole = sound(ending)
        for length in (0, 1, 4, 8, 12, 20, 27, 35, 43, 44, 60, len(whole) // 2):
            yield Input(
                f"{ending} cut after {length} bytes",
                written(whole[:length], f"a.{ending}"),
                use_sound,
            )
        rng = np.random.default_rng(len(whole))
        for number in range(16):
            harmed = bytearray(whole)
            for place in rng.integers(0, min(120, len(whole)), 4):
                harmed[place] = rng.integers(256)
            yield Input(
                f"{ending} with a harmed header {number}",
                written(bytes(harmed), f"a.{ending}"),
                use_sound,
                may_pass=True,
            )
        yield Input(
            f"{ending} of zeros", written(bytes(4096), f"a.{ending}"), use_sound
        )
        yield Input(
            f"{ending} of words",
            written(b"no sound, only words\n" * 200, f"a.{ending}"),
            use_sound,
        )
        yield Input(
            f"{ending} with its head twice",
            written(whole[:60] + whole, f"a.{ending}"),
            use_sound,
            may_pass=True,
        )
    wave = sound("wav")
    fields = {  # place in the header, how it is written, what does not fit
        "size of the file": (4, "<I", (0, 1, 2**32 - 1)),
        "size of fmt": (16, "<I", (0, 1, 15, 2**31, 2**32 - 1)),
        "format": (20, "<H", (0, 2, 0x55, 0xFFFF)),
        "channels": (22, "<H", (0, 3, 1024, 65535)),
        "rate": (24, "<I", (0, 1, 2**31 - 1, 2**31, 2**32 - 1)),
        "bytes a second": (28, "<I", (0, 2**32 - 1)),
        "bytes a frame": (32, "<H", (0, 1, 65535)),
        "bits": (34, "<H", (0, 1, 7, 64, 65535)),
        "size of the data": (40, "<I", (0, 1, 2**31, 2**32 - 1)),
    }
    for field, (place, kind, values) in fields.items():
        for value in values:
            harmed = bytearray(wave)
            struct.pack_into(kind, harmed, place, value)
            yield Input(
                f"wav whose {field} is {value}",
                written(bytes(harmed), "a.wav"),
                use_sound,
                may_pass=True,
            )
    flac = bytearray(sound("flac"))
    # STREAMINFO: 36 bits of total samples, after rate, channels and bits.
    for total in (0, 1, 2**32 - 1, 2**36 - 1):
        harmed = bytearray(flac)
        harmed[21] = (harmed[21] & 0xF0) | (total >> 32)
        struct.pack_into(">I", harmed, 22, total & 0xFFFFFFFF)
        yield Input(
            f"flac that promises {total} samples",
            written(bytes(harmed), "a.flac"),
            use_sound,
            may_pass=True,
        )
        # A sample a second: without its end there would be windows for centuries.
        slow = bytearray(harmed)
        slow[18:20], slow[20] = bytes(2), 0x10 | (slow[20] & 0x0F)
        yield Input(
            f"flac that promises {total} seconds of windows",
            written(bytes(slow), "a.flac"),
            use_windows,
            may_pass=total < 2,
        )
    # Ten million samples of silence, truthfully, in a few kilobytes.
    stream = io.BytesIO()
    silence = np.zeros(10**7, np.int16)
    soundfile.write(stream, silence, RATE, format="FLAC", subtype="PCM_16")
    for rate in (1, 20, 2**20 - 1):
        harmed = bytearray(stream.getvalue())
        harmed[18:21] = (rate << 4 | (harmed[20] & 0x0F)).to_bytes(3, "big")
        yield Input(
            f"flac of silence at {rate} Hz",
            written(bytes(harmed), "a.flac"),
            use_sound,
            may_pass=rate > 1000,
        )
    for name, content in (
        ("NaN", np.full(100, np.nan)),
        ("infinity", np.full(100, np.inf)),
        ("1e30", np.full(100, 1e30)),
    ):
        stream = io.BytesIO()
        soundfile.write(stream, content, RATE, format="WAV", subtype="FLOAT")
        yield Input(f"wav of {name}", written(stream.getvalue(), "a.wav"), use_sound)
    yield Input("wav named mp3", written(wave, "a.mp3"), use_sound, may_pass=True)
    yield Input(
        "a picture named wav", written(b"\x89PNG\r\n\x1a\n", "a.wav"), use_sound
    )


def places() -> Iterator[Input]:
    """What is no plain file."""

    def made(name: str, make: Callable[[Path], Any]) -> Input:
        def in_folder(folder: Path) -> Path:
            make(folder / "a.wav")
            return folder / "a.wav"

        return Input(name, in_folder, use_sound)

    yield made("nothing there", lambda path: None)
    yield made("a folder named wav", lambda path: path.mkdir())
    yield made("a link to itself", lambda path: path.symlink_to(path))
    yield made("a link to nothing", lambda path: path.symlink_to(path.parent / "b"))
    yield made("a pipe nobody writes to", os.mkfifo)
    yield made("an endless device", lambda path: path.symlink_to("/dev/zero"))
    yield made("an empty device", lambda path: path.symlink_to("/dev/null"))


# --- folders of classes and manifests


def use_data(path: Path) -> Any:
    from apex_jax import data, dataset

    return dataset.read(path, skip_log=data.SkipLog(strict=True))


def folders() -> Iterator[Input]:
    def tree(**files: bytes | None) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            root = folder / "data"
            root.mkdir()
            for name, content in files.items():
                path = root / name.replace("__", "/")
                path.parent.mkdir(parents=True, exist_ok=True)
                if content is None:
                    path.mkdir()
                else:
                    path.write_bytes(content)
            return root

        return make

    wave = sound("wav")
    yield Input("a folder with nothing in it", tree(), use_data)
    yield Input("sounds without classes", tree(a_wav=wave), use_data)
    yield Input("a class without sounds", tree(cat=None, dog__a=wave), use_data)
    yield Input("a class of words", tree(cat__notes=b"words"), use_data)

    def loop(folder: Path) -> Path:
        root = tree(**{"cat__a": wave})(folder)
        (root / "cat" / "a").rename(root / "cat" / "a.wav")
        (root / "cat" / "again").symlink_to(root)
        (root / "dog").symlink_to(root / "dog")
        return root

    yield Input("folders in a circle", loop, use_data, may_pass=True)


def manifests() -> Iterator[Input]:
    def lines(*text: str | bytes) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            (folder / "a.wav").write_bytes(sound("wav"))
            (folder / "b.wav").write_bytes(sound("wav"))
            content = b"\n".join(
                t if isinstance(t, bytes) else t.encode() for t in text
            )
            (folder / "m.csv").write_bytes(content)
            return folder / "m.csv"

        return make

    good = ("a.wav,cat", "b.wav,dog")
    # Columns that are not used are said; one class is refused when it is trained on.
    fine_ones = {
        "with an unknown column",
        "with one class",
        "with a label of a megabyte",
    }
    for name, text in {
        "empty": (),
        "of blank lines": ("", "", ""),
        "with a header alone": ("path,label",),
        "without a header": good,
        "without paths": ("label,split", "cat,train"),
        "without labels": ("path,split", "a.wav,train"),
        "with an unknown column": ("path,label,colour", "a.wav,cat,red"),
        "with a column twice": ("path,label,label", "a.wav,cat,dog"),
        "with label and labels": ("path,label,labels", "a.wav,cat,dog"),
        "with too few cells": ("path,label,split", "a.wav,cat"),
        "with too many cells": ("path,label", "a.wav,cat,dog"),
        "with a path twice": ("path,label", "a.wav,cat", "a.wav,dog"),
        "with a path twice, once dotted": ("path,label", "a.wav,cat", "./a.wav,dog"),
        "with an unknown split": ("path,label,split", "a.wav,cat,holdout"),
        "with some splits": ("path,label,split", "a.wav,cat,train", "b.wav,dog,"),
        "with an empty path": ("path,label", ",cat", "b.wav,dog"),
        "with an empty label": ("path,label", "a.wav,", "b.wav,dog"),
        "with a missing file": ("path,label", "a.wav,cat", "c.wav,dog"),
        "with a folder as path": ("path,label", ".,cat", "b.wav,dog"),
        "with an offset in words": ("path,label,offset_s", "a.wav,cat,soon"),
        "with an offset below zero": ("path,label,offset_s", "a.wav,cat,-1"),
        "with an offset of NaN": ("path,label,offset_s", "a.wav,cat,nan"),
        "with an endless offset": ("path,label,offset_s", "a.wav,cat,inf"),
        "with an open quote": ("path,label", 'a.wav,"cat', "b.wav,dog"),
        "with NUL": ("path,label", b"a\0.wav,cat"),
        "in UTF-16": ("path,label\na.wav,cat".encode("utf-16"),),
        "in Latin-1": ("path,label", "a.wav,Käuzchen".encode("latin-1")),
        "that is a sound": (sound("wav"),),
        "with tabs": ("path\tlabel", "a.wav\tcat"),
        "with semicolons": ("path;label", "a.wav;cat"),
        "with one class": ("path,label", "a.wav,cat", "b.wav,cat"),
        "with a label of a megabyte": ("path,label", "a.wav," + "x" * 2**20),
        "with a path of a megabyte": ("path,label", "x" * 2**20 + ",cat"),
        "of ten thousand columns": (",".join(f"c{i}" for i in range(10_000)),),
    }.items():
        fine = name in fine_ones
        yield Input(f"a manifest {name}", lines(*text), use_data, may_pass=fine)
    yield Input("no manifest at all", lambda folder: folder / "m.csv", use_data)
    yield Input(
        "a manifest that is a folder",
        lambda folder: ((folder / "m.csv").mkdir(), folder / "m.csv")[1],
        use_data,
    )


# --- weights


def use_weights(path: Path) -> Any:
    from apex_jax import convert

    return convert.load(path)


def safetensors() -> Iterator[Input]:
    def packed(header: Any, data: bytes = b"", length: int | None = None) -> Any:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        size = len(text) if length is None else length
        return written(struct.pack("<Q", size) + text + data, "a.safetensors")

    def tensor(shape: Any, offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
        return {
            "stem.0.weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        }

    four = bytes(4)
    for name, make in {
        "empty": written(b"", "a.safetensors"),
        "of seven bytes": written(bytes(7), "a.safetensors"),
        "with a header beyond its end": packed({}, length=2**20),
        "with an endless header": packed({}, length=2**63),
        "with a header of nothing": packed(b""),
        "with a header of words": packed(b"words and words "),
        "with a list as header": packed([1, 2]),
        "with a header of binary": packed(bytes(range(256))),
        "without tensors": packed({}),
        "with a shape too large": packed(tensor([2**40, 2**40], [0, 4]), four),
        "with a shape below zero": packed(tensor([-1], [0, 4]), four),
        "with a shape in words": packed(tensor("many", [0, 4]), four),
        "with data beyond its end": packed(tensor([10**9], [0, 4 * 10**9]), four),
        "with offsets turned round": packed(tensor([1], [4, 0]), four),
        "with offsets below zero": packed(tensor([1], [-4, 0]), four),
        "with a size that does not fit": packed(tensor([2], [0, 4]), four),
        "with an unknown dtype": packed(tensor([1], [0, 4], "F7"), four),
        "with whole numbers": packed(tensor([1], [0, 4], "I32"), four),
        "with one tensor of a network": packed(tensor([1], [0, 4]), four),
        "with no network's names": packed(
            {"a.b.c": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, four
        ),
        # Found by tests/fuzz_program.py: a table of a billion blocks was made.
        "with a block of a high number": packed(
            {
                f"stages.0.blocks.{10**9}.norm.weight": {
                    "dtype": "F32",
                    "shape": [1],
                    "data_offsets": [0, 4],
                }
            },
            four,
        ),
        "with a deep header": packed(b"[" * 100_000 + b"]" * 100_000),
    }.items():
        yield Input(f"safetensors {name}", make, use_weights)
    yield Input("weights with no known ending", written(four, "a.xyz"), use_weights)
    yield Input(
        "no weights at all", lambda folder: folder / "a.safetensors", use_weights
    )
    yield Input("a folder without weights", lambda folder: folder, use_weights)


def torch_files() -> Iterator[Input]:
    """What torch's own format can hide; made without torch."""

    def zipped(**members: bytes) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            with zipfile.ZipFile(folder / "a.pt", "w") as archive:
                for name, content in members.items():
                    archive.writestr(f"archive/{name.replace('__', '.')}", content)
            return folder / "a.pt"

        return make

    class Evil:
        def __reduce__(self):
            return os.mkdir, ("it-was-run",)

    version = {"version": b"3\n", "byteorder": b"little"}
    for name, make in {
        "empty": written(b"", "a.pt"),
        "of words": written(b"words and words", "a.pt"),
        "of zeros": written(bytes(4096), "a.pt"),
        "that is a plain pickle of a list": written(pickle.dumps([1, 2]), "a.pt"),
        "that is a plain pickle of code": written(pickle.dumps(Evil()), "a.pt"),
        "that is a sound": written(sound("wav"), "a.pt"),
        "with an empty archive": zipped(),
        "without a pickle": zipped(**version),
        "with an empty pickle": zipped(data__pkl=b"", **version),
        "with a pickle of code": zipped(data__pkl=pickle.dumps(Evil()), **version),
        "with a cut pickle": zipped(data__pkl=pickle.dumps({"a": 1})[:-3], **version),
        "with a pickle of a number": zipped(data__pkl=pickle.dumps(3), **version),
        "with no tensors": zipped(data__pkl=pickle.dumps({}), **version),
        "with words for tensors": zipped(data__pkl=pickle.dumps({"a": "b"}), **version),
        "with a deep pickle": zipped(
            data__pkl=b"\x80\x02" + b"(" * 10**5 + b"l" * 10**5 + b".", **version
        ),
    }.items():
        yield Input(f"a torch file {name}", make, use_weights)


def checkpoints() -> Iterator[Input]:
    from apex_jax import checkpoint

    def use(path: Path) -> Any:
        return checkpoint.load_classifier(path)

    def changed(**metadata: Any) -> Callable[[Path], Path]:
        """A classifier whose description does not fit what it holds."""

        def make(folder: Path) -> Path:
            from apex_jax.models import convnext

            config = convnext.ConvNeXtConfig(depths=(1,), dims=(4,), num_classes=2)
            arrays = {
                name: np.zeros(array.shape, np.float32)
                for name, array in convnext.named_arrays(
                    convnext.abstract(config)
                ).items()
            }
            described = {
                "config": dataclasses.asdict(config),
                "class_names": ["a", "b"],
                "activation": "softmax",
                "front_end": None,
                "extra": {},
            }
            for name, value in metadata.items():
                if name == "without":
                    del described[value]
                elif name == "less":
                    del arrays[value]
                elif name == "more":
                    arrays[value] = np.zeros(3, np.float32)
                elif name == "shape":
                    arrays["head.kernel"] = np.zeros(value, np.float32)
                elif name in described["config"]:
                    described["config"][name] = value
                else:
                    described[name] = value
            return checkpoint.save(folder / "it", arrays, described, kind="classifier")

        return make

    for name, metadata in {
        "without a config": {"without": "config"},
        "without class names": {"without": "class_names"},
        "that lacks an array": {"less": "head.kernel"},
        "with an array too many": {"more": "tail.kernel"},
        "with an array of another shape": {"shape": (4, 3)},
        "of huge depths": {"depths": [10**9]},
        "of huge widths": {"dims": [10**9]},
        "of no depth": {"depths": []},
        "of depths below zero": {"depths": [-1]},
        "of depths in words": {"depths": "deep"},
        "with an unknown activation": {"activation": "loud"},
        "with too few class names": {"class_names": ["a"]},
    }.items():
        yield Input(f"a checkpoint {name}", changed(**metadata), use)

    def torn(harm: Callable[[Path], Any]) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            path = changed()(folder)
            harm(path)
            return path

        return make

    def each(path: Path, pattern: str, harm: Callable[[Path], Any]) -> None:
        for file in [f for f in path.rglob(pattern) if f.is_file()]:
            harm(file)

    for name, harm in {
        "all files empty": lambda p: each(p, "*", lambda f: f.write_bytes(b"")),
        "all files cut": lambda p: each(
            p, "*", lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2])
        ),
        "all files words": lambda p: each(p, "*", lambda f: f.write_bytes(b"words")),
        "no files": lambda p: each(p, "*", Path.unlink),
        "no description": lambda p: each(p, "*METADATA*", Path.unlink),
    }.items():
        yield Input(f"a checkpoint with {name}", torn(harm), use)
    yield Input("a checkpoint that is a sound", written(sound("wav"), "it"), use)
    yield Input("no checkpoint", lambda folder: folder / "it", use)


def archives() -> Iterator[Input]:
    from apex_jax import archive

    good: dict[str, Any] = {"format": "x", "version": 1}
    for name, text in {
        "empty": b"",
        "of words": b"words",
        "with a list": b"[]",
        "with nothing in it": b"{}",
        "of another version": json.dumps({**good, "version": 10**6}).encode(),
        "deeply nested": b"[" * 100_000,
        "with NaN": b'{"version": NaN}',
        "not in UTF-8": b"\xff\xfe{}",
    }.items():

        def make(folder: Path, text: bytes = text) -> Path:
            (folder / archive.JSON).write_bytes(text)
            (folder / archive.NPZ).write_bytes(b"PK\x03\x04 no zip")
            return folder

        yield Input(f"an explanation {name}", make, archive.load)
    yield Input("no explanation", lambda folder: folder, archive.load)
