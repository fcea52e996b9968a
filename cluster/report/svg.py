"""Matplotlib's figures as SVG for the page: its colours are the page's variables, its text the page's font.

Matplotlib writes what it draws as style attributes, which the page's security policy forbids; here they become plain
attributes. A figure's links lead to filters of the page.
"""

import hashlib
import io
import re
import warnings
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

# Colours that stand for the stylesheet's variables until the figure is written.
INK, SOFT, LINE, ACCENT, BAD = (f"#00010{number}" for number in range(5))
SERIES = tuple(f"#00020{number}" for number in range(8))
_VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line", ACCENT: "accent", BAD: "bad"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES)
}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "numina",
    "font.size": 8.5,
    "font.family": "sans-serif",
    "text.parse_math": False,  # names may hold a dollar sign
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
    "legend.frameon": False,
}

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_DROPPED = {f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"}
_REFERENCE = re.compile(r"#([\w-]+)")

Drawing = Markup  # an <svg> element


def drawing(width: float, height: float, draw: Callable[[Figure], None], title: str) -> Drawing:
    """What `draw` puts on a figure of width × height inches."""
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's browser has more of them
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        figure = Figure(figsize=(width, height))
        draw(figure)
        sink = io.StringIO()
        figure.savefig(sink, format="svg", metadata={"Date": None})
    return themed(sink.getvalue(), title)


def themed(written: str, title: str) -> Drawing:
    """Matplotlib's SVG as an element of the page, named for who can't see it by `title`, which no other one has."""
    root = ElementTree.fromstring(written.encode())
    prefix = f"plot-{hashlib.sha256(title.encode()).hexdigest()[:8]}-"
    used = set(_REFERENCE.findall(" ".join(value for element in root.iter() for value in element.attrib.values())))
    for parent in root.iter():
        for child in [child for child in parent if child.tag in _DROPPED]:
            parent.remove(child)
        _clean(parent, used, prefix)
    attributes = {"viewBox": root.get("viewBox", ""), "role": "img", "aria-label": title}
    root.attrib.clear()
    root.attrib.update(attributes)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    root.set("class", "plot")
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _clean(element: ElementTree.Element, used: set[str], prefix: str) -> None:
    """Style as attributes, colours as variables, ids that are unlike those of the page's other figures."""
    for declaration in filter(None, element.attrib.pop("style", "").split(";")):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name != "font-family":
            element.set(name, f"var(--{_VARIABLES[value]})" if value in _VARIABLES else value)
    if "id" in element.attrib:
        name = element.attrib.pop("id")
        if name in used:
            element.set("id", prefix + name)
    if "clip-path" in element.attrib:
        element.set("clip-path", element.attrib["clip-path"].replace("#", "#" + prefix))
    target = element.attrib.pop(f"{{{_XLINK}}}href", None)
    if target is not None:
        is_link = element.tag.endswith("}a")
        element.set("href", target if is_link else "#" + prefix + target.removeprefix("#"))
        if is_link:
            del element.attrib["target"]
            element.set("class", "jump")
            element.set("tabindex", "-1")  # the table beside the figure has them, too
