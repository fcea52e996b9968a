"""`calibrated.yaml`: the chosen settings as a method file, with the evidence for them as comments."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import yaml

from cluster.calibration.calibrate import Result, Standing
from cluster.calibration.race import ERROR, PLAIN, WORTH
from cluster.calibration.reading import LEAST
from numina.metrics import Interval

NAME = "calibrated.yaml"


def verdict_text(result: Result) -> str:
    """What was found about correction at all, in a sentence or two."""
    gain = next(own.gain for own in result.standings if own.name == result.chosen)
    assert gain is not None
    found = f"{result.chosen} has {shown_gain(gain)} CountAcc more than plain clips"
    if result.verdict == "better":
        return f"better than plain: {found}"
    if result.verdict == "no better":
        return (
            f"no better than plain: {found}. Correction isn't worth its cost here; generate with strategies=[{PLAIN}]"
        )
    return f"not shown to be better than plain: {found}, and that may be chance; a larger budget tells"


def reading_warning(result: Result) -> str | None:
    """Where the layout is read too badly for any correction."""
    if not result.agreement or result.agreement[0].share >= LEAST:
        return None
    whole = result.agreement[0]
    return (
        f"the layout's reading agrees with {result.judge} on {whole.share:.0%} of {whole.nouns} nouns of plain clips:"
        f" below {LEAST:.0%}, correction can hardly work with this model or this judge"
    )


def shown_gain(gain: Interval) -> str:
    """A difference of CountAcc with its interval."""
    return f"{gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"


def standing_lines(standings: Sequence[Standing]) -> list[str]:
    """A table of all candidates as text."""
    width = max(len(own.name) for own in standings)
    lines = [f"{'candidate':<{width}}  CountAcc  95 %         prompts  s a clip  read  "]
    for own in standings:
        interval = f"{own.accuracy.low:.3f}–{own.accuracy.high:.3f}" if own.prompts else "–"
        mean = f"{own.accuracy.mean:.3f}" if own.prompts else "–"
        cost = f"{own.cost:.1f}" if own.cost is not None else "–"
        read = f"{own.reading:.2f}" if own.reading is not None else "–"
        lines.append(
            f"{own.name:<{width}}  {mean:>8}  {interval:<11}  {own.prompts:>7}  {cost:>8}  {read:>4}  {own.state}"
        )
    return lines


def method_file(result: Result) -> str:
    """The file's text."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    comments = [
        f"Written by `numina calibrate` on {now}. Used by method={NAME}.",
        verdict_text(result),
        *([warning] if (warning := reading_warning(result)) else []),
        "",
        f"model: {result.model} ({result.revision})",
        f"judge: {result.judge}; prompts: {result.prompts}",
        f"cost: {result.clips} clips, {result.seconds:.0f} rank-seconds; the budget was {result.budget}",
        "",
        *standing_lines(result.standings),
        "",
        "95 %: valid at any number of looks. s a clip: rank-seconds. read: share of nouns whose identified count is the"
        " one that the judge detects in the plain clip.",
        f"worse than …: shown, at an error of {ERROR:.0%} for all candidates together. set aside: the budget wasn't"
        f" enough. No better: a gain below {WORTH}.",
        *(f"read, {own.of}: {own.share:.2f} of {own.nouns}" for own in result.agreement),
    ]
    values: dict[str, Any] = asdict(result.method) | {"preset": "calibrated"}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    return "".join(f"# {line}".rstrip() + "\n" for line in comments) + text
