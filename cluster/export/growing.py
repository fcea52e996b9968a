"""A growing export: clips of an output, as they become ready, into closed shards."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cluster.dataset.store import Store
from cluster.export.annotations import read_annotations
from cluster.export.arrivals import Arrivals
from cluster.export.columns import json_rows
from cluster.export.config import ExportConfig
from cluster.export.copying import LostVideoError, Report, read_video
from cluster.export.shards import Sample, Shards, Writer
from cluster.export.whole_rows import ANNOTATED
from cluster.observability.status import status_of

POLL_SECONDS = 2.0  # between two looks at the output, at least
SHARE = 0.1  # of its time that a following export looks, at most

Row = dict[str, Any]

BLOCK, BATCH = 512, 32  # rows that become Python's at a time; clips that a thread reads in a row


class Lost(NamedTuple):
    """A video that is left out."""

    name: str
    problem: str


@dataclass
class Growing:
    """An export that grows with its output."""

    store: Store
    config: ExportConfig
    shards: Shards
    arrivals: Arrivals
    writer: type[Writer]
    report: Report
    lost: dict[str, str] = field(default_factory=dict)  # videos left out, and why
    _queue: list[pa.Table] = field(default_factory=list)  # rows that are ready and in no shard

    def mend(self) -> None:
        """Write damaged shards again, from the same clips."""
        for number in list(self.shards.damaged()):
            index = self.shards.index_of(self.shards.closed[number])
            table = self.arrivals.again(index)
            self.shards.write(number, self._samples(table, len(table)), len(table), self.writer, exact=False)

    def once(self) -> None:
        """Export all that is there; of a job that is at work what it has settled."""
        self._take(final=not self.store.others())
        self._close(rest=True)

    def follow(self) -> None:
        """Export clips as they become ready, until the job has ended and all are exported."""
        while True:
            began = monotonic()
            ended = self._has_ended()  # asked first: what the job ended with is then seen
            self._take(final=ended)
            looked = monotonic() - began
            self._close(rest=ended)
            if ended:
                return
            sleep(max(POLL_SECONDS, looked / SHARE))

    def _has_ended(self) -> bool:
        """Whether nobody is at work on the output, and nothing is left to do."""
        return not self.store.others() and status_of(self.store).left in (0, None)

    def _take(self, *, final: bool) -> None:
        for ready in self.arrivals.look(final=final):
            self._queue.append(ready)
            self._close(rest=False)

    def _close(self, *, rest: bool) -> None:
        """Close shards of the clips that are ready: full ones, with `rest` also the last one."""
        most = self.config.shard_clips
        while (queued := sum(map(len, self._queue))) >= (1 if rest else most):
            table = pa.concat_tables(self._queue, promote_options="permissive")
            self.report(self.shards.clips, self.shards.clips + queued)
            number, samples = len(self.shards.closed), self._samples(table, most)
            lost = len(self.lost)
            clips = self.shards.write(number, samples, most, self.writer, exact=not rest)
            if len(self.lost) > lost:
                table = table.filter(pc.invert(pc.is_in(table["file_name"], pa.array(list(self.lost), pa.string()))))
            self._queue = [table.slice(clips)]
        self.report(self.shards.clips, self.shards.clips + sum(map(len, self._queue)))

    def _samples(self, table: pa.Table, wanted: int) -> Iterator[Sample]:
        """The clips of rows, without those whose videos are lost; `wanted` of them are read ahead."""
        with ThreadPoolExecutor(self.store.files.readers) as readers:
            left, ahead = _batches(table, wanted), deque[Future[list[Sample | Lost]]]()
            while True:
                while len(ahead) <= self.store.files.readers and (some := next(left, None)):
                    ahead.append(readers.submit(self._read, *some))
                if not ahead:
                    return
                for sample in ahead.popleft().result():
                    if isinstance(sample, Sample):
                        yield sample
                    else:
                        self.lost[sample.name] = sample.problem

    def _read(self, rows: list[Row], columns: pa.Table) -> list[Sample | Lost]:
        """Clips with their videos, or what is wrong with those."""
        found = list[Sample | Lost]()
        for place, row in enumerate(rows):
            try:
                video = read_video(self.store, row["file_name"], row["video_sha256"])
            except LostVideoError as problem:
                found.append(Lost(row["file_name"], str(problem)))
            else:
                row[ANNOTATED] = read_annotations(self.store, row)
                found.append(Sample(row=row, columns=columns, place=place, video=video))
        return found


def _batches(table: pa.Table, wanted: int) -> Iterator[tuple[list[Row], pa.Table]]:
    """Some rows at a time, as JSON has them and as they are: the first `wanted` ones, then one by one."""
    start = 0
    while start < len(table):
        some = table.slice(start, min(BLOCK, max(1, wanted - start)))
        rows = json_rows(some)
        yield from ((rows[own : own + BATCH], some.slice(own, BATCH)) for own in range(0, len(rows), BATCH))
        start += len(some)
