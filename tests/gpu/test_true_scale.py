"""Every model at its true shape, random weights, on one GPU: a guided clip end to end, its memory, and exactness.

python -m pytest tests/gpu/test_true_scale.py -v -s
"""

import gc
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from numina.bias import ShardGuidance
from numina.config import MethodConfig
from numina.correct import correct
from pipelines.attention.engines import attention_kernel, parallelize
from pipelines.attention.joint import GuidedJointAttention, project
from pipelines.parallel.config import ParallelConfig
from pipelines.parallel.shard import ALONE
from pipelines.sampling import denoise
from pipelines.sampling.warmup import compile_blocks
from pipelines.video.mp4 import decode_mp4, encode_mp4
from tests.benchmarks.guidance_cost import plan
from tests.benchmarks.models import ASKED, SPANS, method
from tests.benchmarks.shapes import SHAPES, build, random_texts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

GIB = 2**30
MOST = {"wan2.1-1.3b": 12, "wan2.1-14b": 40, "wan2.2-5b": 30, "cogvideox-5b": 30}  # GiB, the text encoder elsewhere
STEPS = 3
RADIUS = 2  # tokens, of what is added and removed
DEVICE = torch.device("cuda")


@pytest.fixture(autouse=True)
def fresh_gpu() -> Iterator[None]:
    """Nothing of a test is left for the next one to be measured with."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", list(SHAPES))
def test_a_guided_clip_from_noise_to_mp4(name: str) -> None:
    """Identified, laid out, refined, guided, decoded and encoded, within the model's memory; the guided clip is another
    one than the plain clip, and finite."""
    model = build(name, DEVICE)
    clip = replace(SHAPES[name].clip, steps=STEPS)
    texts, own = random_texts(model), method("closed")
    state, [capture] = denoise.identify(model, ALONE, texts, [SPANS], [0], clip, own)
    assert correct(capture, ASKED, SPANS, own).plan is not None, "random weights don't know these counts"
    grid = model.grid(clip)  # their layout leaves no room for edits: a drawn plan has some
    drawn = plan(own.guide, (grid.frames, grid.height, grid.width), RADIUS, 0)
    latents = denoise.guide(model, ALONE, texts, [drawn], [0], clip, path=state.path)
    plain = denoise.finish(model, state, texts, clip)
    assert latents.isfinite().all()
    assert not torch.equal(latents, plain)
    del plain, state
    decoded = model.decode(latents)
    assert decoded is not None
    assert decoded.finite.all()
    pixels = decoded.pixels
    assert pixels.shape == (1, clip.num_frames, clip.height, clip.width, 3)
    mp4 = encode_mp4(pixels[0, :9].numpy(), fps=clip.fps, crf=40)
    assert decode_mp4(mp4).shape == (9, clip.height, clip.width, 3)
    peak = torch.cuda.max_memory_allocated() / GIB
    print(f"{name}: {peak:.1f} GiB at the peak")
    assert peak <= MOST[name]


@pytest.mark.parametrize("preset", ["closed", "paper"])
def test_guided_joint_attention_is_exact(preset: str) -> None:
    """At CogVideoX's true shape in bfloat16, a block's guided attention is what float32 scores under the same rules
    give, as near as diffusers' own attention is to float32 without guidance."""
    model = build("cogvideox-5b", DEVICE, vae=False)
    grid, attn = model.grid(SHAPES["cogvideox-5b"].clip), model.blocks[0].attn1
    own = plan(replace(method(preset).guide, overwrite="none"), (grid.frames, grid.height, grid.width), 4, 0)
    generator = torch.Generator("cuda").manual_seed(0)
    video, text = (
        torch.randn(1, n, attn.to_q.in_features, generator=generator, device="cuda", dtype=torch.bfloat16)
        for n in (grid.tokens, model.text_tokens)
    )
    guidance = ShardGuidance.prepare(
        [own], slice(0, grid.tokens), model.text_tokens, "cuda", torch.bfloat16, tail_alone=True
    )
    guidance.set(1.75)
    whole = ShardGuidance.prepare([own], slice(0, grid.tokens), model.text_tokens, "cuda", torch.float32)
    whole.set(1.75)
    added_to = dense(whole, grid.tokens)
    changed = added_to[0].any(dim=1).nonzero()[:, 0]
    rows = changed[:: len(changed) // 512][:512]
    with torch.inference_mode():
        query, key, value = (x[0].float() for x in project(attn, text, video, None))
        bias = added_to[:, rows]
        after = model.text_tokens
        scores = query[:, after + rows] @ key.mT / query.shape[-1] ** 0.5
        found = {}
        for name, added in (("plain", 0.0), ("guided", bias)):
            ruled = scores.clone()
            ruled[:, :, :after] += added
            found[name] = attn.to_out[0]((ruled.softmax(dim=-1) @ value).transpose(0, 1).flatten(1).bfloat16()).float()
        plain = attn(video, text)[0][0, rows].float()
        guided = GuidedJointAttention(guidance, ALONE)(attn, video, text)[0][0, rows].float()
    error, own_error = ((x - y).abs().mean() for x, y in ((plain, found["plain"]), (guided, found["guided"])))
    moved = (guided - plain).abs().mean()
    print(f"{preset}: mean error {own_error:.2e} guided, {error:.2e} plain; moved by {moved:.2e}")
    assert own_error <= 2 * error
    assert moved > 2 * own_error


def dense(guidance: ShardGuidance, rows: int) -> torch.Tensor:
    """Of one clip's masks, what they add on all rows and text tokens in the text's own order: [1, rows, T]."""
    order = guidance.order[0]
    added = torch.zeros(rows, len(order), device=order.device)
    if guidance.bias is not None:
        added[:, order] = guidance.bias.kept[0, 0].float()
    else:
        assert guidance.rows is not None
        assert guidance.row_bias is not None
        found = torch.zeros_like(added)
        found[guidance.rows[0]] = guidance.row_bias.kept[0, 0].float()
        added[:, order] = found
    return added[None]


@pytest.mark.parametrize("name", ["wan2.1-1.3b", "cogvideox-5b"])
def test_compiled_guidance_is_as_exact_as_eager(name: str) -> None:
    """One guided prediction of compiled blocks is as near to float32's as the eager one's, and another plan at another
    δ needs no new graph."""
    model = build(name, DEVICE, vae=False)
    clip = replace(SHAPES[name].clip, height=256, width=448, num_frames=17, steps=1, guidance_scale=1.0)
    grid, texts = model.grid(clip), [replace(text, unconditional=None) for text in random_texts(model)]
    own: MethodConfig = method("closed")

    def guided(shift: int, strength: float) -> torch.Tensor:
        config = replace(own.guide, anchor=None, until=1.0, strength=strength)
        one = plan(config, (grid.frames, grid.height, grid.width), RADIUS, shift)
        return denoise.guide(model, ALONE, texts, [one], [0], clip)

    eager = guided(0, 1.5)
    compile_blocks(model)
    compiled = guided(0, 1.5)
    with torch.compiler.set_stance("fail_on_recompile"):
        guided(1, 0.7)
    model.transformer.float()
    texts = [replace(text, conditional=text.conditional.float()) for text in texts]
    with torch.compiler.set_stance("force_eager"):
        exact = guided(0, 1.5)
    errors = [((found - exact).norm() / exact.norm()).item() for found in (eager, compiled)]
    print(f"{name}: off float32 by {100 * errors[0]:.2f} % eager, {100 * errors[1]:.2f} % compiled")
    assert errors[1] <= 1.5 * errors[0]


def test_float8_blocks_predict_nearly_the_same() -> None:
    """torchao's float8 layers run in plain and guided passes, and attention in 8 bits where it can; one prediction
    is within some per cent of bfloat16's."""
    pytest.importorskip("torchao", reason="needs torchao: pip install numina-video[gpu]")
    from pipelines.checkpoints.quantize import quantize

    model = build("wan2.1-1.3b", DEVICE, vae=False)
    clip, texts = replace(SHAPES["wan2.1-1.3b"].clip, height=256, width=448, num_frames=17, steps=STEPS), None
    texts, grid = random_texts(model), model.grid(clip)
    latents = model.noise([0], clip)
    timestep = torch.full((1,), 500.0, device="cuda")
    with torch.inference_mode():
        exact = model.predict(latents, timestep, texts[0].conditional).float()
        quantize(model.blocks)
        rounded = [model.predict(latents, timestep, texts[0].conditional).float()]
        parallelize(model, ParallelConfig(), float8=True)
        rounded.append(model.predict(latents, timestep, texts[0].conditional).float())
    apart = [((exact - own).norm() / exact.norm()).item() for own in rounded]
    print(f"float8: {100 * apart[0]:.2f} % apart, with {attention_kernel(model)} {100 * apart[1]:.2f} %")
    assert 0 < apart[0] < 0.1
    assert 0 < apart[1] < 0.15
    one = plan(method("paper").guide, (grid.frames, grid.height, grid.width), 2, 0)
    assert denoise.guide(model, ALONE, texts, [one], [0], clip).isfinite().all()


@pytest.mark.parametrize("name", ["wan2.1-1.3b", "wan2.2-5b"])
def test_flash_attention_3_is_as_exact_as_the_kernel_it_replaces(name: str) -> None:
    """A guided clip by FlashAttention-3, anchored and compiled in one graph, is as near to float32 as cuDNN's."""
    pytest.importorskip("fa3_fwd_interface", reason="needs fa3-fwd on a Hopper GPU")
    clip = replace(SHAPES[name].clip, steps=STEPS, num_frames=9)
    clips: dict[str, torch.Tensor] = {}
    for kernel, dtype in (("native", torch.float32), ("native", torch.bfloat16), ("flash_3", torch.bfloat16)):
        torch.manual_seed(0)
        model = build(name, DEVICE)
        model.transformer.to(dtype)
        parallelize(model, ParallelConfig(attention=kernel))
        assert attention_kernel(model) == kernel
        if kernel == "flash_3":
            model.transformer.compile_repeated_blocks(fullgraph=True)
        texts, own = random_texts(model), method("closed")
        state, _ = denoise.identify(model, ALONE, texts, [SPANS], [0], clip, own)
        grid = model.grid(clip)
        drawn = plan(own.guide, (grid.frames, grid.height, grid.width), RADIUS, 0)
        guided = denoise.guide(model, ALONE, texts, [drawn], [0], clip, path=state.path)
        clips[f"{kernel} {dtype}"] = guided.float()
        del model
        torch.cuda.empty_cache()
    exact, native, flash = clips.values()
    errors = [((own - exact).square().mean().sqrt() / exact.std()).item() for own in (native, flash)]
    print(f"{name}: error against float32, cuDNN {errors[0]:.5f}, FlashAttention-3 {errors[1]:.5f}")
    assert errors[1] < 1.1 * errors[0]
