"""Prompts longer than the model's text encoder takes: said once for each, and refused where a target's noun is lost."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from cluster.job.config import JobConfig
from cluster.job.strategy import ENHANCEMENT
from cluster.job.tasks import enhanced
from cluster.prompts.row import PromptRow
from numina.errors import PromptError
from pipelines.base import ModelFacts
from pipelines.models.text_limit import TextLimit, told

SHOWN = 20  # prompts, each with what of it is cut; the others are counted

log = logging.getLogger(__name__)


class LongPrompts:
    """A job's look at its rows: `problem` for each, `finish` after the last."""

    def __init__(self, job: JobConfig, model: ModelFacts, rules: str, *, warn: bool = True) -> None:
        self._limit = TextLimit(model)
        self._rules = rules
        self._warn = warn
        self._bases = {base: method is not None for base, method in job.methods.items()}
        self._negative = job.generation.negative_prompt if job.generation.guidance_scale > 1 else None
        self._seen = set[int]()  # hashes of the texts that are cut

    def problem(self, row: PromptRow) -> str | None:
        """What is wrong with a row: a noun that NUMINA is to count stands behind the cut. Warns of other cuts."""
        for prompt, corrects in self._prompts(row):
            if corrects:
                try:
                    self._limit.check_nouns(prompt, row.targets)
                except PromptError as error:
                    return str(error)
            self._tell("prompt", prompt)
        if self._negative is not None:
            self._tell("negative prompt", self._negative if row.negative_prompt is None else row.negative_prompt)
        return None

    def finish(self) -> None:
        """Says how many more were cut than were shown."""
        if self._warn and len(self._seen) > SHOWN:
            log.warning("%d more prompts are longer than the text encoder takes", len(self._seen) - SHOWN)

    def _prompts(self, row: PromptRow) -> Iterator[tuple[str, bool]]:
        """What the job's generators are given, and whether one of them corrects counts."""
        for rewritten in {ENHANCEMENT in base for base in self._bases}:
            prompt = enhanced(row, self._rules).prompt if rewritten else row.prompt
            yield prompt, any(corrects for base, corrects in self._bases.items() if (ENHANCEMENT in base) is rewritten)

    def _tell(self, what: str, text: str) -> None:
        cut = self._limit.cut(text) if self._warn else ""
        if not cut or hash(text) in self._seen:
            return
        self._seen.add(hash(text))
        if len(self._seen) <= SHOWN:
            log.warning("%s", told(what, text, cut, self._limit.tokens))
