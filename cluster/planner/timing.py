"""How long a clip takes: measured rows, and what is made from rows of the same model.

Names: d width of the model, f of its feed-forward layers, n tokens of a clip, T of its text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, log

from cluster.job.checked import CheckedJob
from cluster.job.judge import judge_config
from cluster.job.strategy import Trial
from cluster.planner.demand import Demand
from cluster.planner.measured import Curve, ForwardRow, Gpu, between, forward_curve
from cluster.planner.memory import Sizes, encodes
from cluster.planner.setup import Setup
from numina.config import MethodConfig
from pipelines.models.families import FAMILIES
from pipelines.models.registry import FLOAT8
from pipelines.parallel.support import resolve_engine
from pipelines.sampling.cache import clip_forwards, forwards


@dataclass(frozen=True)
class Timing:
    """Seconds, and how they are known."""

    seconds: float
    source: str = "measured"  # or "estimated from …"
    at_least: bool = False  # something that was never measured comes on top


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of a batch of clips in one gang: text, denoising and pixels; a mean over the clips that the job's
    strategies ask for, and of verified ones with the attempts after the first.

    mp4 files are written on CPUs, layouts found there, and guidance's own 1 to 2 % aren't counted.
    """

    seconds: float  # NUMINA's clips all counted as identified and then guided (from `guide.start` on): the most
    seconds_if_right: float  # none of them needs guidance: the least
    forward: Timing  # of the batch, one branch; of both, where they are on different ranks
    decode: Timing | None  # None: not measured for this VAE on this GPU, and left out
    encode: Timing | None  # None: not measured for this text encoder on this GPU, and left out
    judge: Timing | None = None  # of a clip, on a judge's own GPU; None: no judge, or not measured on this GPU


class TimeModel:
    """Seconds of one job's clips on one kind of GPU."""

    def __init__(self, prepared: CheckedJob, sizes: Sizes, gpu: Gpu, demand: Demand = Demand()):  # noqa: B008 - frozen
        self.model, self.sizes, self.gpu = prepared.model, sizes, gpu
        self.generation = prepared.job.generation
        self.engine, self.dtype = prepared.job.parallel.engine, prepared.dtype
        self.family = FAMILIES[prepared.model.family]
        self.decoder_dtype = prepared.vae_dtype
        self.job, self.demand = prepared.job, demand
        self.trials = prepared.trials
        self.tokens = prepared.model.grid(prepared.job.generation).tokens
        self.branches = 2 if self.generation.guidance_scale > 1 else 1

    def of(self, setup: Setup) -> Cost | None:
        """A batch of clips. None where no forward of this model was measured on this GPU."""
        forward = self.forward(setup)
        if forward is None:
            return None
        decode, encode = self._decode(setup.ranks), self._encode(setup)
        around = sum(timing.seconds for timing in (decode, encode) if timing)
        passes = 1 if setup.cfg == 2 else self.branches
        asked = list(zip(self._counts[passes], map(self._attempts, self.trials), strict=True))
        least, most = (
            sum(made[end] * (forward.seconds * counts[end] + setup.batch * around) for counts, made in asked)
            / len(asked)
            for end in (0, 1)
        )
        return Cost(
            seconds=most,
            seconds_if_right=least,
            forward=forward,
            decode=decode,
            encode=encode,
            judge=self._judge() if self.job.verifies else None,
        )

    @cached_property
    def _counts(self) -> dict[int, list[tuple[int, int]]]:
        """Passes of a step → the forwards of each clip that is asked for."""
        methods = [self.job.methods[trial.base] for trial in self.trials]
        return {passes: [self._forwards(method, passes) for method in methods] for passes in {1, self.branches}}

    def _attempts(self, trial: Trial) -> tuple[float, float]:
        """Clips made for one that is asked for."""
        return self.demand.attempts(self.job.verify.attempts) if trial.verified else (1.0, 1.0)

    @property
    def clips_made(self) -> tuple[float, float]:
        """Clips made for each that is asked for, attempts included: a mean, at least and at most."""
        made = [self._attempts(trial) for trial in self.trials]
        return sum(least for least, _ in made) / len(made), sum(most for _, most in made) / len(made)

    def clips_per_hour(self, setup: Setup, cost: Cost) -> float:
        """Of all gangs; of the judges, where these are slower."""
        rate = setup.gangs * setup.batch * 3600 / cost.seconds
        judged = sum(self._attempts(trial)[1] for trial in self.trials if trial.verified) / len(self.trials)
        if cost.judge is None or not judged:
            return rate
        return min(rate, self.job.verify.judges * 3600 / (cost.judge.seconds * judged))

    def _judge(self) -> Timing | None:
        """A clip's frames by the judge of verified ones, by a row of its kind; on a whole GPU, of which it may have a
        share."""
        judge = judge_config(self.job.verify.judge, self.job.judge)
        row = next((row for row in self.gpu.judge.rows if row.kind == judge.kind), None)
        if row is None:
            return None
        frames = ceil(self.generation.num_frames / judge.every)
        shared = self.job.verify.gpus not in (0, 1)
        return self._timing(1000 * frames / row.frames_per_second, ["a whole GPU"] if shared else [], at_least=shared)

    def _forwards(self, method: MethodConfig | None, passes: int) -> tuple[int, int]:
        """How many a clip takes whose counts are right, and one that is guided; the same for a plain one."""
        steps, cache = self.generation.steps, self.generation.cache
        if method is None:
            plain = forwards(cache, range(steps), steps, passes=passes)
            return plain, plain
        return clip_forwards(method, self.model.times(self.generation, method.schedule_by), cache, passes=passes)

    def batches(self, compile: bool) -> list[int]:
        """One clip, and how many at once were measured for this model and clip."""
        own = [row for row in self._own_rows() if row.tokens == self.tokens]
        return sorted({1} | {row.batch for row in own if row.compile == compile})

    def forward(self, setup: Setup) -> Timing | None:
        """One forward of a batch: a measured row, or that of one clip so many times."""
        engine = resolve_engine(self.engine, "cuda", setup.sequence_ranks)
        asked = (self.tokens, setup.batch, engine, setup.cfg, setup.ulysses, setup.ring, setup.compile)
        for row in self._own_rows():
            if (row.tokens, row.batch, row.engine, row.cfg, row.ulysses, row.ring, row.compile) == asked:
                return self._timing(row.milliseconds, self._unmeasured(setup), at_least=setup.shard != "none")
        if setup.batch == 1:
            return self._scaled(setup, engine)
        one = self.forward(replace(setup, batch=1))
        if one is None:
            return None
        source = "estimated from" if one.source == "measured" else f"{one.source},"
        return replace(one, seconds=one.seconds * setup.batch, source=f"{source} one clip")

    def _scaled(self, setup: Setup, engine: str) -> Timing | None:
        """One clip's forward from the nearest rows of the same model.

        Over tokens by floating-point operations; over ranks by what they divide and what they don't.
        """
        own = self._own_rows()
        tokens = self._nearest(own)
        if tokens is None:
            return None
        notes = self._unmeasured(setup)
        if setup.cfg == 2:
            notes.append("one branch")
        if tokens != self.tokens:
            notes.append(f"{tokens} tokens")
        curve = forward_curve([row for row in own if row.tokens == tokens], engine, setup.compile, notes)
        found = self._at(setup.sequence_ranks, curve, engine, setup.compile)
        if found is None:
            return None
        milliseconds, source = found
        if setup.ring > 1:
            source = source or f"Ulysses {setup.sequence_ranks}"
        if source:
            notes.append(source)
        scale = self._operations(self.tokens) / self._operations(tokens)
        return self._timing(milliseconds * scale, notes, at_least=setup.ring > 1 or setup.shard != "none")

    def _unmeasured(self, setup: Setup) -> list[str]:
        """What no row has, whatever the degrees."""
        measured = any(row.dtype == FLOAT8 and row.compile == setup.compile for row in self._own_rows())
        rounded = self.dtype == FLOAT8 and not measured
        return (["whole weights"] if setup.shard != "none" else []) + (["bfloat16"] if rounded else [])

    def _timing(self, milliseconds: float, notes: Sequence[str], at_least: bool) -> Timing:
        source = f"estimated from {', '.join(notes)}" if notes else "measured"
        return Timing(milliseconds / 1000, source, at_least)

    def _own_rows(self) -> list[ForwardRow]:
        return self._rows(self.model.depth, self.model.heads)

    def _rows(self, depth: int, heads: int) -> list[ForwardRow]:
        """A model's. In float8 what was measured so, and bfloat16's of blocks that weren't, compiled or not."""
        own = [row for row in self.gpu.forward.rows if (row.depth, row.heads) == (depth, heads)]
        rounded = [row for row in own if row.dtype == FLOAT8 == self.dtype]
        known = {row.compile for row in rounded}
        return rounded + [row for row in own if row.dtype != FLOAT8 and row.compile not in known]

    def _nearest(self, rows: Sequence[ForwardRow]) -> int | None:
        """The length of clips among these, measured one by one, nearest to the asked one; None: there is none."""
        known = [row.tokens for row in rows if row.batch == 1]
        return min(known, key=lambda tokens: abs(log(tokens / self.tokens)), default=None)

    def _at(self, degree: int, curve: Curve, engine: str, compile: bool) -> tuple[float, str] | None:
        """Milliseconds at a degree, and what they are made from if it wasn't measured.

        By the model's own scaling, else by that of the measured model with the nearest number of heads.
        """
        if degree in curve:
            return curve[degree], ""
        if own := between(curve, degree):
            return own
        models = {(row.depth, row.heads) for row in self.gpu.forward.rows} - {(self.model.depth, self.model.heads)}
        for depth, heads in sorted(models, key=lambda model: abs(log(model[1] / self.model.heads))):
            rows = self._rows(depth, heads)
            tokens = self._nearest(rows)
            other = forward_curve([row for row in rows if row.tokens == tokens], engine, compile, [])
            there = (other[degree], "") if degree in other else between(other, degree)
            shared = max(set(curve) & set(other), default=None)
            if there and shared:
                return curve[shared] * there[0] / other[shared], f"the scaling of {depth} blocks of {heads} heads"
        return None

    def _operations(self, n: int) -> float:
        """Floating-point operations of a block: projections and feed-forward, attention to video and to text."""
        d, f, T = self.sizes.width, self.sizes.ffn, self.sizes.text_tokens
        if self.model.joint:
            return (n + T) * d * (8 * d + 4 * f) + 4 * (n + T) ** 2 * d
        return n * d * (12 * d + 4 * f) + 4 * n * (n + T) * d

    def _decode(self, ranks: int) -> Timing | None:
        """A clip's pixels, by a row of the same VAE; all ranks of a gang decode, where it can be split.

        In half precision by a row of float32 where there is no other: that is no less. Not the other way round.
        """
        ranks = ranks if self.family.decoder_splits else 1
        size = self.generation.height * self.generation.width * self.generation.num_frames
        known = [row for row in self.gpu.decode.rows if row.decoder_width == self.sizes.decoder_width]
        rows = [row for row in known if row.dtype == self.decoder_dtype]
        rows = rows or [row for row in known if row.dtype == "float32"]
        row = min(rows, key=lambda row: (abs(log(size / row.size)), abs(log(ranks / row.ranks))), default=None)
        if row is None:
            return None
        notes = [row.dtype] if row.dtype != self.decoder_dtype else []
        notes += [f"{row.height}×{row.width}×{row.frames}"] if row.size != size else []
        notes += [f"{row.ranks} rank{'s' if row.ranks > 1 else ''}"] if row.ranks != ranks else []
        return self._timing(1000 * row.seconds * size / row.size * row.ranks / ranks, notes, at_least=False)

    def _encode(self, setup: Setup) -> Timing | None:
        """A prompt and, for two branches, its negative prompt; every rank of a gang encodes for itself."""
        if setup.text_encoder == "apart":
            return Timing(0.0, "apart, while gangs denoise")
        row = next((row for row in self.gpu.encode.rows if encodes(row, self.sizes)), None)
        return Timing(self.branches * row.milliseconds / 1000) if row else None
