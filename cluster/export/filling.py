"""What goes into a shard: rows with their videos and annotations, read ahead; several shards by a process each."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa

from cluster.dataset.store import Store
from cluster.export.annotations import read_annotations
from cluster.export.columns import json_rows
from cluster.export.copying import LostVideoError, read_video
from cluster.export.shards import Filled, Sample, Writer, fill
from cluster.export.whole_rows import ANNOTATED
from cluster.storage.open import open_files
from cluster.storage.posix import PosixFiles
from cluster.storage.protocol import Files

MOST_PROCESSES = 8  # more wait for the disk
WORTH = 1000  # clips from which on processes are started: that takes as long as to export some hundred
BLOCK, BATCH = 512, 32  # rows that become Python's at a time; clips that a thread reads in a row, at most
AHEAD_BYTES = 2**26  # of videos that are read ahead, about

Row = dict[str, Any]


class Lost(NamedTuple):
    """A video that is left out."""

    name: str
    problem: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """A shard to fill."""

    store: Store
    files: Files  # of the export
    name: str
    table: pa.Table  # rows to take, in their order; they have VERDICT's columns
    most: int  # clips
    writer: type[Writer]
    exact: bool  # as `shards.fill` takes it

    def fill(self) -> tuple[Filled | None, dict[str, str]]:
        """The shard, and the videos of its rows that are lost: what is wrong with each."""
        lost = dict[str, str]()
        samples = _samples(self.store, self.table, self.most, lost)
        return fill(self.files, self.name, samples, self.most, self.writer, exact=self.exact), lost


def at_once(store: Store, files: Files, clips: int, most: int) -> int:
    """How many shards of `most` clips are best filled at once. Object stores are waited for, which threads can."""
    local = isinstance(store.files, PosixFiles) and isinstance(files, PosixFiles)
    return min(MOST_PROCESSES, len(os.sched_getaffinity(0)), clips // most) if local and clips >= WORTH else 1


def fill_at_once(jobs: Sequence[Job]) -> list[tuple[Filled | None, dict[str, str]]]:
    """`Job.fill` of each, by a process of its own. Those live on for the next call, five minutes at most."""
    from joblib import Parallel, delayed  # 0.1 s, for those who have many shards

    made: list[tuple[Filled | None, dict[str, str]]] = Parallel(n_jobs=len(jobs), batch_size=1)(
        delayed(_fill)(
            os.getpid(), job.store.place, job.files.root, job.name, _ipc(job.table), job.most, job.writer, job.exact
        )
        for job in jobs
    )
    return made


def _ipc(table: pa.Table) -> bytes:
    """Rows for another process: pickled, a slice would take all that it is a slice of."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    rows: bytes = sink.getvalue().to_pybytes()
    return rows


def _fill(
    parent: int, place: str, folder: str, name: str, rows: bytes, most: int, writer: type[Writer], exact: bool
) -> tuple[Filled | None, dict[str, str]]:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the export's, which ends its processes
    _end_with(parent)
    store, files = Store.reader(place), open_files(folder, single_writer=True)
    table = pa.ipc.open_stream(rows).read_all()
    return Job(store=store, files=files, name=name, table=table, most=most, writer=writer, exact=exact).fill()


@cache
def _end_with(parent: int) -> None:
    """This process ends when its parent has: one that was killed can't see to it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _samples(store: Store, table: pa.Table, wanted: int, lost: dict[str, str]) -> Iterator[Sample]:
    """The clips of rows, without those whose videos are lost; `wanted` of them are read ahead."""
    with ThreadPoolExecutor(store.files.readers) as readers:
        rows, ahead = _rows(table, wanted), deque[Future[list[Sample | Lost]]]()
        size, read, clips = 1, 0, 0  # clips of a batch: few until it is known how large they are
        while True:
            while len(ahead) <= store.files.readers and (some := list(islice(rows, size))):
                ahead.append(readers.submit(_read, store, some))
            if not ahead:
                return
            for sample in ahead.popleft().result():
                if isinstance(sample, Sample):
                    read, clips = read + len(sample.video), clips + 1
                    yield sample
                else:
                    lost[sample.name] = sample.problem
            most = AHEAD_BYTES * clips // max(1, read * store.files.readers)
            size = max(1, min(BATCH, most))


def _read(store: Store, rows: Sequence[tuple[Row, pa.Table, int]]) -> list[Sample | Lost]:
    """Clips with their videos, or what is wrong with those."""
    found = list[Sample | Lost]()
    for row, columns, place in rows:
        try:
            video = read_video(store, row["file_name"], row["video_sha256"])
        except LostVideoError as problem:
            found.append(Lost(row["file_name"], str(problem)))
        else:
            row[ANNOTATED] = read_annotations(store, row)
            found.append(Sample(row=row, columns=columns, place=place, video=video))
    return found


def _rows(table: pa.Table, wanted: int) -> Iterator[tuple[Row, pa.Table, int]]:
    """Rows as JSON has them, and their places in tables: the first `wanted` ones some at a time, then one by one."""
    start = 0
    while start < len(table):
        some = table.slice(start, min(BLOCK, max(1, wanted - start)))
        yield from ((row, some, place) for place, row in enumerate(json_rows(some)))
        start += len(some)
