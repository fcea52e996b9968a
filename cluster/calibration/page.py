"""`calibration.html`: what a calibration found, as one static page in the report's style."""

from datetime import UTC, datetime
from importlib import resources

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from cluster.calibration.calibrate import Result
from cluster.calibration.race import PLAIN
from cluster.calibration.written import NAME, reading_warning, shown_gain, verdict_text
from cluster.report.svg import ACCENT, SOFT, Drawing, drawing

PAGE = "calibration.html"


def page(result: Result) -> str:
    """The page's text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cluster.calibration", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["gain"] = shown_gain
    style = (resources.files("cluster.report") / "templates" / "style.css").read_text(encoding="utf-8")
    return environment.get_template("calibration.html.j2").render(
        result=result,
        style=Markup(style),
        verdict=verdict_text(result),
        warning=reading_warning(result),
        plot=_plot(result),
        name=NAME,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _plot(result: Result) -> Drawing:
    """Each candidate's CountAcc with its interval, the chosen one on top."""
    shown = [own for own in reversed(result.standings) if own.prompts]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, own in enumerate(shown):
            colour = ACCENT if own.name == result.chosen else SOFT
            axes.plot([own.accuracy.low, own.accuracy.high], [place, place], color=colour, linewidth=1.4)
            axes.scatter([own.accuracy.mean], [place], s=26, color=colour, marker="s" if own.name == PLAIN else "o")
        axes.set(xlim=(-0.02, 1.02), xlabel="CountAcc", yticks=range(len(shown)))
        axes.set_yticklabels([f"{own.name} ({own.prompts})" for own in shown])
        axes.grid(axis="x")

    return drawing(6.4, 0.8 + 0.28 * len(shown), draw, "CountAcc of every candidate with its 95 % interval")
