"""Judges: how many of each asked noun a finished video shows, frame by frame, and how well it fits its prompt."""

from pipelines.judges.base import Case, Judge, JudgeConfig, Judgement
from pipelines.judges.loading import inspect_judge, load_judge, nouns_check

__all__ = ["Case", "Judge", "JudgeConfig", "Judgement", "inspect_judge", "load_judge", "nouns_check"]
