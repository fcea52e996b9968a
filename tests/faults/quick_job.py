"""A job whose model does nothing for 20 ms: everything else is real (gangs of ranks that meet, layouts, mp4s, commits).

    python -m tests.faults.quick_job DIARY key=value…

Prompts with the words poison, bug or endless end a rank, raise an error, never return; one with unfit is refused.
Every call that a gang computes leaves a line in DIARY, so that a test can say what was done twice. Exits as `numina
run` does.
"""

import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist

import cluster.workers.member
import cluster.workers.rank
from cluster.job.config import load_job
from cluster.job.prepared import prepare
from cluster.observability.logs import set_up
from cluster.observability.progress import JobProgress
from cluster.runtime.run import run_job
from numina.errors import InputError
from numina.layout import Capture
from numina.prompts.tokens import TokenSpans
from pipelines.parallel.shard import limit_collectives
from pipelines.sampling.clip import Clip, Identified, Request

SECONDS = float(os.environ.get("NUMINA_QUICK_SECONDS", "0.02"))
FRAMES, SIDE = 5, 32


class QuickRank(cluster.workers.rank.Rank):
    """A rank without a model. It meets the others in every call, as attention would have it."""

    def load(self, first: cluster.workers.member.Arrival) -> dict[str, float]:
        if self.spec.ranks > 1:
            assert first.port is not None
            patience = timedelta(seconds=self.spec.start_timeout)
            meeting = self.meeting or dist.TCPStore(first.host, first.port, is_master=False, timeout=patience)
            dist.init_process_group("gloo", store=meeting, rank=self.rank, world_size=self.spec.ranks, timeout=patience)
        return {}

    def warm_up(self) -> dict[str, float]:
        if self.spec.ranks > 1:
            limit_collectives(timedelta(seconds=self.spec.step_timeout))
        self.requests: dict[str, Request] = {}
        return {}

    def work(self, phase: str, keys: Sequence[str]) -> bool:
        """Takes its time; whether this rank answers."""
        if self.rank == 0 and "NUMINA_DIARY" in os.environ:
            diary = os.open(os.environ["NUMINA_DIARY"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(diary, "".join(f"{phase} {key}\n" for key in keys).encode())
            os.close(diary)
        time.sleep(SECONDS)
        if self.spec.ranks > 1:
            dist.barrier()
        return self.rank == 0

    @ray.method(num_returns=2)
    def identify(self, requests: Sequence[Request], method: Any, texts: Any) -> Any:
        self.requests |= {request.key: request for request in requests}
        if self._skips(requests):
            return None, None
        obey(requests)
        if not self.work("identify", [request.key for request in requests]):
            return None, None
        return [
            InputError(f"{request.prompt!r} is unfit") if "unfit" in request.prompt else identified(request)
            for request in requests
        ], None

    @ray.method(num_returns=2)
    def plain(self, requests: Sequence[Request], texts: Any) -> Any:
        if self._skips(requests):
            return None, None
        obey(requests)
        return self.clips("plain", [request.key for request in requests])

    @ray.method(num_returns=2)
    def finish(self, keys: Sequence[str]) -> Any:
        return self.clips("finish", keys)

    @ray.method(num_returns=2)
    def guide(self, keys: Sequence[str], plans: Any) -> Any:
        return self.clips("guide", keys)

    def clips(self, phase: str, keys: Sequence[str]) -> Any:
        if not self.work(phase, keys):
            return None, None
        return [clip(key) for key in keys], None

    def drop(self, keys: Sequence[str]) -> None:
        pass


class SlowToLoad(QuickRank):
    """There is time to kill it before it stands."""

    def load(self, first: cluster.workers.member.Arrival) -> dict[str, float]:
        time.sleep(2)
        return super().load(first)


class ShortOfMemory(QuickRank):
    """Runs out of GPU memory at its first clip."""

    short = True

    @ray.method(num_returns=2)
    def plain(self, *arguments: Any) -> Any:
        if self.short:
            self.short = False
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 97 GiB")
        return super().plain(*arguments)


class Misshapen(QuickRank):
    """Has a bug: it multiplies what can't be multiplied."""

    @ray.method(num_returns=2)
    def plain(self, *arguments: Any) -> Any:
        return torch.ones(2, 3) @ torch.ones(2, 3), None


def obey(requests: Sequence[Request]) -> None:
    """Some prompts say what is to go wrong."""
    prompts = " ".join(request.prompt for request in requests)
    if "poison" in prompts:
        os._exit(1)
    if "bug" in prompts:
        raise KeyError("a bug")
    if "endless" in prompts:
        time.sleep(1e6)


def clip(key: str) -> Clip:
    """Frames that depend on the key alone."""
    pixels = np.frombuffer(bytes.fromhex(key), np.uint8)
    return Clip(np.resize(pixels, (FRAMES, SIDE, SIDE, 3)), b"", {"denoise": SECONDS})


def identified(request: Request) -> Identified:
    """As many peaks per noun as its key says: right for some prompts, wrong for others."""
    responses = np.zeros((len(request.targets), 3, 16, 16), np.float32)
    for noun, target in enumerate(request.targets):
        shown = target.count + int(request.key[0], 16) % 2
        for number in range(shown):
            responses[noun, :, 2 + 4 * (number // 4), 2 + 4 * (number % 4)] = 1.0
    spans = tuple(TokenSpans((noun,), (noun,), (noun,)) for noun in range(len(request.targets)))
    return Identified(Capture(responses=responses, components=None), spans, {"identify": SECONDS})


def main() -> int:
    os.environ["NUMINA_DIARY"] = sys.argv[1]
    cluster.workers.rank.Rank = QuickRank  # type: ignore[misc]
    job = load_job("demo", sys.argv[2:])
    set_up(job.cluster.log_format)
    shown = ""

    def report(now: JobProgress) -> None:
        nonlocal shown
        line = f"{now.done} done, {now.failed} failed of {now.total}: {now.gangs}"
        if line != shown:
            print(line, flush=True)
        shown = line

    outcome = run_job(prepare(job), report)
    print(f"{outcome.generated} generated")
    return 3 if outcome.stopped else int(outcome.failed > 0)


if __name__ == "__main__":
    from tests.faults.quick_job import main  # so that ranks find the class by a module's name

    sys.exit(main())
