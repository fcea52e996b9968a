"""`numina status`: how far an output is."""

from datetime import UTC, datetime

from cluster.cli.terminal import duration, pace, say


def status(output: str) -> None:
    """How far an output is, from storage alone."""
    from cluster.dataset.store import Store
    from cluster.observability.status import status_of

    now = status_of(Store(output, single_writer=True))
    left = "" if now.left is None else f", {now.left} left of {now.asked}"
    say(f"{now.done} done, {now.failed} failed{left}")
    if now.rate_per_hour:
        say(pace(now))
    if now.last_commit:
        ago = (datetime.now(UTC) - now.last_commit).total_seconds()
        say(f"last commit {duration(max(0, ago))} ago")  # storage has a clock of its own
