"""The page's plots, by Matplotlib: static SVG in the page's own colours, each with its numbers as a table.

Shares are of targets: a noun of a clip. A target's detected count is the commonest over the frames; its accuracy is the
share of frames with exactly the asked count.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlencode

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from cluster.evaluation.clips import Clips, spread
from cluster.evaluation.judged import Judged
from cluster.evaluation.kept import Kept
from cluster.report.failures import Reason
from cluster.report.scores import StrategyScore, mean
from cluster.report.strategies import Sums
from cluster.report.svg import ACCENT, BAD, SERIES, SOFT, Drawing, drawing

_WIDTH = 4.7  # inches, which the page scales
_REASONS = 8  # that the plot of failures shows
_BEYOND = 3  # detected counts past the largest asked one that have a column of their own
_MARKERS = "osD^vPX*"
_MOST_STRATEGIES = len(SERIES)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure of the page and what stands beside it."""

    title: str
    note: str
    picture: Drawing
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class _Targets:
    """The nouns of a strategy's clips that the judge counted: arrays as long as each other."""

    asked: Int[np.ndarray, " k"]
    detected: Int[np.ndarray, " k"]
    accuracy: Float[np.ndarray, " k"]


def judge_plots(
    sums: Sums, clips: Clips, scores: Sequence[StrategyScore], judge: str, link: Mapping[str, str]
) -> list[Plot]:
    """What a judge's counts show; `link` is the state of the page that its links keep."""
    targets = {name: _targets(kept, clips, sums.judged) for name, kept in list(sums.kept.items())[:_MOST_STRATEGIES]}
    targets = {name: members for name, members in targets.items() if len(members.asked)}
    if not targets:
        return []
    plots = [_accuracy_by_count(targets, _Links(link), judge), _confusion(targets, _Links(link), judge)]
    return [*plots, *_cost(scores, judge)]


def _targets(kept: Kept, clips: Clips, judged: Judged) -> _Targets:
    places = spread(clips.starts[kept.clip], clips.targets[kept.clip])
    places = places[judged.commonest[places] >= 0]
    return _Targets(
        asked=clips.asked[places],
        detected=judged.commonest[places],
        accuracy=judged.single["count_accuracy"][places],
    )


class _Links:
    """Addresses of the page with filters set."""

    def __init__(self, kept: Mapping[str, str]) -> None:
        self.kept = kept

    def to(self, **filters: str | int) -> str:
        return "#" + urlencode({**self.kept, **filters})

    def to_cell(self, strategy: str, asked: int, detected: int) -> str:
        """Clips of a strategy with an asked and a detected count."""
        return self.to(strategy=strategy, count=asked, detected=detected)


def _accuracy_by_count(targets: Mapping[str, _Targets], links: _Links, judge: str) -> Plot:
    """A line per strategy."""
    asked = sorted({count for members in targets.values() for count in np.unique(members.asked).tolist()})
    shares = {
        name: {count: mean(members.accuracy[members.asked == count]) for count in asked}
        for name, members in targets.items()
    }
    numbers = {name: _numbers(members.asked) for name, members in targets.items()}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, (name, by_count) in enumerate(shares.items()):
            known = [(count, share) for count, share in by_count.items() if share is not None]
            x, y = [count for count, _ in known], [100 * share for _, share in known]
            axes.plot(x, y, color=SERIES[place], linewidth=1.4, zorder=2)
            dots = axes.scatter(x, y, s=22, color=SERIES[place], marker=_MARKERS[place], label=name, zorder=3)
            dots.set_urls([links.to(strategy=name, count=count) for count in x])
        axes.set(ylim=(-4, 104), yticks=range(0, 101, 25), xticks=asked, xlabel="asked", ylabel="right frames, %")
        axes.grid(axis="y")
        figure.legend(loc="outside upper left", ncols=min(3, len(shares)), handletextpad=0.2, columnspacing=1.2)

    names = list(targets)
    return Plot(
        title="Accuracy by count",
        note="Share of frames with exactly the asked count, by how many were asked for.",
        picture=drawing(_WIDTH, 2.7, draw, f"Accuracy by asked count, a line per strategy, by {judge}"),
        columns=["asked", *(column for name in names for column in (name, "targets"))],
        rows=[
            [str(count), *(text for name in names for text in (_share(shares[name][count]), str(numbers[name][count])))]
            for count in asked
        ],
    )


def _confusion(targets: Mapping[str, _Targets], links: _Links, judge: str) -> Plot:
    """A matrix per strategy: asked counts down, detected ones across."""
    asked = sorted({count for members in targets.values() for count in np.unique(members.asked).tolist()})
    found = sorted({count for members in targets.values() for count in np.unique(members.detected).tolist()})
    last = min(max(found[-1], asked[-1]), asked[-1] + _BEYOND)
    columns = [str(count) for count in range(last)] + [f"{last}+" if found[-1] > last else str(last)]
    cells = {
        name: _numbers(np.stack([members.asked, np.minimum(members.detected, last)], axis=1))
        for name, members in targets.items()
    }
    across = min(2, len(cells))
    down = -(-len(cells) // across)
    height = down * (0.62 + (_WIDTH / across - 0.4) * len(asked) / len(columns))

    def draw(figure: Figure) -> None:
        grid = figure.subplots(down, across, squeeze=False).ravel()
        for axes, (name, counted) in zip(grid, cells.items(), strict=False):
            _matrix(axes, asked, columns, counted, partial(links.to_cell, name))
            axes.set_title(name, loc="left")
        for axes in grid[len(cells) :]:
            axes.set_axis_off()

    return Plot(
        title="Asked against detected",
        note="Targets by asked count (down) and the commonest detected one (across); a frame marks what is right.",
        picture=drawing(
            _WIDTH, height, draw, f"Confusion of asked and detected counts, a matrix per strategy, by {judge}"
        ),
        columns=["strategy", "asked", *columns],
        rows=[
            [name, str(count), *(str(counted[count, place] or "–") for place in range(len(columns)))]
            for name, counted in cells.items()
            for count in asked
        ],
    )


def _numbers(values: np.ndarray) -> Counter[Any]:
    """How often each value, or each row of values as a tuple, is there."""
    found, times = np.unique(values, axis=0, return_counts=True)
    names = map(tuple, found.tolist()) if found.ndim > 1 else found.tolist()
    return Counter(dict(zip(names, times.tolist(), strict=True)))


def _matrix(
    axes: Axes,
    asked: Sequence[int],
    columns: Sequence[str],
    counted: Mapping[tuple[int, int], int],
    link: Callable[[int, int], str],
) -> None:
    font = min(7.5, 60 / len(columns))
    for row, count in enumerate(asked):
        total = sum(counted[count, found] for found in range(len(columns)))
        axes.add_patch(Rectangle((count - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=SOFT, linewidth=0.8, zorder=3))
        for found, name in enumerate(columns):
            number = counted[count, found]
            if number:
                url = None if name.endswith("+") else link(count, found)
                shade = 0.1 + 0.5 * number / total
                corner = (found - 0.5, row - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, facecolor=ACCENT, alpha=shade, linewidth=0, url=url))
                axes.text(found, row, str(number), ha="center", va="center_baseline", fontsize=font, url=url)
    ticks = range(0, len(columns), 1 if len(columns) < 13 else 2)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(asked) - 0.5, -0.5), aspect="equal")
    axes.set(xlabel="detected", ylabel="asked")
    axes.set_xticks(ticks, [columns[place] for place in ticks])
    axes.set_yticks(range(len(asked)), [str(count) for count in asked])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _cost(scores: Sequence[StrategyScore], judge: str) -> list[Plot]:
    """A bar per strategy whose clips' cost is known."""
    priced = [score for score in scores if score.cost_per_accepted is not None]
    if not priced:
        return []
    costs = [score.cost_per_accepted or 0.0 for score in priced]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        colours = [SERIES[place % len(SERIES)] for place, score in enumerate(scores) if score in priced]
        _bars(axes, [score.strategy for score in priced], costs, colours, [duration(cost) for cost in costs])
        axes.set(xlabel="rank-seconds for each verified clip")

    return [
        Plot(
            title="Cost per verified clip",
            note="Rank-seconds of all attempts, over the clips that this judge accepts.",
            picture=drawing(
                _WIDTH, 0.7 + 0.3 * len(priced), draw, f"Rank-seconds per verified clip, a bar per strategy, by {judge}"
            ),
            columns=["strategy", "verified", "clips", "rank-seconds per clip", "per verified clip"],
            rows=[
                [s.strategy, str(s.accepted), str(s.clips), duration(s.cost), duration(s.cost_per_accepted)]
                for s in priced
            ],
        )
    ]


def failure_plot(reasons: Sequence[Reason]) -> Plot:
    """A bar per reason, the commonest ones."""
    shown = reasons[:_REASONS]
    names = [_shortened(f"{reason.stage}: {reason.text}") for reason in shown]
    numbers = [float(len(reason.failures)) for reason in shown]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _bars(axes, names, numbers, [BAD] * len(shown), [f"{number:.0f}" for number in numbers])
        axes.set(xlabel="clips")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return Plot(
        title="Failures by reason",
        note="Clips that could not be made, or whose video is missing or unreadable.",
        picture=drawing(_WIDTH, 0.7 + 0.3 * len(shown), draw, "Failed clips, a bar per reason"),
        columns=["stage", "reason", "clips"],
        rows=[[reason.stage, reason.text, str(len(reason.failures))] for reason in reasons],
    )


def _bars(
    axes: Axes, names: Sequence[str], values: Sequence[float], colours: Sequence[str], labels: Sequence[str]
) -> None:
    places = range(len(names))
    bars = axes.barh(places, values, height=0.62, color=colours, zorder=2)
    axes.bar_label(bars, labels, padding=3)
    axes.set_yticks(places, names)
    axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, 1.22 * max(values)))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _shortened(text: str) -> str:
    return text if len(text) <= 34 else text[:33] + "…"


def _share(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def duration(seconds: float | None) -> str:
    """In the unit that reads best."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
