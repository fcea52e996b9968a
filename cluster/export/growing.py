"""A growing export: clips of an output, as they become ready, into closed shards."""

from dataclasses import dataclass, field
from time import monotonic, sleep

import pyarrow as pa
import pyarrow.compute as pc

from cluster.dataset.store import Store
from cluster.export.arrivals import Arrivals
from cluster.export.config import ExportConfig
from cluster.export.copying import Report
from cluster.export.filling import Job, at_once, fill_at_once
from cluster.export.shards import Shards, Writer, shard_name
from cluster.observability.status import status_of

POLL_SECONDS = 2.0  # between two looks at the output, at least
SHARE = 0.1  # of its time that a following export looks, at most


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
            filled, _ = self._job(number, table, len(table), exact=False).fill()
            if filled is not None:
                self.shards.close(number, filled)

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
            if (several := at_once(self.store, self.shards.files, queued, most)) > 1:
                table = self._close_several(table, several)
            else:
                table = self._close_one(table, exact=not rest)
            self._queue = [table]
        self.report(self.shards.clips, self.shards.clips + sum(map(len, self._queue)))

    def _close_one(self, table: pa.Table, *, exact: bool) -> pa.Table:
        """Close a shard of the first of these rows; those that are left. One whose video is lost leaves no gap."""
        number = len(self.shards.closed)
        filled, lost = self._job(number, table, self.config.shard_clips, exact=exact).fill()
        if lost:
            self.lost |= lost
            table = table.filter(pc.invert(pc.is_in(table["file_name"], pa.array(list(lost), pa.string()))))
        if filled is None:
            return table
        self.shards.close(number, filled)
        return table.slice(len(filled.index))

    def _close_several(self, table: pa.Table, several: int) -> pa.Table:
        """The same of some shards, each filled by a process of its own. From the first lost video on they would hold
        other clips: those are filled again, one by one."""
        most, first = self.config.shard_clips, len(self.shards.closed)
        parts = [table.slice(own * most, most) for own in range(several)]
        jobs = [self._job(first + own, part, most, exact=True) for own, part in enumerate(parts)]
        made, whole = fill_at_once(jobs), True
        for number, (filled, _) in enumerate(made, first):
            whole = whole and filled is not None
            if filled is not None and whole:
                self.shards.close(number, filled)
            elif filled is not None:
                self.shards.files.remove(filled.place)
        table = table.slice((len(self.shards.closed) - first) * most)
        return table if whole else self._close_one(table, exact=True)

    def _job(self, number: int, table: pa.Table, most: int, *, exact: bool) -> Job:
        return Job(
            store=self.store,
            files=self.shards.files,
            name=shard_name(number, self.shards.ending),
            table=table,
            most=most,
            writer=self.writer,
            exact=exact,
        )
