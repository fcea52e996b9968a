"""A growing export: clips of an output, as they become ready, into closed shards."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.dataset.store import Store
from cluster.export.annotations import read_annotations
from cluster.export.arrivals import ANNOTATED, Arrivals
from cluster.export.columns import json_records
from cluster.export.config import ExportConfig
from cluster.export.copying import LostVideoError, Report, read_video
from cluster.export.shards import Sample, Shards, Writer
from cluster.observability.status import status_of

POLL_SECONDS = 2.0  # between two looks at the output, at least
SHARE = 0.1  # of its time that a following export looks, at most

Row = dict[str, Any]

_AHEAD = 64  # videos that are read ahead


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

    def follow(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Export clips as they become ready, until the job has ended and all are exported."""
        while True:
            began = time.monotonic()
            ended = self._has_ended()  # asked first: what the job ended with is then seen
            self._take(final=ended)
            looked = time.monotonic() - began
            self._close(rest=ended)
            if ended:
                return
            sleep(max(POLL_SECONDS, looked / SHARE))

    def _has_ended(self) -> bool:
        """Whether nobody is at work on the output, and nothing is left to do."""
        return not self.store.others() and status_of(self.store).left in (0, None)

    def _take(self, *, final: bool) -> None:
        if (ready := self.arrivals.look(final=final)) is not None:
            self._queue.append(ready)

    def _close(self, *, rest: bool) -> None:
        """Close shards of the clips that are ready: full ones, with `rest` also the last one."""
        most = self.config.shard_clips
        while (queued := sum(map(len, self._queue))) >= (1 if rest else most):
            table = pa.concat_tables(self._queue, promote_options="permissive")
            self.report(self.shards.clips, self.shards.clips + queued)
            number, samples = len(self.shards.closed), self._samples(table, most)
            clips = self.shards.write(number, samples, most, self.writer, exact=not rest)
            kept = table.filter(pc.invert(pc.is_in(table["file_name"], pa.array(list(self.lost), pa.string()))))
            self._queue = [kept.slice(clips)]
        self.report(self.shards.clips, self.shards.clips + sum(map(len, self._queue)))

    def _samples(self, table: pa.Table, wanted: int) -> Iterator[Sample]:
        """The clips of rows, without those whose videos are lost; `wanted` of them are read ahead."""
        with ThreadPoolExecutor(max(4, self.store.files.readers)) as readers:
            rows = _rows(table)
            while some := list(islice(rows, min(_AHEAD, max(1, wanted)))):
                for (row, _), sample in zip(some, readers.map(lambda own: self._sample(*own), some), strict=True):
                    if isinstance(sample, Sample):
                        yield sample
                        wanted -= 1
                    else:
                        self.lost[row["file_name"]] = sample

    def _sample(self, row: Row, columns: pa.Table) -> Sample | str:
        """A clip, or what is wrong with its video."""
        try:
            video = read_video(self.store, row["file_name"], row["video_sha256"])
        except LostVideoError as problem:
            return str(problem)
        row[ANNOTATED] = read_annotations(self.store, row)
        return Sample(row=row, columns=columns, video=video)


def _rows(table: pa.Table) -> Iterator[tuple[Row, pa.Table]]:
    """Each row as JSON has it and as it is, some made at a time."""
    for start in range(0, len(table), 256):
        some = table.slice(start, 256)
        yield from zip(json_records(some), (some.slice(place, 1) for place in range(len(some))), strict=True)
