"""From what identification saw to what guidance does: layout, check, refinement, plan. On CPUs, away from ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

from numina.config import MethodConfig
from numina.guidance import GuidancePlan, plan_guidance
from numina.layout import Capture, Layout, identify_layout
from numina.prompts.targets import Target
from numina.prompts.tokens import TokenSpans
from numina.refine import refine
from numina.regions import Refinement


@dataclass(frozen=True)
class Correction:
    """The identified layout; where its counts are wrong, the refined one and the plan that asks for it.

    Without a plan the clip goes on unguided: its counts are right, or ``left_alone`` says why it isn't corrected.
    """

    identified: Layout
    refinement: Refinement | None
    plan: GuidancePlan | None
    left_alone: str | None = None


def correct(
    capture: Capture, targets: Sequence[Target], spans: Sequence[TokenSpans], method: MethodConfig
) -> Correction:
    """Layout → counts right: nothing more; wrong: refine and plan (arXiv 2604.08546 §3.1–3.3).

    All with the method's lengths and areas on the clip's own grid.
    """
    height, width = capture.responses.shape[2:]
    own = method.scaled_to(height * width)
    return correct_layout(identify_layout(capture, own.identify), targets, spans, own, capture.deviation)


def correct_layout(
    identified: Layout,
    targets: Sequence[Target],
    spans: Sequence[TokenSpans],
    method: MethodConfig,
    deviation: float = 1.0,
) -> Correction:
    """The same from a layout on, with a method whose lengths are those of its grid.

    Where a noun whose count is wrong was read with less than ``guide.confidence``, nothing is changed: an edit at the
    wrong place does more harm than none.
    """
    if identified.matches(targets):
        return Correction(identified, None, None)
    if doubtful := _doubtful(identified, targets, method.guide.confidence):
        return Correction(identified, None, None, doubtful)
    refinement = refine(identified, [target.count for target in targets], method.refine)
    plan = plan_guidance(refinement, spans, method.guide, deviation)
    return Correction(identified, refinement, plan)


def _doubtful(identified: Layout, targets: Sequence[Target], least: float) -> str | None:
    """The nouns that would be edited but were read with too little confidence, in words; None if there are none."""
    if identified.confidence is None:
        return None
    read = zip(targets, identified.right(targets), identified.confidence, strict=True)
    low = [f"{target.noun} {confidence:.2f}" for target, right, confidence in read if not right and confidence < least]
    return f"read with a confidence below {least:g}: {', '.join(low)}" if low else None
