"""A job on real gangs whose ranks and drivers are killed and stopped, again and again, loses and doubles nothing.

The short form kills some; `NUMINA_FAULTS=long` kills 20 ranks and 3 drivers and stops 2 ranks, over 200 clips.
"""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from cluster.dataset.store import Store
from pipelines.video.mp4 import decode_mp4
from tests.faults.jobs import Job, numbered_prompts
from tests.forks import family, words

LONG = os.environ.get("NUMINA_FAULTS") == "long"
PROMPTS = 100 if LONG else 24  # two strategies of each
RANK_KILLS, STOPS, DRIVER_KILLS = (20, 2, 3) if LONG else (3, 1, 1)
STEP_TIMEOUT = 8.0
NOTICED = 15.0  # seconds until a loss is seen, at most: on a busy machine, too
LOST, STANDS = "is lost and will be replaced", "is ready after"  # what the driver logs of a gang

pytestmark = pytest.mark.slow


def test_kills_of_ranks_and_drivers_lose_and_double_nothing(tmp_path: Path) -> None:
    """Ranks are killed and stopped, drivers killed and started again: every row once with its whole video, no clip
    recorded as failed, at most one clip per phase and gang made again for each loss, no process left."""
    chance = random.Random(0)
    faults = ["rank"] * RANK_KILLS + ["stop"] * STOPS + ["driver"] * DRIVER_KILLS
    chance.shuffle(faults)
    # Attempts without end: a clip that is on its way at many of the kills is no poison.
    # One gang of two: work waits for it to stand again, so that a few clips are enough for many faults.
    gangs = ["parallel.ulysses=2", f"cluster.step_timeout={STEP_TIMEOUT}"]
    job = Job(tmp_path, numbered_prompts(PROMPTS), "cluster.attempts=30", "strategies=[baseline,numina]", *gangs)
    job.start()
    began = time.monotonic()
    happened, noticed, back = Counter[str](), dict[str, list[float]](), list[float]()
    for fault in faults:
        if not job.wait_for_work(chance.randint(2, 6)):
            break
        ranks, lost, stood = job.ranks(), job.log().count(LOST), job.log().count(STANDS)
        if fault == "driver" or not ranks:
            kill_driver(job)
        else:
            os.kill(chance.choice(ranks).pid, signal.SIGKILL if fault == "rank" else signal.SIGSTOP)
            if (seconds := job.wait_for_line(LOST, lost + 1)) is not None:
                noticed.setdefault(fault, []).append(seconds)
            if (seconds := job.wait_for_line(STANDS, stood + 1)) is not None:
                back.append(seconds)
        happened[fault] += 1
    assert job.wait() == 0, job.log()[-3000:]
    took = time.monotonic() - began

    assert happened == Counter(faults), "the job was over before all faults: too few clips"
    store = Store(str(tmp_path / "out"))
    rows = store.rows().to_pylist()
    assert len({(row["id"], row["strategy"]) for row in rows}) == len(rows) == 2 * PROMPTS
    assert not store.failures()
    for row in rows:
        assert decode_mp4(store.read(row["file_name"])).shape == (5, 32, 32, 3)
    calls = Counter(job.diary())
    firsts = {call: times for call, times in calls.items() if call.split()[0] in ("identify", "plain")}
    again = sum(firsts.values()) - len(firsts)
    losses = happened["rank"] + happened["stop"]
    flights = 2  # clips in flight of a gang: one in each phase; with its driver go those that are being written, too
    print(
        f"\n{len(rows)} rows, {dict(happened)}, {took:.0f} s; {again} clips made again;"
        f" noticed after {max(noticed['rank']):.1f} s (killed), {max(noticed['stop']):.1f} s (stopped, watchdog"
        f" {STEP_TIMEOUT:.0f} s) at most; a gang stood again {max(back):.1f} s later at most"
    )
    assert again <= flights * losses + 2 * flights * happened["driver"]
    assert max(noticed["rank"]) <= NOTICED
    assert max(noticed["stop"]) <= STEP_TIMEOUT + NOTICED


def kill_driver(job: Job) -> None:
    """SIGKILL of the driver ends its Ray too; then the same command is given again. Ray's two agents, which hold
    nothing, try to reach their head for another minute."""
    orphans = [process for process in family(job.process.pid) if "Agent" not in "".join(words(process)[:1])]
    job.process.kill()
    job.process.wait()
    _, alive = psutil.wait_procs(orphans, timeout=100)
    assert not alive, alive
    job.start()
