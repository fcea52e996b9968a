"""What could not be made or judged, by reason."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.report.clips import MISSING, ShownClip, asked_prompt

_VARYING = re.compile(r"""'[^']*'|"[^"]*"|(?<!\w)/\S+|\b[0-9a-f]{8,}\b|\d+(\.\d+)?""")  # in messages of one reason
_LONGEST = 160  # characters of a reason


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One clip that isn't there, or can't be read."""

    key: str
    prompt: str | None
    stage: str
    error: str
    tries: int | None  # None where the record has none


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Failures that are alike."""

    stage: str
    text: str  # the error without what differs between the failures
    failures: Sequence[Failure]


def reasons_of(records: Mapping[str, Sequence[Mapping[str, Any]]], clips: Iterable[ShownClip]) -> list[Reason]:
    """Recorded failures by key, and those of these clips whose video is missing or unreadable; the commonest reason
    first."""
    failures = [_recorded(key, tries) for key, tries in records.items() if tries]
    failures += [_lost(clip) for clip in clips if clip.problem is not None]
    alike: dict[tuple[str, str], list[Failure]] = {}
    for failure in failures:
        alike.setdefault((failure.stage, reason_in(failure.error)), []).append(failure)
    reasons = [Reason(stage=stage, text=text, failures=members) for (stage, text), members in alike.items()]
    return sorted(reasons, key=lambda reason: (-len(reason.failures), reason.stage, reason.text))


def reason_in(error: str) -> str:
    """An error's first line without names, paths and numbers."""
    line = _VARYING.sub("…", error.strip().partition("\n")[0])
    line = "".join(character if character.isprintable() else " " for character in line)
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def _recorded(key: str, tries: Sequence[Mapping[str, Any]]) -> Failure:
    last = tries[-1]
    return Failure(
        key=key,
        prompt=last.get("prompt"),
        stage=str(last.get("stage") or "unknown stage"),
        error=str(last.get("error") or "no reason recorded"),
        tries=last.get("tries"),
    )


def _lost(clip: ShownClip) -> Failure:
    problem = clip.problem or MISSING
    error = f"{clip.row['file_name']} isn't there" if problem == MISSING else problem
    return Failure(key=clip.row["key"], prompt=asked_prompt(clip.row), stage="video", error=error, tries=None)
