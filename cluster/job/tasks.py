"""One video of a job."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cluster.prompts.row import ENHANCED, PromptRow
from pipelines.rewriting.rules import enhance_prompt


@dataclass(frozen=True, kw_only=True)
class ClipTask:
    """One video to be made: a prompt, a sample of it, a strategy. Its key says whether it is there already."""

    key: str
    digest: str  # 32 hex digits of what was asked, before targets were read from the prompt
    row: PromptRow  # its prompt is the one that is generated with
    sample: int
    seed: int
    strategy: str  # what generates: `Strategy.base`
    attempt: int = 0
    strength: float = 1.0  # factor on the guidance
    chain: str = ""  # the first attempt's digest, the same for all of a sample
    verified: bool = False  # judged when it is there; the next attempt follows where it isn't accepted
    there: bool = False  # committed already: only to be judged

    @property
    def chain_digest(self) -> str:
        """Where the sample fails for good, this says so: of a verified task the chain's, else its own."""
        return self.chain if self.verified else self.digest


def enhanced(row: PromptRow, rules: str) -> PromptRow:
    """A row with its prompt rewritten: as its set says or, where it doesn't, by rule."""
    prompt = row.extra.get(ENHANCED) or enhance_prompt(row.prompt, row.targets, rules)
    return replace(row, prompt=prompt, original_prompt=row.prompt)
