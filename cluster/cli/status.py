"""`numina status`: how far an output is."""

from datetime import UTC, datetime

from cluster.cli.terminal import amount, duration, pace, say


def status(output: str) -> None:
    """Show how much of an output is done; reads storage only."""
    from cluster.dataset.store import Store
    from cluster.evaluation.cost import cost_of
    from cluster.observability.status import status_of

    store = Store.reader(output)
    now, cost = status_of(store), cost_of(store)
    left = "" if now.left is None else f", {now.left} left of {now.asked}"
    plain = f" ({now.plain} of prompts without counts)" if now.plain else ""
    made = f"; {amount(now.done, 'videos')} made for them" if now.completed != now.done else ""
    say(f"{now.completed} done{plain}, {now.failed} failed{left}{made}")
    if now.skipped:
        say(f"{amount(now.skipped, 'rows')} of the prompt set skipped: {output}/REJECTED*.jsonl says why")
    if now.rate_per_hour:
        say(pace(now))
    if cost:
        say(f"cost: {cost.sentence()}")
    if now.last_commit:
        ago = (datetime.now(UTC) - now.last_commit).total_seconds()
        say(f"last commit {duration(max(0, ago))} ago")  # storage has a clock of its own
