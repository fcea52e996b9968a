"""Why a candidate is the best: a sentence for everything it decides, and how its numbers are known."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from cluster.planner.choice import Candidate, Objective, Planner
from cluster.planner.timing import Cost


def reasons(planner: Planner, found: Sequence[Candidate], gpus: int, objective: Objective) -> list[str]:
    """The reasons for the first of the candidates found for so many GPUs."""
    best = found[0]
    return [
        _gangs(found, gpus, objective),
        *_idle(planner, best),
        *_split(planner, best),
        *_batch(planner, best),
        _shard(planner, best),
        _text_encoder(planner, best),
        *time_reasons(planner, best),
    ]


def time_reasons(planner: Planner, best: Candidate) -> Iterator[str]:
    """What a candidate's seconds are made of."""
    cost, model, gpu = best.cost, planner.model, planner.gpu
    if cost is None:
        yield f"time: no forward of {model.depth} blocks of {model.heads} heads was measured on {gpu.name}"
        return
    yield _clip(planner, best.setup.batch, cost)
    yield f"forward: {1000 * cost.forward.seconds:.0f} ms, {cost.forward.source} ({gpu.forward.measured})"
    if cost.forward.at_least:
        yield "not included: the cost of a ring's links and of gathering weights (never measured); real times are more"
    for name, timing in (("decode", cost.decode), ("text", cost.encode)):
        yield f"{name}: {timing.seconds:.2f} s, {timing.source}" if timing else f"{name}: not measured, left out"
    if planner.job.verifies:
        yield _judges(planner, cost)
    compiled = replace(best.setup, compile=True)
    if best.setup != compiled and planner.supported(compiled):
        faster = planner.time.forward(compiled)
        if faster and faster.seconds < cost.forward.seconds:
            saved = 1 - faster.seconds / cost.forward.seconds
            yield f"parallel.compile=true would save {saved:.0%} of a forward ({faster.source})"


def _judges(planner: Planner, cost: Cost) -> str:
    verify = planner.job.verify
    where = f"{verify.judges} × {verify.gpus:g} GPU" if verify.gpus else f"{verify.judges} × {verify.cpus} CPU cores"
    if cost.judge is None:
        return f"judges on {where}: their speed was not measured; the gangs' counts, judges may be slower"
    return f"judges on {where}: {cost.judge.seconds:.1f} s for a clip, {cost.judge.source}"


def _clip(planner: Planner, batch: int, cost: Cost) -> str:
    clips = f"a batch of {batch} clips" if batch > 1 else "a clip"
    trials = planner.time.trials
    if len(trials) > 1:
        clips += f" (mean of the {len(trials)} of a sample)"
    if any(trial.verified for trial in trials):
        clips += f", {_attempts(planner)}"
    if cost.seconds == cost.seconds_if_right:
        return f"time: {cost.seconds:.0f} s for {clips}"
    return (
        f"time: at most {cost.seconds:.0f} s for {clips}, if all need a second pass;"
        f" {cost.seconds_if_right:.0f} s if counts are right at once"
    )


def _attempts(planner: Planner) -> str:
    """How many clips a verified sample is made of."""
    demand, most = planner.demand, planner.job.verify.attempts
    accepted = demand.accepted(most)
    if accepted is None:
        return f"1 to {most} attempts each (give --accuracy, the share that the judge accepts)"
    return f"{demand.attempts(most)[0]:.2f} attempts each, {accepted:.0%} of samples accepted"


def _gangs(found: Sequence[Candidate], gpus: int, objective: Objective) -> str:
    best = found[0]
    setup = best.setup
    other = next((candidate for candidate in found if candidate.setup.ranks != setup.ranks), None)
    if other is None:
        why = f"{_gpus(setup.ranks)} for a clip is the only split that is supported and fits"
    elif best.cost is None or other.cost is None:
        few = "ranks that share a clip wait for each other, so no more than it needs"
        why = few if objective == "throughput" else "as many ranks for a clip as are supported"
    elif objective == "throughput":
        rate, others = f"{best.clips_per_hour:.1f}", f"{other.clips_per_hour:.1f}"
        others = _no_more(others, rate)
        why = f"{rate} clips an hour with {_gpus(setup.ranks)} for each, {others} with {other.setup.ranks}"
    else:
        time, others = f"{best.cost.seconds:.0f} s", f"{other.cost.seconds:.0f} s"
        why = f"{time} for a clip on {_gpus(setup.ranks)}, {_no_more(others, time)} on {other.setup.ranks}"
    idle = gpus - setup.ranks * setup.gangs
    return f"gangs {setup.gangs}: {why}" + (f"; {_gpus(idle)} left over" if idle else "")


def _idle(planner: Planner, best: Candidate) -> Iterator[str]:
    """Gangs without a clip, where there are more of them than clips."""
    clips, at_once = planner.demand.videos, best.setup.gangs * best.setup.batch
    if clips is not None and clips < at_once and best.setup.gangs > 1:
        room = f"{at_once} clips at once" if best.setup.batch > 1 else f"{at_once} gangs"
        yield f"{clips} of {room}: the others have nothing to do; --objective latency shares a clip among more GPUs"


def _split(planner: Planner, best: Candidate) -> Iterator[str]:
    setup = best.setup
    if setup.ranks == 1:
        yield "cfg 1, ulysses 1, ring 1: one GPU can hold a clip, so GPUs don't wait for each other"
        return
    if setup.cfg == 2:
        yield "cfg 2: a step's two branches exchange only their predictions, so they go on different GPUs first"
    elif planner.time.branches == 1:
        yield "cfg 1: generation.guidance_scale of 1 or less leaves one branch"
    if setup.ulysses > 1:
        yield f"ulysses {setup.ulysses}: {_ulysses(planner, best)}"
    if setup.ring > 1:
        yield f"ring {setup.ring}: passes keys and values on where Ulysses isn't possible; this was never measured"
    if setup.nodes > 1:
        yield f"nodes {setup.nodes}: only branches and rings cross them, Ulysses stays inside"


def _batch(planner: Planner, best: Candidate) -> Iterator[str]:
    if best.setup.batch == 1:
        return
    clips = f"batch {best.setup.batch}: {best.setup.batch} clips in one forward"
    alone = planner.candidate(replace(best.setup, batch=1)).clips_per_hour
    if best.clips_per_hour is None or alone is None:
        yield f"{clips}, as asked; what they gain was never measured"
    else:
        yield f"{clips} make {best.clips_per_hour:.1f} clips an hour, {alone:.1f} one by one"


def _ulysses(planner: Planner, best: Candidate) -> str:
    heads, setup = planner.model.heads, best.setup
    where = f"ranks of one node, {heads // setup.ulysses} of the {heads} heads each"
    alone = replace(setup, cfg=1, ring=1, ulysses=1, shard="none")
    one, shared = planner.time.forward(alone), planner.time.forward(replace(alone, ulysses=setup.ulysses))
    if one is None or shared is None:
        return where
    return f"{where}, together {one.seconds / shared.seconds:.1f} times as fast as one ({shared.source})"


def _shard(planner: Planner, best: Candidate) -> str:
    setup, memory = best.setup, best.memory
    peak = f"peak {memory.peak:.1f} of {planner.gpu.memory_gib:g} GiB while {memory.phase}"
    if setup.shard == "none":
        return f"shard none: {peak}, {memory.transformer:.1f} of it the transformer's weights"
    whole = planner.memory.of(replace(setup, shard="none")).peak
    where = f"over {setup.ranks} ranks" if setup.shard == "zero3" else "in host memory"
    return (
        f"shard {setup.shard}: {peak}, {planner.memory.weights:.1f} of transformer weights {where};"
        f" unsharded the peak would be {whole:.1f}"
    )


def _text_encoder(planner: Planner, best: Candidate) -> str:
    place = best.setup.text_encoder
    inside = planner.memory.of(replace(best.setup, text_encoder="gang"))
    if place == "gang":
        return f"text_encoder gang: its {planner.memory.encoder_weights:.1f} GiB fit beside the transformer"
    cluster = planner.job.cluster
    shares = f"{cluster.encoders} × {cluster.encoder_gpus:g} GPU"
    where = shares if cluster.encoder_gpus else "CPUs, where it was never measured (see cluster.encoder_gpus)"
    return f"text_encoder apart: on {where}; in the gang the peak would be {inside.peak:.1f} GiB"


def _no_more(value: str, than: str) -> str:
    return "no better" if value == than else value


def _gpus(number: int) -> str:
    return f"{number} GPU{'' if number == 1 else 's'}"
