"""The tables that `evaluate` and `compare` print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.cli.terminal import console, say

if TYPE_CHECKING:
    from cluster.dataset.store import Store
    from cluster.evaluation.judged import Evidence


def show_strategies(store: Store, evidence: Evidence | None = None) -> None:
    """Prints each strategy's sums by every judge that counts; keeps them in the output."""
    from cluster.cli.tables import difference_text, strategy_table
    from cluster.evaluation.summary import summarize, write_summary

    summary = summarize(store, evidence)
    for judge in summary.judges:
        console.print(strategy_table(judge, summary.cost_unit))
        for own in judge.strategies:
            for other, difference in own.against.items():
                say(f"CountAcc {own.strategy} − {other}: {difference_text(difference)}")
        for band in judge.readings:
            say(
                f"confidence {band.least:g} to {band.most:g}: {band.right:.3f} of {band.nouns} identified counts are"
                f" the plain clip's, by {judge.judge}"
            )
    if summary.plain:
        say(f"{summary.plain} of {summary.rows} clips are of prompts that ask for no count, and in no CountAcc")
    for pair, share in summary.agreement.items():
        say(f"agreement of {pair}: {share:.3f} of all counts by frame and noun")
    say(f"summary: {store.root}/{write_summary(store, summary)[0]}")
