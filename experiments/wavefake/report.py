"""What a WaveFake run says on the terminal, from its `results.json`."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from apex_jax import progress, rounding

NEAR_CHANCE = 30.0  # EER in percent; 50 is chance
FEW_REGIONS = 1.5


def table(results: dict[str, Any], output: Path) -> str:
    """The tables, for a terminal of 80 columns."""
    eer, masked = results["eer"], results["masking"]
    random = masked["random"]
    lines = [
        "",
        f"EER in %, trained on {results['corpus']['train_on']}, scheme "
        f"{results['scheme']}",
        f"{'':24}{'':>6}{'nothing hidden':>18}{'region hidden':>28}",
        f"{'vocoder':24}{'clips':>6}{'classifier':>12}{'APEX':>6}"
        f"{'random':>16}{'APEX':>12}",
    ]
    for name, value in eer["classifier"].items():
        clips = results["corpus"]["vocoders"].get(name, "")
        if value is None:
            lines.append(f"{name:24}{clips:>6}{'no test clips':>18}")
            continue
        spread = f"{random['mean'][name]:.1f} ± {random['std'][name]:.1f}"
        lines.append(
            f"{name:24}{clips:>6}{value:12.1f}{eer['apex'][name]:6.1f}"
            f"{spread:>16}{masked['apex'][name]:12.1f}"
        )
    lines.append("")
    for label, text in (*_facts(results), *(("note", n) for n in notes(results))):
        lines += textwrap.wrap(f"{label:12}{text}", 80, subsequent_indent=12 * " ")
    if results["corpus"]["skipped_files"]:
        lines.append(
            f"skipped     {results['corpus']['skipped_files']} files, listed in "
            f"{output / 'skipped.csv'}"
        )
    lines.append(f"written to  {output}")
    return "\n".join(lines)


def _facts(results: dict[str, Any]) -> list[tuple[str, str]]:
    invariance, purity = results["invariance"], results["purity"]
    facts = [
        ("purity", f"{purity['before']:.3f} before, {purity['after']:.3f} after"),
        (
            "invariance",
            f"{invariance['changed_predictions']} of {invariance['num_clips']} "
            "predictions changed, logits within "
            f"{invariance['max_abs_logit_error']:.1e}, cond(U) "
            f"{invariance['condition_number']:.1f}",
        ),
        ("seconds", progress.in_words(results)),
    ]
    if results["rounding"] is not None:
        measured = rounding.Rounding(**results["rounding"])
        facts.insert(2, ("rounding", rounding.in_words(measured)))
    return facts


def notes(results: dict[str, Any]) -> list[str]:
    """What a reader of the numbers should know before trusting an explanation."""
    found = []
    trained = results["corpus"]["train_on"]
    eer = results["eer"]["classifier"].get(trained)
    if eer is not None and eer > NEAR_CHANCE:
        found.append(
            f"the classifier is near chance even on {trained} (EER {eer:.0f} %): there "
            "is little to explain"
        )
    masked = results["masking"]
    apex, random = masked["apex"]["aeer"], masked["random"]["mean"]["aeer"]
    if apex is not None and apex <= random:
        found.append(
            "hiding APEX's regions hurts no more than hiding random ones "
            f"(aEER {apex:.1f} against {random:.1f} %, p {masked['p_value']:.2f})"
        )
    regions = results["regions"]["per_channel"]
    if regions < FEW_REGIONS:
        found.append(
            f"a channel's prototypes lie in {regions:.1f} different regions on "
            "average: regions tell channels apart more than clips"
        )
    return found
