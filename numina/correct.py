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
    """The identified layout; where its counts are wrong, the refined one and the plan that asks for it."""

    identified: Layout
    refinement: Refinement | None
    plan: GuidancePlan | None


def correct(
    capture: Capture, targets: Sequence[Target], spans: Sequence[TokenSpans], method: MethodConfig
) -> Correction:
    """Layout → counts right: nothing more; wrong: refine and plan (arXiv 2604.08546 §3.1–3.3).

    All with the method's lengths and areas on the clip's own grid.
    """
    height, width = capture.responses.shape[2:]
    method = method.scaled_to(height * width)
    identified = identify_layout(capture, method.identify)
    if identified.matches(targets):
        return Correction(identified, None, None)
    refinement = refine(identified, [target.count for target in targets], method.refine)
    plan = plan_guidance(refinement, spans, method.guide, capture.deviation)
    return Correction(identified, refinement, plan)
