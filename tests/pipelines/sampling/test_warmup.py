"""After a warm-up, nothing is compiled: not for another prompt, step, plan or the capture between."""

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from numina.config import GuideConfig, IdentifyConfig, MethodConfig
from numina.prompts.tokens import TokenSpans
from pipelines.base import Text
from pipelines.models.wan import WanModel
from pipelines.parallel.shard import ALONE
from pipelines.sampling import denoise
from pipelines.sampling.warmup import compile_blocks, warm_up
from tests.pipelines.conftest import GENERATION
from tests.pipelines.sampling.test_denoise import some_plan

COPYING = MethodConfig(identify=IdentifyConfig(source="clusters"), guide=GuideConfig(overwrite="head"))
CLOSED = MethodConfig(preset="closed", guide=GuideConfig(overwrite="none", elsewhere=5.0, keep=1.0))


@pytest.mark.usefixtures("fresh_compiler")
def test_the_warm_up_compiles_all_that_clips_need(
    tiny_checkpoint, texts: list[Text], spans: list[tuple[TokenSpans, ...]]
) -> None:
    """Two kinds of guidance, two prompts: the same clips as uncompiled, and no graph that the warm-up hasn't made."""
    model = WanModel.load(tiny_checkpoint)

    def clips() -> Iterator[torch.Tensor]:
        for method in (COPYING, CLOSED):
            for variant, (text, own) in enumerate(zip(texts[:2], spans[:2], strict=True)):
                state, _ = denoise.identify(model, ALONE, [text], [own], [1], GENERATION, method)
                yield denoise.finish(model, state, [text], GENERATION)
                yield denoise.guide(model, ALONE, [text], [some_plan(own, method.guide, variant)], [1], GENERATION)

    before = list(clips())
    counter = CompileCounterWithBackend("aot_eager")
    compile_blocks(model, backend=counter)
    heard: list[str] = []
    seconds = warm_up(
        model, ALONE, GENERATION, [None, COPYING, CLOSED], progress=lambda name, seconds: heard.append(name)
    )
    assert heard == list(seconds)
    assert {"plain", "paper identify", "paper guide", "closed identify", "closed guide"} == set(seconds)
    graphs = counter.frame_count
    assert 0 < graphs <= 3  # plain, and two kinds of guidance
    with torch.compiler.set_stance("fail_on_recompile"):
        after = list(clips())
    assert counter.frame_count == graphs
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
