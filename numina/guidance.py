"""What is added to cross-attention scores so that the refined layout grows (arXiv 2604.08546 §3.4).

A plan is small: a region per row and noun, the nouns' text tokens, and strengths. Every rank builds from it what its
own rows and its own kernel need. All rules apply before the softmax, to the conditional pass only:

    region of the row, for a noun        score of the noun's tokens
    removed                              − s·δ
    added, nothing to copy from          + k·δ
    added copy                           the reference's mean score m, weighted by δ, or its own where that is higher
                                         (``overwrite`` global: never its own; none: + k·δ)
    kept, reference                      + κ·δ
    none                                 − β·δ
    any, where another noun is added     − o·δ, on top of the above

Where nouns share a token their additions add up; an overwritten score takes none, and of two overwrites the later
noun's holds. Every addition (no overwrite) is multiplied by ``plan.scale``.

The text tokens are put in another order, the nouns' last: attention doesn't care, and all that changes is then one
slice of *tail* columns, of a width that doesn't depend on the prompt.

Legend: B clips of a batch, n rows of this shard (of F·H·W latent tokens in (frame, row, column) order), T text tokens,
E tail columns, R rows to compute again, N heads, D head size, δ = δ(t). Methods that torch.compile traces have plain
``Tensor`` in their signatures: it can't trace jaxtyping's checks, which the tests switch on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int8

from numina.config import GuideConfig
from numina.prompts.tokens import TokenSpans
from numina.regions import Refinement


@dataclass(frozen=True)
class GuidancePlan:
    """All a rank needs to guide: what travels to the gang. A few kB once compressed, whatever the model's size."""

    regions: Int8[np.ndarray, "nouns frames H W"]  # of Region
    tokens: tuple[tuple[int, ...], ...]  # per noun, the text tokens whose columns are biased
    config: GuideConfig
    scale: float = 1.0  # of all additions: the unit of the config's strengths, in scores

    @property
    def rows(self) -> int:
        """Rows of the whole clip, F·H·W."""
        return int(np.prod(self.regions.shape[1:]))


def plan_guidance(
    refinement: Refinement, spans: Sequence[TokenSpans], config: GuideConfig, deviation: float = 1.0
) -> GuidancePlan:
    """The plan for a refined layout; ``spans`` are the nouns' text tokens, in the layout's order, ``deviation`` is the
    standard deviation of their scores, in which the strengths may be given (``config.unit``)."""
    tokens = tuple(getattr(span, config.tokens) for span in spans)
    if len(tokens) != len(refinement.regions):
        raise ValueError(f"{len(tokens)} token spans for {len(refinement.regions)} nouns: give one for each")
    scale = deviation if config.unit == "deviation" else 1.0
    return GuidancePlan(regions=refinement.regions, tokens=tokens, config=config, scale=scale)
