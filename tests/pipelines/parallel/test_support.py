"""What is refused, and that what is offered instead works."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numina.errors import ConfigError
from pipelines.models.families import FAMILIES
from pipelines.parallel.support import (
    CACHES,
    ENGINES,
    RULES,
    SHARDINGS,
    Lacks,
    Wish,
    check_support,
    nearest,
    objections,
    resolve_engine,
)

COGVIDEOX = FAMILIES["CogVideoXPipeline"].lacks
WAN = Wish(heads=40, tokens=32760, device="cuda")

WISHES = st.builds(
    Wish,
    engine=st.sampled_from(ENGINES),
    cfg=st.integers(1, 4),
    ulysses=st.integers(1, 16),
    ring=st.integers(1, 5),
    attention=st.sampled_from(["auto", "flash"]),
    compile=st.booleans(),
    shard=st.sampled_from(SHARDINGS),
    cache=st.sampled_from(CACHES),
    device=st.sampled_from(["cuda", "cpu"]),
    heads=st.sampled_from([1, 4, 12, 24, 40]),
    tokens=st.sampled_from([1, 80, 1280, 17550, 27280, 32760, 75600]),
    guidance=st.booleans(),
    lacks=st.sampled_from([Lacks(), COGVIDEOX]),
    loras=st.booleans(),
    dtype=st.sampled_from(["auto", "float8"]),
)


def named(wish: Wish) -> Wish:
    """With the engine that `auto` stands for."""
    return replace(wish, engine=resolve_engine(wish.engine, wish.device, wish.sequence_ranks))


@given(WISHES)
def test_the_nearest_of_any_wish_works(wish: Wish) -> None:
    """Remedies never run in a circle, end at what is supported, and leave a supported wish as it is."""
    wish = named(wish)
    other = nearest(wish)
    assert check_support(other) == other
    assert (other == wish) == (next(objections(wish), None) is None)
    for fixed in ("device", "heads", "tokens", "guidance", "lacks"):
        assert getattr(other, fixed) == getattr(wish, fixed)


@pytest.mark.parametrize(
    ("wish", "why", "instead"),
    [
        (replace(WAN, lacks=COGVIDEOX, cfg=2, ulysses=2), "one sequence of attention", "parallel.ulysses=1"),
        (replace(WAN, lacks=COGVIDEOX, attention="flash"), "no kernel but PyTorch's own", "parallel.attention=auto"),
        (replace(WAN, lacks=COGVIDEOX, cache="magcache"), "Wan's residuals", "cache=taylorseer"),
        (replace(WAN, dtype="float8", device="cpu"), "tensor cores", "model.dtype=auto"),
        (replace(WAN, dtype="float8", ulysses=2, shard="zero3"), "sharded weights", "model.dtype=auto"),
        (replace(WAN, engine="xfuser", ulysses=2, device="cpu"), "can't even be imported", "parallel.engine=diffusers"),
        (replace(WAN, engine="single", ulysses=2), "2 ranks were asked to share", "parallel.engine=xfuser"),
        (replace(WAN, cfg=3), "two branches", "parallel.cfg=2"),
        (replace(WAN, cfg=2, guidance=False), "leaves one", "parallel.cfg=1"),
        (replace(WAN, engine="diffusers", ring=2), "ring", "parallel.engine=xfuser"),
        (replace(WAN, ulysses=6), "doesn't divide the model's 40 heads", "parallel.ulysses=5"),
        (replace(WAN, ulysses=2, ring=11), "can't mask padding", "parallel.ring=10"),
        (replace(WAN, engine="diffusers", ulysses=16, heads=48), "32760 tokens", "parallel.engine=xfuser"),
        (replace(WAN, ulysses=16, heads=48, device="cpu"), "32760 tokens", "parallel.ulysses=12"),
        (replace(WAN, cfg=2, cache="cfg_cache"), "skips unconditional passes", "parallel.cfg=1"),
        (replace(WAN, compile=True, cache="taylorseer"), "taylorseer", "parallel.compile=false"),
        (replace(WAN, ulysses=2, compile=True, shard="zero3"), "DeepSpeed", "parallel.compile=false"),
        (replace(WAN, ulysses=2, cache="taylorseer", shard="zero3"), "taylorseer", "cache=none"),
        (replace(WAN, shard="zero3"), "has one", "memory.shard=none"),
        (replace(WAN, ulysses=2, shard="zero3", loras=True), "leaves a rank a share", "memory.shard=none"),
    ],
)
def test_every_rule_says_why_and_what_instead(wish: Wish, why: str, instead: str) -> None:
    """A refusal gives its reason and the nearest combination that works, as overrides."""
    with pytest.raises(ConfigError, match=f"{re.escape(why)}.*; nearest that works: .*{re.escape(instead)}"):
        check_support(wish)


def test_every_rule_is_tried_above() -> None:
    """No rule without a wish that it refuses."""
    [mark] = [mark for mark in test_every_rule_says_why_and_what_instead.pytestmark if mark.name == "parametrize"]
    tried = {next(objections(named(wish))).name for wish, _, _ in mark.args[1]}
    assert tried == {rule.name for rule in RULES}


def test_auto_takes_the_engine_that_runs_there() -> None:
    """One rank needs none; xfuser where there is a GPU, diffusers elsewhere."""
    assert resolve_engine("auto", "cuda", 1) == resolve_engine("auto", "cpu", 1) == "single"
    assert resolve_engine("auto", "cuda", 4) == "xfuser"
    assert resolve_engine("auto", "cpu", 4) == "diffusers"
    assert resolve_engine("diffusers", "cuda", 4) == "diffusers"
    assert check_support(replace(WAN, cfg=2, ulysses=4, ring=2)).engine == "xfuser"


# --- the table in pipelines/README.md ---

README = Path(__file__).parents[3] / "pipelines/README.md"
COLUMNS = {
    "`ulysses`": {"ulysses": 4},
    "`ring`": {"ring": 4},
    "uneven tokens": {"ulysses": 4, "tokens": 32763},
    "`cfg=2`": {"cfg": 2, "ulysses": 2},
    "`compile`": {"compile": True},
    "taylorseer": {"cache": "taylorseer"},
    "taylorseer, `compile`": {"cache": "taylorseer", "compile": True},
    "cfg_cache": {"cache": "cfg_cache"},
    "cfg_cache, `cfg=2`": {"cache": "cfg_cache", "cfg": 2},
    "`zero3`": {"shard": "zero3", "cfg": 2},
    "`zero3`, `compile`": {"shard": "zero3", "cfg": 2, "compile": True},
}
ROWS = {
    "`single`": {"engine": "single", "device": "cpu"},
    "`diffusers`": {"engine": "diffusers", "device": "cpu"},
    "`xfuser`, on GPUs": {"engine": "xfuser"},
    "any, CogVideoX": {"lacks": COGVIDEOX},
}


def support_table() -> list[str]:
    """The rules as a table in Markdown: one engine a line."""
    lines = ["| engine | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in ROWS.items():
        cells = []
        for asked in COLUMNS.values():
            alone = {"ulysses": 1} if asked.get("cfg") and row.get("engine", "single") == "single" else {}
            wish = named(replace(WAN, **row, **asked | alone))
            cells.append("–" if next(objections(wish), None) else "yes")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def test_the_readme_shows_what_the_rules_say() -> None:
    """The support matrix in pipelines/README.md is made of the rules, line for line."""
    for line in support_table():
        assert line in README.read_text(), line
