"""What the paper's tables cost with the full data: an estimate, from counts and rates.

    python docs/make_costs.py

Nothing is run. Operations of a pass are `make_scaling.backbone`'s, checked there
against XLA's count; a step of training counts as three passes (forward, and twice that
back). Rates are those that ConvNeXt-Base reached on one H200 (docs/performance.md) and
a float32 product on two CPU cores. Decoding is counted by itself, in hours of one core
(docs/scaling.md; a background recording is another clip). The README shows what this
prints.
"""

from __future__ import annotations

# ruff: noqa: T201
import make_scaling

TEACH = 3  # passes that a step of training counts as
FP32 = make_scaling.FP32 * make_scaling.FP32_SHARE
BF16 = make_scaling.BF16 * make_scaling.BF16_SHARE
CORES = 315e9
# Operations a second of training, and of all else, which is exact in any case.
RATES = {
    "one H100 or H200, float32": (FP32, FP32),
    "training in bfloat16": (BF16, FP32),
    "two CPU cores with AVX-512, float32": (CORES, CORES),
}
DRAWS, SCHEMES, VOCODERS = 10, 4, 7
DECODE_S = 0.010  # of a core, five seconds of Ogg; a WaveFake clip takes less

# --- WaveFake: method.md section 10, --recipe published.
SENTENCES, HELD, EPOCHS = 13_100, 1_000, 10
SPEECH = make_scaling.backbone(
    make_scaling.DEPTHS, make_scaling.DIMS, *make_scaling.SPECTROGRAM, 2
)  # a clip


def wavefake():
    """Training clips; passes of Tables 1 and 2, in training and else; clips decoded."""
    rows = 2 * (SENTENCES - 2 * HELD)  # real and fake
    convnext = EPOCHS * TEACH * rows
    prototypes = EPOCHS * rows  # the backbone is frozen: forward alone
    tested = HELD * (1 + VOCODERS)
    validated = 2 * EPOCHS * 2 * HELD
    table1 = (
        VOCODERS * (convnext + prototypes),
        VOCODERS * (validated + rows + tested),
    )
    masked = SCHEMES * (2 + DRAWS) * tested
    table2 = convnext, EPOCHS * 2 * HELD + rows + masked
    decoded = (
        VOCODERS * (2 * EPOCHS * (rows + 2 * HELD) + rows + tested),
        EPOCHS * (rows + 2 * HELD) + SCHEMES * (rows + tested),
    )
    return rows, table1, table2, decoded


# --- BirdSet: recordings and classes of audioprotopnet_birdset.md sections 2.5 and 5.1.
BIRD = make_scaling.backbone(
    make_scaling.DEPTHS, make_scaling.DIMS, *make_scaling.SPECTROGRAM, 9736
)
# Prototypes are compared forward; back, each with one place.
SIMILARITY = 2 * (16 * 38) * (9736 * 5) * 1026
XCL, XCM, CLASSES_XCM, LIMIT = 528_434, 89_798, 411, 500
EVENTS = 38_170 / 5_460  # a recording, of HSN, whose count is known
TESTS, SNE, POW = 322_316, 23_756, 4_560


def rows_of(recordings, classes):
    """Training rows, fewest and most.

    One event of each recording is always kept. Above the limit a class keeps at most
    one event a recording and the limit besides; no set has more than all its events.
    """
    return recordings, round(min(EVENTS * recordings, recordings + LIMIT * classes))


def birdset():
    """Rows, operations of Tables 3 and 4 as above, clips decoded; fewest and most.

    Table 4 has the network of Table 3. Every training clip has its background.
    """
    found = []
    for xcl, xcm in zip(
        rows_of(XCL, make_scaling.CLASSES), rows_of(XCM, CLASSES_XCM), strict=True
    ):
        training = 10 * xcl * (TEACH * BIRD + BIRD + SIMILARITY)
        validated = 10 * POW * (2 * BIRD + SIMILARITY)
        table3 = training, validated + (xcm + TESTS) * BIRD
        table4 = 0, (xcm + SNE + SCHEMES * (2 + DRAWS) * SNE) * BIRD
        decoded = (
            20 * (2 * xcl + POW) + xcm + TESTS,
            SCHEMES * (xcm + SNE),
        )
        found.append((xcl, xcm, table3, table4, decoded))
    return found


def in_words(seconds):
    """Minutes, hours or days."""
    for size, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return "under 2 min"


def main():
    """Prints the counts, and a table of times."""
    rows, *passes, decoded = wavefake()
    print(f"WaveFake: {rows:,} training clips a vocoder, {SPEECH / 1e9:.1f} GFLOP")
    for table, (training, other) in enumerate(passes, start=1):
        print(f"  Table {table}: {training:,} passes in training, {other:,} else")
    low, high = birdset()
    print(
        f"BirdSet: XCL {low[0]:,} to {high[0]:,} rows, XCM {low[1]:,} to {high[1]:,}; "
        f"{BIRD / 1e9:.1f} GFLOP a pass, {SIMILARITY / 1e9:.1f} for similarities"
    )
    speech = [[(SPEECH * a, SPEECH * b)] for a, b in passes]
    work = {
        "Table 1": speech[0],
        "Table 2": speech[1],
        "Table 3": (low[2], high[2]),
        "Table 4, after Table 3": (low[3], high[3]),
    }
    clips = [[decoded[0]], [decoded[1]]]
    clips += [[end[4][i] for end in (low, high)] for i in (0, 1)]
    print(f"\n| estimated | {' | '.join(RATES)} | decoding, hours of one core |")
    print("| --- " * (2 + len(RATES)) + "|")
    for (name, ends), count in zip(work.items(), clips, strict=True):
        cells = []
        for fast, exact in RATES.values():
            times = [in_words(train / fast + other / exact) for train, other in ends]
            cells.append(" to ".join(dict.fromkeys(times)))
        hours = [f"{n * DECODE_S / 3600:.0f}" for n in count]
        cells.append(" to ".join(dict.fromkeys(hours)))
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
