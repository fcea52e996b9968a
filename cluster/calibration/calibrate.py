"""A calibration: rungs of a race as jobs into one output, which holds all that the race needs to know.

    sample ─► rung: run_job with the candidates left, on the first prompts ─► judge ─► race ─► … ─► Result

The race's state is recomputed from rows and verdicts each time: the same command again makes what is missing.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cluster.calibration import race as racing
from cluster.calibration.intervals import mean_interval
from cluster.calibration.race import PLAIN, Race, Rung, Values
from cluster.calibration.reading import Agreement, agreements, reads_of
from cluster.calibration.sample import Sampled, draw_sample
from cluster.dataset.store import Store
from cluster.evaluation.evaluate import evaluate
from cluster.evaluation.outcomes import rank_seconds, sample_of
from cluster.job.config import config_hash
from cluster.job.judge import judge_config
from cluster.job.pinning import pinned_judge
from cluster.job.prepared import prepare
from cluster.observability.progress import JobProgress
from cluster.rows import python_rows
from cluster.runtime.run import run_job
from numina.errors import ConfigError
from numina.metrics import Interval
from pipelines.judges import inspect_judge

if TYPE_CHECKING:
    from cluster.job.config import JobConfig
    from numina.config import MethodConfig
    from pipelines.judges.base import JudgeConfig

MOST_PROMPTS = 2000  # of a sample, if the budget is in hours
SHOWN_ALPHA = 0.05  # of the intervals of single candidates

Row = Mapping[str, Any]
Jobs = Callable[[JobProgress], None]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a calibration may cost."""

    clips: int | None = None
    hours: float | None = None  # rank-hours: GPU-hours on GPUs

    @classmethod
    def parse(cls, text: str) -> Budget:
        """`60` clips or `8h`, rank-hours. Raises ConfigError."""
        found = re.fullmatch(r"(\d{1,9})|(\d{1,6}(?:\.\d+)?)h", text.strip())
        if not found or not float(found[1] or found[2]):
            raise ConfigError(f"budget is {text!r}; give a number of clips such as 60, or GPU-hours such as 8h")
        return cls(clips=int(found[1])) if found[1] else cls(hours=float(found[2]))

    @property
    def amount(self) -> float:
        """In clips, or rank-seconds."""
        return float(self.clips) if self.clips is not None else 3600 * (self.hours or 0.0)

    def __str__(self) -> str:
        return f"{self.clips} clips" if self.clips is not None else f"{self.hours:g} rank-hours"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What became of one candidate."""

    name: str
    accuracy: Interval  # CountAcc
    prompts: int
    gain: Interval | None  # CountAcc more than the plain clips'; None for these
    state: str  # chosen | not told apart | worse than NAME | set aside
    cost: float | None  # rank-seconds of a clip, on average
    reading: float | None  # share of nouns whose identified count is the plain clip's detected one


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a calibration found."""

    chosen: str
    method: MethodConfig
    verdict: str  # of `race.verdict`
    standings: list[Standing]
    agreement: list[Agreement]  # of the chosen candidate's reading
    budget: Budget
    clips: int  # in the output, of the sample's prompts
    seconds: float  # that they cost, rank-seconds
    prompts: str  # the set, as the job names it
    judge: str
    model: str
    revision: str
    stopped: bool  # a signal came before the race was over
    failed: int  # clips that were recorded as failed


class Calibration:
    """One calibration. Raises an InputError before any clip is made for what can't be asked."""

    def __init__(self, job: JobConfig, budget: Budget) -> None:
        self.budget = budget
        methods: dict[str, MethodConfig] = {"numina": job.method}
        for name, method in job.variants.items():
            if all(method.named() != other.named() for other in methods.values()):
                methods[name] = method
        self.methods = methods
        self.names = [PLAIN, *methods]
        if budget.clips is not None and budget.clips < len(self.names):
            raise ConfigError(
                f"budget is {budget}, fewer than the {len(self.names)} candidates; give at least one clip for each, or"
                " fewer variants"
            )
        known = Store(job.output, single_writer=True).hub_commits()
        self.judge: JudgeConfig = pinned_judge(judge_config(job.verify.judge, job.judge), known)
        inspect_judge(self.judge)
        alone = replace(job, strategies=[PLAIN, "numina"], samples=1, shard="0/1", prompts_bad="skip")
        self.job = replace(alone, variants={name: own for name, own in methods.items() if name != "numina"})
        self.dtype = prepare(self.job).dtype
        self.hashes = {name: config_hash(self.job.row_config(name, self.dtype)) for name in self.names}
        self._folder = tempfile.TemporaryDirectory(prefix="numina-")  # the same sample is drawn at every start
        place = f"{self._folder.name}/sample.parquet"
        self.sample: list[Sampled] = draw_sample(self.job, budget.clips or MOST_PROMPTS, place)
        self.job = replace(self.job, prompts=place)
        self.asked = job.prompts
        self._rows: dict[str, dict[Sampled, Row]] = {}
        self._verdicts: dict[str, Row] = {}

    def plan(self) -> str:
        """What will be done at most, in a line."""
        rungs = f", {racing.most_rungs(len(self.names), self.budget.clips)} rungs" if self.budget.clips else ""
        return (
            f"{len(self.names)} candidates ({', '.join(self.names)}), at most {self.budget}{rungs}, on"
            f" {len(self.sample)} prompts of {self.asked} at most, judged by {self.judge.name}"
        )

    def run(self, jobs: Jobs, told: Callable[[str], None]) -> Result:
        """Races until the budget is spent or one is left; `jobs` gets each rung's progress, `told` a line for each."""
        began, rungs = time.monotonic(), 0
        race, stopped = racing.start(self.names), False
        self._read()
        first = self._made()
        if self.budget.hours is not None and not all(self._made().values()):
            told(f"first, a clip of each of {len(self.names)} candidates shows what they cost")
            stopped = self._rung(Rung(candidates=tuple(self.names), prompts=1), jobs).draining
        while True:
            made = self._made()
            race, rung = racing.next_rung(
                race,
                self.budget.amount,
                len(self.sample),
                self._costs(race.prompts),
                None if self.budget.hours else made,
            )
            if rung is None and not race.prompts:
                raise ConfigError(self._too_small(made))
            if rung is None or stopped:
                stopped = stopped and rung is not None
                break
            rungs += 1
            new = sum(max(0, rung.prompts - made[name]) for name in rung.candidates)
            there = sum(made.values())
            left = ""
            if self.budget.clips and (done := there - sum(first.values())):
                seconds = (time.monotonic() - began) / done * (self.budget.clips - there)
                left = f"; at most {_duration(seconds)} left"
            told(
                f"rung {rungs}: {len(rung.candidates)} candidates left, on {rung.prompts} prompts: {new} new clips,"
                f" {there} are there, budget {self.budget}{left}"
            )
            outcome = self._rung(rung, jobs)
            stopped = outcome.draining  # also if its last clip is finished
            if not outcome.stopped:
                before, race = race, racing.after_rung(race, rung, self.values())
                for name in before.left:
                    if name in race.out:
                        told(f"  {name}: {_out(race, name)}")
        return self._result(race, stopped)

    def values(self) -> Values:
        """CountAcc by candidate, in the sample's order."""
        return {name: [self._accuracy(name, key) for key in self.sample] for name in self.names}

    # --- rungs ---

    def _rung(self, rung: Rung, jobs: Jobs) -> JobProgress:
        """Makes and judges what a rung lacks."""
        variants = {name: own for name, own in self.job.variants.items() if name in rung.candidates}
        strategies = [name for name in (PLAIN, "numina") if name in rung.candidates]
        job = replace(self.job, strategies=strategies, variants=variants, limit=rung.prompts)
        outcome = run_job(prepare(job), jobs)
        if not outcome.stopped:  # judging may take longer than whoever stops it waits
            self._read()
        return outcome

    def _too_small(self, made: Mapping[str, int]) -> str:
        """What is wrong with a budget that pays for no prompt."""
        if self.budget.hours is None:
            there, least = sum(made.values()), sum(made.values()) + sum(not number for number in made.values())
            return (
                f"budget is {self.budget}, and the output has {there} clips of the candidates; give budget={least} or"
                " more, or another output"
            )
        spent = sum((self._costs(1) or {}).values()) / 3600
        return (
            f"budget is {self.budget}, and one prompt takes {spent:.2g} rank-hours with {len(self.names)} candidates;"
            " give a larger budget, or fewer variants"
        )

    def _read(self) -> None:
        """Rows and verdicts as they are in the output; what isn't judged yet is."""
        if Store(self.job.output, single_writer=True).run_config() is None:
            self._rows = {name: {} for name in self.names}
            return
        store, asked = Store.reader(self.job.output), set(self.sample)
        names = {digest: name for name, digest in self.hashes.items()}
        self._rows = {name: {} for name in self.names}
        for row in python_rows(store.rows()):
            name, key = names.get(row["config_hash"]), sample_of(row)[:3]
            if name is not None and key in asked and not row["sample"] and not row["attempt"]:
                self._rows[name][key] = row
        if any(self._rows.values()):
            evaluate(store, self.judge)
            self._verdicts = {own["key"]: own for own in store.evaluations(self.judge.name).to_pylist()}

    def _made(self) -> dict[str, int]:
        """Clips of each candidate that are there."""
        return {name: len(rows) for name, rows in self._rows.items()}

    def _costs(self, prompts: int) -> dict[str, float] | None:
        """Rank-seconds of a clip by candidate, at most, of the first prompts alone: the same at every start."""
        if self.budget.hours is None:
            return None
        first = set(self.sample[: max(1, prompts)])
        found = {
            name: max((rank_seconds(row) for key, row in rows.items() if key in first), default=0.0)
            for name, rows in self._rows.items()
        }
        most = max(found.values()) or 1.0  # of candidates whose clips failed
        return {name: cost or most for name, cost in found.items()}

    def _accuracy(self, name: str, key: Sampled) -> float:
        row = self._rows[name].get(key)
        verdict = None if row is None else self._verdicts.get(row["key"])
        accuracy = None if verdict is None else verdict["count_accuracy"]
        return float("nan") if accuracy is None else float(accuracy)

    # --- what came out ---

    def _result(self, race: Race, stopped: bool) -> Result:
        values = self.values()
        chosen = racing.choice(race, values) if race.prompts else "numina"
        rows = [row for own in self._rows.values() for row in own.values()]
        reads = {name: self._reads(name) for name in self.methods}
        standings = []
        for name in self.names:
            known = [value for value in values[name][: race.made[name]] if value == value]
            costs = [rank_seconds(row) for row in self._rows[name].values()]
            shares = agreements(reads.get(name, []))
            standings.append(
                Standing(
                    name=name,
                    accuracy=mean_interval(known, SHOWN_ALPHA),
                    prompts=len(known),
                    gain=None if name == PLAIN else racing.gain(race, values, name),
                    state="chosen" if name == chosen else _out(race, name),
                    cost=sum(costs) / len(costs) if costs else None,
                    reading=shares[0].share if shares else None,
                )
            )
        model = next((row for row in rows), {"model": self.job.model.path, "model_revision": ""})
        return Result(
            chosen=chosen,
            method=self.methods[chosen],
            verdict=racing.verdict(race, values, chosen),
            standings=sorted(standings, key=lambda own: (own.name != chosen, -own.accuracy.mean)),
            agreement=agreements(reads[chosen]),
            budget=self.budget,
            clips=len(rows),
            seconds=sum(map(rank_seconds, rows)),
            prompts=self.asked,
            judge=self.judge.name,
            model=model["model"],
            revision=model["model_revision"] or "",
            stopped=stopped,
            failed=sum(
                key not in self._rows[name] for name, number in race.made.items() for key in self.sample[:number]
            ),
        )

    def _reads(self, name: str) -> list[Any]:
        plain = {key: self._verdicts.get(row["key"]) for key, row in self._rows[PLAIN].items()}
        return [read for key, row in self._rows[name].items() for read in reads_of(row, plain.get(key))]


def _out(race: Race, name: str) -> str:
    """Where a candidate is that wasn't chosen."""
    if name not in race.out:
        return "not told apart"
    own = race.out[name]
    return f"worse than {own.rival}" if own.why == "worse" else own.why


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 7200 else f"{seconds / 60:.0f} min"
