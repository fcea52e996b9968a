"""Plans: sizes from configs, times from measured tables; what is estimated says so, and nothing is invented."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.job import load_job
from cluster.plan import JobPlan
from cluster.planner import Gpu, Objective, Planner, Setup, estimate, load_gpu, prepare_for_gpus, reasons, wishes_of
from cluster.planner.measured import EncodeBlock, ForwardBlock
from cluster.promptset import PromptRow
from numina.errors import ConfigError
from numina.prompts import Target
from pipelines.base import ModelFacts
from pipelines.checkpoint import inspect
from pipelines.support import Wish, check_support

H100 = load_gpu("h100")
SMALL = Gpu(name="a 24 GiB GPU", memory_gib=24)
ROW = PromptRow(index=0, id=None, prompt="two cats", targets=(Target("cats", 2),), negative_prompt=None, seed=None)
ROWS = [replace(ROW, index=index, id=f"row {index}") for index in range(10)]


@dataclass(frozen=True)
class Wan:
    """The shape of a Wan2.1 transformer."""

    depth: int
    heads: int
    ffn: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        d = 128 * self.heads
        block: dict[str, tuple[int, ...]] = {"scale_shift_table": (1, 6, d), "norm2.weight": (d,), "norm2.bias": (d,)}
        for attention in ("attn1", "attn2"):
            for name in ("to_q", "to_k", "to_v", "to_out.0"):
                block |= {f"{attention}.{name}.weight": (d, d), f"{attention}.{name}.bias": (d,)}
            block |= {f"{attention}.norm_q.weight": (d,), f"{attention}.norm_k.weight": (d,)}
        block |= {"ffn.net.0.proj.weight": (self.ffn, d), "ffn.net.2.weight": (d, self.ffn)}
        tables = {"patch_embedding.weight": (d, 16, 1, 2, 2), "condition_embedder.time_proj.weight": (6 * d, d)}
        return tables | {f"blocks.{n}.{name}": shape for n in range(self.depth) for name, shape in block.items()}


WAN_14B, WAN_1_3B = Wan(40, 40, 13824), Wan(30, 12, 8960)
UNMEASURED = Wan(3, 24, 8192)
FOUR = Setup(ulysses=4)
UMT5_BLOCK = {f"SelfAttention.{name}.weight": (4096, 4096) for name in "qkvo"}
UMT5_BLOCK |= {f"DenseReluDense.{name}.weight": (10240, 4096) for name in ("wi_0", "wi_1", "wo")}
UMT5 = {"shared.weight": (256384, 4096)}
UMT5 |= {f"encoder.block.{n}.layer.{name}": shape for n in range(24) for name, shape in UMT5_BLOCK.items()}


def write_checkpoint(folder: Path, wan: Wan) -> Path:
    """What a Wan2.1 checkpoint tells without its weights: configs, and weight files that are headers before holes."""
    classes = {
        "transformer": "WanTransformer3DModel",
        "vae": "AutoencoderKLWan",
        "text_encoder": "UMT5EncoderModel",
        "tokenizer": "T5TokenizerFast",
        "scheduler": "UniPCMultistepScheduler",
    }
    configs: dict[str, dict[str, Any]] = {
        "transformer": {
            "num_layers": wan.depth,
            "num_attention_heads": wan.heads,
            "attention_head_dim": 128,
            "ffn_dim": wan.ffn,
            "in_channels": 16,
            "patch_size": [1, 2, 2],
        },
        "vae": {"base_dim": 96, "scale_factor_temporal": 4, "scale_factor_spatial": 8},
        "text_encoder": {"d_model": 4096, "num_layers": 24},
        "tokenizer": {},
        "scheduler": {},
    }
    weights = {
        "transformer/diffusion_pytorch_model": wan.tensors(),
        "vae/diffusion_pytorch_model": {"decoder.conv_in.weight": (126_892_531,)},
        "text_encoder/model": UMT5,
    }
    for part, config in configs.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
    index = {"_class_name": "WanPipeline"} | {part: ["diffusers", name] for part, name in classes.items()}
    (folder / "model_index.json").write_text(json.dumps(index))
    for name, tensors in weights.items():
        write_header(folder / f"{name}.safetensors", tensors)
    return folder


def write_header(file: Path, tensors: Mapping[str, Sequence[int]]) -> None:
    """A safetensors file of float32 tensors that were never written."""
    entries, end = {}, 0
    for name, shape in tensors.items():
        start, end = end, end + 4 * prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + end)


Models = Mapping[Wan, ModelFacts]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A checkpoint of each shape: the two released ones, and one that nobody measured."""
    folder = tmp_path_factory.mktemp("models")
    shapes = (WAN_14B, WAN_1_3B, UNMEASURED)
    return {wan: inspect(write_checkpoint(folder / f"Wan-{wan.heads}", wan)) for wan in shapes}


Plan = Callable[..., Planner]  # (*overrides, wan=…, gpu=…)


@pytest.fixture(scope="session")
def planner(models: Models) -> Plan:
    """A planner of `configs/wan14b.yaml` with overrides, as on GPUs."""

    def make(*overrides: str, wan: Wan = WAN_14B, gpu: Gpu = H100) -> Planner:
        return Planner(job_plan(models[wan], *overrides), gpu)

    return make


def job_plan(model: ModelFacts, *overrides: str) -> JobPlan:
    job = load_job("wan14b", [f"model.path={model.path}", *overrides])
    return JobPlan(job=job, model=model, device="cuda", dtype="bfloat16", rows=ROWS)


# --- time ---


@pytest.mark.parametrize(
    ("wan", "engine", "ulysses", "eager", "compiled"),
    [
        (WAN_1_3B, "auto", 1, 635, 523),
        (WAN_1_3B, "auto", 2, 381, 287),
        (WAN_1_3B, "auto", 4, 202, 155),
        (WAN_1_3B, "diffusers", 2, 357, 291),
        (WAN_1_3B, "diffusers", 4, 194, 151),
        (WAN_14B, "auto", 1, 3292, 2734),
        (WAN_14B, "auto", 2, 1959, 1507),
        (WAN_14B, "auto", 4, 1012, 807),
    ],
)
def test_a_measured_forward_is_given_as_it_was_measured(
    planner: Plan, wan: Wan, engine: str, ulysses: int, eager: float, compiled: float
) -> None:
    """Every row of the table, by model, engine, degree and compiler: its milliseconds, and that they are measured."""
    time = planner(f"parallel.engine={engine}", wan=wan).time
    for compile, milliseconds in ((False, eager), (True, compiled)):
        found = time.forward(Setup(ulysses=ulysses, compile=compile))
        assert (found.seconds, found.source, found.at_least) == (milliseconds / 1000, "measured", False)


def test_a_clip_is_forwards_text_and_pixels(models: Models) -> None:
    """480p on four ranks: two forwards a step, the 21 steps through t* and all 50 again; decoded by all four ranks."""
    found = estimate(job_plan(models[WAN_14B], "parallel.gangs=2", "parallel.cfg=1", "parallel.ulysses=4"))
    cost = found.candidate.cost
    around = 2.02 * 2 / 4 + 2 * 0.032
    assert found.tokens == 32760
    assert cost.seconds == pytest.approx(1.012 * 2 * (50 + 21) + around)
    assert cost.seconds_if_right == pytest.approx(1.012 * 2 * 50 + around)
    assert cost.forward.source == cost.encode.source == "measured"
    assert cost.decode.source == "estimated from 2 ranks"
    assert found.hours == pytest.approx(10 * cost.seconds / 2 / 3600)


def test_strategies_branches_and_the_encoders_place_count(planner: Plan) -> None:
    """The baseline has no first phase, one branch halves a step, an encoder apart takes no time of the gang."""
    full = planner("strategies=[baseline]").time.of(FOUR)
    assert full.seconds == full.seconds_if_right == pytest.approx(1.012 * 2 * 50 + 2.02 * 2 / 4 + 2 * 0.032)
    half = planner("strategies=[baseline]", "generation.guidance_scale=1").time.of(FOUR)
    assert half.seconds == pytest.approx(1.012 * 50 + 2.02 * 2 / 4 + 0.032)
    assert full.seconds - planner("strategies=[baseline]").time.of(
        replace(FOUR, text_encoder="apart")
    ).seconds == pytest.approx(2 * 0.032)


def test_variants_strides_and_caches_count(planner: Plan) -> None:
    """A stride of 2 halves the steps before t*, TaylorSeer about half the forwards; times are the strategies' mean."""
    variant = "variants.quick={identify: {stride: 2}, guide: {anchor: null}}"
    around = 2.02 * 2 / 4 + 2 * 0.032
    assert planner("strategies=[baseline]", variant).time.of(FOUR).seconds == pytest.approx(
        1.012 * 2 * (50 + (50 + 11)) / 2 + around
    )
    cached = planner("strategies=[baseline]", "generation.cache=taylorseer").time.of(FOUR).seconds
    assert 1.012 * 2 * 25 < cached < 1.012 * 2 * 30 + around


@pytest.mark.parametrize(
    ("setup", "overrides", "source", "at_least"),
    [
        (Setup(ulysses=8), [], "estimated from Ulysses 2 and 4", False),
        (Setup(ulysses=5), [], "estimated from Ulysses 2 and 4", False),
        (Setup(cfg=2), [], "estimated from one branch", False),
        (Setup(ulysses=4), ["generation.height=720", "generation.width=1280"], "estimated from 32760 tokens", False),
        (Setup(ulysses=4), ["parallel.engine=diffusers"], "estimated from engine xfuser", False),
        (Setup(ulysses=4), ["parallel.batch=2"], "estimated from one clip", False),
        (Setup(ulysses=2, ring=2), [], "estimated from Ulysses 4", True),
        (Setup(ulysses=4, shard="zero3"), [], "estimated from whole weights", True),
    ],
)
def test_what_is_estimated_says_from_what(
    planner: Plan, setup: Setup, overrides: list[str], source: str, at_least: bool
) -> None:
    """Other degrees, shapes, engines: made from the same model's rows, and marked; a ring and sharding cost more."""
    found = planner(*overrides).time.forward(setup)
    assert (found.source, found.at_least) == (source, at_least)


def test_estimates_lie_where_they_must(planner: Plan) -> None:
    """More ranks are faster, but not by their number; more tokens cost more than their share, less than its square."""
    time = planner().time
    seconds = {ulysses: time.forward(Setup(ulysses=ulysses)).seconds for ulysses in (1, 2, 4, 5, 8, 10)}
    assert list(seconds.values()) == sorted(seconds.values(), reverse=True)
    assert all(seconds[n] > seconds[4] * 4 / n for n in (5, 8, 10))
    assert seconds[8] == pytest.approx(0.5385)  # a / n + b through 1959 ms at 2 and 1012 ms at 4
    assert time.forward(Setup(cfg=2)).seconds == seconds[1]
    large = planner("generation.height=720", "generation.width=1280").time
    more = large.tokens / time.tokens
    assert more < large.forward(FOUR).seconds / time.forward(FOUR).seconds < more**2


def test_a_model_measured_on_one_gpu_scales_like_the_nearest(planner: Plan) -> None:
    """Without rows of several ranks, the scaling is another model's, and the estimate names it."""
    alone = [row for row in H100.forward.rows if row.heads == 12 or row.ulysses == 1]
    table = replace(H100, forward=ForwardBlock(measured="here", rows=alone))
    found = planner(gpu=table).time.forward(Setup(ulysses=4))
    assert found.seconds == pytest.approx(3.292 * 202 / 635)
    assert found.source == "estimated from the scaling of 30 blocks of 12 heads"
    eager = replace(H100, forward=ForwardBlock(rows=[row for row in H100.forward.rows if not row.compile]))
    assert planner(gpu=eager).time.forward(replace(FOUR, compile=True)).source == "estimated from eager blocks"


def test_what_was_not_measured_gets_no_time(planner: Plan, models: Models) -> None:
    """Another model, another GPU or a CPU: no number rather than a guess; memory is planned all the same."""
    assert planner(wan=UNMEASURED).time.of(FOUR) is None
    found = planner(gpu=SMALL).candidates(8)
    assert all(candidate.cost is None and candidate.clips_per_hour is None for candidate in found)
    on_cpu = estimate(replace(job_plan(models[WAN_14B]), device="cpu", dtype="float32"))
    assert on_cpu.hours is None
    no_encoder = planner(gpu=replace(H100, encode=EncodeBlock())).time.of(FOUR)
    assert no_encoder.encode is None


# --- memory ---


def test_a_transformers_peak_is_what_was_measured(planner: Plan) -> None:
    """14B at 480p on one GPU, weights and activations: 33 GiB, within a tenth."""
    [measured] = [row.gib for row in H100.forward.rows if row.gib]
    memory = planner().memory.of(Setup())
    assert measured == 33
    assert memory.transformer == pytest.approx(26.6, rel=0.01)  # 14.3e9 parameters, stored in float32, held in bfloat16
    assert memory.transformer + memory.denoising == pytest.approx(measured, rel=0.1)


def test_decoding_peaks_as_measured_and_is_split(planner: Plan) -> None:
    """9.3 GiB at 480p on one GPU, whatever the frames; a rank's share in a gang; by the pixels of a frame elsewhere."""
    assert planner().memory.of(Setup()).decoding == pytest.approx(9.3)
    assert planner("generation.num_frames=41").memory.of(Setup()).decoding == pytest.approx(9.3)
    assert planner().memory.of(Setup(cfg=2, ulysses=2)).decoding == pytest.approx(5.2 / 2)
    assert planner("parallel.batch=2").memory.of(Setup()).decoding == pytest.approx(2 * 9.3)
    large = planner("generation.height=720", "generation.width=1280").memory
    assert large.of(Setup()).decoding == pytest.approx(9.3 * 720 * 1280 / (480 * 832))


def test_what_a_rank_holds(planner: Plan) -> None:
    """Sharding divides weights by the ranks, offloading leaves none; ranks divide activations; phases don't add up."""
    memory = planner().memory
    whole, shared = memory.of(FOUR), memory.of(replace(FOUR, shard="zero3"))
    offloaded = memory.of(replace(FOUR, shard="zero3_offload"))
    block = 351e6 * 2 / 2**30
    assert shared.transformer == pytest.approx(whole.transformer / 4)
    assert shared.denoising == pytest.approx(whole.denoising + block, rel=0.01)
    assert shared.encoding == pytest.approx(256384 * 4096 * 2 / 2**30)  # all embeddings at once
    assert (offloaded.transformer, offloaded.text_encoder) == (0, 0)
    assert whole.text_encoder == 12.6
    assert memory.of(replace(FOUR, text_encoder="apart")).text_encoder == 0
    assert whole.denoising == pytest.approx(memory.of(Setup()).denoising / 4)
    held = whole.transformer + whole.text_encoder + whole.vae + whole.states
    assert whole.peak == pytest.approx((held + max(whole.denoising, whole.decoding) + 0.6) * 1.05)
    assert planner("model.dtype=float32").memory.weights == memory.weights  # the plan's dtype is what counts


def test_anchored_guidance_keeps_its_path(planner: Plan) -> None:
    """Latents of 21 steps with the sampler's, of two clips in flight; without an anchor next to nothing."""
    latents = 16 * 21 * 60 * 104 * 4 / 2**30
    assert planner().memory.of(FOUR).states == pytest.approx(2 * latents * (3 * 21 + 1))
    assert planner("method.guide.anchor=null").memory.of(FOUR).states == pytest.approx(2 * latents)


# --- choice ---


def test_throughput_prefers_gangs_and_latency_ranks(planner: Plan) -> None:
    """8 H100: a clip per GPU makes the most clips an hour; branches, then Ulysses over all of them, one soonest."""
    most, soonest = planner().candidates(8)[0], planner().candidates(8, objective="latency")[0]
    assert (most.setup.gangs, most.setup.ranks) == (8, 1)
    assert (soonest.setup.gangs, soonest.setup.cfg, soonest.setup.ulysses) == (1, 2, 4)
    assert most.clips_per_hour > soonest.clips_per_hour
    assert most.cost.seconds > soonest.cost.seconds
    assert most.setup.overrides(planner().job) == "parallel.cfg=1 parallel.ulysses=1 parallel.gangs=8"


@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_candidates_are_sorted_and_each_split_once(planner: Plan, objective: Objective) -> None:
    """What is never measured comes last; before it, the best by the objective comes first."""
    found = planner().candidates(12, objective=objective)
    splits = [(c.setup.cfg, c.setup.ulysses, c.setup.ring) for c in found]
    assert len(set(splits)) == len(splits)
    unmeasured = [c.cost.forward.at_least for c in found]
    assert unmeasured == sorted(unmeasured)
    known = [c for c in found if not c.cost.forward.at_least]
    values = [-c.clips_per_hour if objective == "throughput" else c.cost.seconds for c in known]
    assert [round(value, 3) for value in values] == sorted(round(value, 3) for value in values)


def test_the_least_sharding_that_fits(planner: Plan) -> None:
    """Whole weights with the text encoder where they fit, else it is apart, else both are sharded and not compiled."""
    assert planner(wan=WAN_1_3B, gpu=SMALL).candidates(1)[0].setup == Setup(text_encoder="apart")
    medium = replace(SMALL, memory_gib=48)
    assert planner(gpu=medium).candidates(8)[0].setup == Setup(gangs=8, text_encoder="apart")
    small = planner("parallel.compile=true", gpu=SMALL).candidates(8)
    assert all(c.setup.shard == "zero3" and not c.setup.compile for c in small if c.setup.ranks > 1)
    assert planner(gpu=SMALL).candidates(1)[0].setup.shard == "zero3_offload"


def test_an_encoder_on_gpus_takes_them_from_the_gangs(planner: Plan) -> None:
    """Half a GPU for the text encoder leaves seven whole ones."""
    found = planner("cluster.encoder_gpus=0.5").candidates(8, wishes={"text_encoder": "apart", "ulysses": 1})
    assert found[0].setup.gangs == 7


def test_gangs_stay_on_a_node(planner: Plan) -> None:
    """Across nodes only for latency, or where a node is too small; Ulysses never."""
    most = planner().candidates(16, nodes=2)
    assert all(candidate.setup.nodes == 1 for candidate in most)
    soonest = planner().candidates(16, nodes=2, objective="latency")
    assert soonest[0].setup.nodes == 2
    assert (soonest[0].setup.cfg, soonest[0].setup.ulysses) == (2, 8)
    assert all(candidate.setup.ulysses <= 8 for candidate in soonest)
    tight = replace(SMALL, memory_gib=30)  # 14B fits neither whole nor in halves of one GPU's nodes
    wide = planner(gpu=tight).candidates(4, nodes=4, wishes={"shard": "zero3"})
    assert all(candidate.setup.nodes > 1 and candidate.setup.ulysses == 1 for candidate in wide)


def test_idle_gpus_are_said(planner: Plan) -> None:
    """Seven GPUs and 40 heads: the fastest clip takes five, and two are left over."""
    found = planner().candidates(7, objective="latency")
    assert found[0].setup.ranks == 5
    assert "2 GPUs left over" in reasons(planner(), found, 7, "latency")[0]


@settings(max_examples=40, deadline=None)
@given(
    gpus=st.integers(1, 16),
    wan=st.sampled_from([WAN_14B, WAN_1_3B, UNMEASURED]),
    engine=st.sampled_from(["auto", "diffusers", "xfuser"]),
    compile=st.booleans(),
    cache=st.sampled_from(["none", "taylorseer", "cfg_cache"]),
    scale=st.sampled_from([1.0, 5.0]),
    gib=st.sampled_from([16, 24, 79]),
    objective=st.sampled_from(["throughput", "latency"]),
)
def test_no_candidate_is_unsupported_or_too_large(
    planner: Plan,
    gpus: int,
    wan: Wan,
    engine: str,
    compile: bool,
    cache: str,
    scale: float,
    gib: int,
    objective: Objective,
) -> None:
    """Whatever is asked: each proposal passes the support matrix, fits the memory and the GPUs; or none is made."""
    given_job = [f"parallel.engine={engine}", f"generation.guidance_scale={scale}", f"parallel.compile={compile}"]
    asked = planner(*given_job, f"generation.cache={cache}", wan=wan, gpu=replace(H100, memory_gib=gib))
    try:
        found = asked.candidates(gpus, objective=objective)
    except ConfigError:
        return
    for candidate in found:
        setup = candidate.setup
        check_support(
            Wish(
                engine=engine,
                cfg=setup.cfg,
                ulysses=setup.ulysses,
                ring=setup.ring,
                compile=setup.compile,
                shard=setup.shard,
                cache=cache,
                device="cuda",
                heads=wan.heads,
                tokens=32760,
                guidance=scale > 1,
            )
        )
        assert setup.ranks * setup.gangs <= gpus
        assert candidate.memory.peak <= gib


# --- wishes and refusals ---


def test_wishes_are_what_the_command_line_names(models: Models) -> None:
    """`parallel.ulysses=4` of the YAML file is a default, the same on the command line is a wish."""
    overrides = ["parallel.cfg=2", "memory.text_encoder=apart", "generation.steps=30"]
    job = load_job("wan14b", ["model.path=unread", *overrides])
    assert wishes_of(job, overrides) == {"cfg": 2, "text_encoder": "apart"}
    assert all(
        c.setup.cfg == 2 and c.setup.text_encoder == "apart"
        for c in Planner(job_plan(models[WAN_14B], *overrides), H100).candidates(8, wishes=wishes_of(job, overrides))
    )


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"ulysses": 3}, "doesn't divide the model's 40 heads; nearest on 8 GPUs: parallel.ulysses=4"),
        ({"ulysses": 20}, "takes 20 GPUs or more; nearest on 8 GPUs: parallel.ulysses=8"),
        ({"cfg": 2, "gangs": 5}, "takes 10 GPUs or more; nearest on 8 GPUs: parallel.gangs=4"),
        ({"cfg": 3}, "guidance has two branches; nearest on 8 GPUs: parallel.cfg=2"),
    ],
)
def test_an_impossible_split_is_refused_with_the_nearest(planner: Plan, wishes: dict[str, Any], message: str) -> None:
    """Why not, and the fewest and smallest changes that work."""
    with pytest.raises(ConfigError, match=message):
        planner().candidates(8, wishes=wishes)


def test_missing_memory_is_refused_with_what_fits(planner: Plan) -> None:
    """14B whole, its encoder in the gang, on 24 GiB: how much is missing, and the options that make it fit."""
    held = {"shard": "none", "text_encoder": "gang"}
    with pytest.raises(ConfigError, match=r"needs 53.0 GiB .* 29.0 GiB more than the 24 .*memory.shard=zero3_offload"):
        planner(gpu=SMALL).candidates(1, wishes=held)
    with pytest.raises(ConfigError, match=r"what fits: .*memory.shard=zero3 \(.* or .*memory.text_encoder=apart"):
        planner(gpu=SMALL).candidates(8, wishes=held)
    medium = replace(SMALL, memory_gib=48)
    with pytest.raises(ConfigError, match=r"what fits: memory.text_encoder=apart \("):
        planner(gpu=medium).candidates(1, wishes=held)


def test_where_no_option_fits_the_clip_must_change(planner: Plan) -> None:
    """On 8 GiB even offloaded weights leave too little for decoding 480p; a cache that forbids sharding may go."""
    with pytest.raises(ConfigError, match=r"what fits: generation.height=\d+ generation.width=\d+ with memory.shard="):
        planner(gpu=replace(SMALL, memory_gib=8)).candidates(1)
    with pytest.raises(ConfigError, match=r"what fits: generation.cache=none with .*memory.shard=zero3"):
        planner("generation.cache=taylorseer", gpu=SMALL).candidates(8)


def test_the_configured_job_is_refused_where_it_does_not_fit(planner: Plan) -> None:
    """As configured on four 24 GiB GPUs it lacks memory, on H100s it doesn't."""
    assert planner().refusal(planner().configured) is None
    assert "what fits: memory.shard=zero3 (" in planner(gpu=SMALL).refusal(FOUR)


def test_gpus_must_fill_their_nodes(planner: Plan) -> None:
    """Seven GPUs aren't two alike nodes."""
    with pytest.raises(ConfigError, match="same number"):
        planner().candidates(7, nodes=2)


def test_planning_for_gpus_needs_none(models: Models) -> None:
    """On a machine without a GPU, and whatever degrees and memory the YAML file has; but not for a job on CPUs."""
    overrides = [
        f"model.path={models[WAN_1_3B].path}",
        "prompts=testbed:demo",
        "model.device=cuda",
        "cluster.address=local",
    ]
    plan = prepare_for_gpus(load_job("wan14b", [*overrides, "memory.shard=zero3", "parallel.ulysses=1"]))
    assert (plan.device, plan.dtype, plan.job.memory.shard) == ("cuda", "bfloat16", "zero3")
    with pytest.raises(ConfigError, match=r"model.device=auto"):
        prepare_for_gpus(load_job("demo"))


# --- why ---


def test_every_choice_has_its_reason(planner: Plan) -> None:
    """A sentence for each of gangs, split, sharding, encoder and time; an estimate is called one there, too."""
    asked = planner()
    found = asked.candidates(8, objective="latency")
    text = "\n".join(reasons(asked, found, 8, "latency"))
    for start in ("gangs 1:", "cfg 2:", "ulysses 4:", "shard none:", "text_encoder gang:", "time: at most", "forward:"):
        assert f"\n{start}" in f"\n{text}"
    assert "estimated from one branch" in text
    assert "parallel.compile=true would save" in text
    small = planner(gpu=SMALL)
    text = "\n".join(reasons(small, small.candidates(8), 8, "throughput"))
    assert "shard zero3: peak" in text
    assert "text_encoder apart:" in text
    assert "no forward of 40 blocks of 40 heads was measured" in text


# --- tables ---


def test_an_unknown_gpu_lists_those_shipped() -> None:
    """A name without a table."""
    with pytest.raises(ConfigError, match="those shipped: h100"):
        load_gpu("h9000")


def test_a_table_may_be_a_file_of_ones_own(tmp_path: Path) -> None:
    """Name and memory are enough; a mistyped key is an error that names it."""
    file = tmp_path / "gpu.yaml"
    file.write_text("name: mine\nmemory_gib: 48\n")
    assert load_gpu(str(file)) == Gpu(name="mine", memory_gib=48)
    file.write_text("name: mine\nmemory_gib: 48\nforwards: {}\n")
    with pytest.raises(ConfigError, match="forwards"):
        load_gpu(str(file))


def test_the_shipped_table_says_where_it_is_from() -> None:
    """Each block names its machine and date; no combination stands there twice."""
    for block in (H100.forward, H100.decode, H100.encode):
        assert "H100" in block.measured
        assert "2026" in block.measured
    keys = [replace(row, milliseconds=0, gib=None) for row in H100.forward.rows]
    assert len(set(keys)) == len(keys) == 18
