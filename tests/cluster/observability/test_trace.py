"""The trace of a dataset is one that Perfetto shows right: tracks without overlaps, true times, arrows."""

from collections import Counter, defaultdict
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.dataset.store import Store
from cluster.observability.trace import latest_rows, trace
from cluster.rows import STAGES
from numina.errors import InputError

BEGAN = 1_790_000_000.0


def a_row(number: int, *spans: tuple[str, str, float, float]) -> dict[str, Any]:
    names = ("stage", "place", "began", "seconds")
    return {
        "key": f"{number:032x}",
        "id": f"p{number}",
        "prompt": "three <b>cats</b>",
        "strategy": "numina",
        "sample": 0,
        "retries": 1,
        "spans": [dict(zip(names, span, strict=True)) for span in spans],
    }


PAIR = [
    ("identify", "gang-0", BEGAN, 2.5),
    ("layout", "cpu", BEGAN + 2.5, 0.25),
    ("guide", "gang-0", BEGAN + 5, 4),
]
MOVED = [
    ("identify", "gang-0", BEGAN + 2.5, 2.5),
    ("layout", "cpu", BEGAN + 2.6, 1),
    ("guide", "gang-10", BEGAN + 6, 1),
]
ROWS = [a_row(0, *PAIR), a_row(1, *MOVED), a_row(2, ("identify", "gang-2", BEGAN + 0.000001, 2.5))]


def of_phase(events: list[dict[str, Any]], *phases: str) -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] in phases]


def test_a_place_is_a_process_and_what_ran_at_once_has_tracks() -> None:
    """Gangs first and in order; overlapping layouts on two tracks, stages that follow each other on one."""
    events = trace(ROWS)["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert [names[process] for process in sorted(names)] == ["gang-0", "gang-2", "gang-10", "cpu"]
    tracks = defaultdict(set)
    for event in of_phase(events, "X"):
        tracks[names[event["pid"]]].add(event["tid"])
    assert {place: len(threads) for place, threads in tracks.items()} == {
        "gang-0": 1,
        "gang-2": 1,
        "gang-10": 1,
        "cpu": 2,
    }
    threads = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    assert threads == {(event["pid"], event["tid"]) for event in of_phase(events, "X")}


def test_times_and_arguments_are_the_rows() -> None:
    """Microseconds since the first span, whose time is told; every slice says which clip it is of."""
    made = trace(ROWS)
    slices = of_phase(made["traceEvents"], "X")
    assert len(slices) == 7
    assert min(event["ts"] for event in slices) == 0
    assert datetime.fromisoformat(made["otherData"]["began"]) == datetime.fromtimestamp(BEGAN, UTC)
    [guide] = [event for event in slices if event["name"] == "guide" and event["args"]["key"].endswith("0")]
    assert (guide["ts"], guide["dur"]) == (5_000_000, 4_000_000)
    assert guide["args"] == {
        "key": f"{0:032x}",
        "id": "p0",
        "prompt": "three <b>cats</b>",
        "strategy": "numina",
        "sample": 0,
        "retries": 1,
    }


def test_arrows_lead_from_stage_to_stage() -> None:
    """One arrow per pair of neighbouring stages of a clip; both ends lie in a slice of that clip."""
    events = trace(ROWS)["traceEvents"]
    arrows = defaultdict(list)
    for event in of_phase(events, "s", "f"):
        arrows[event["id"]].append(event)
    assert len(arrows) == 4
    for start, end in arrows.values():
        assert (start["ph"], end["ph"], end["bp"]) == ("s", "f", "e")
        assert (start["name"], start["cat"]) == (end["name"], end["cat"])
        holders = [
            [
                slice["args"]["key"]
                for slice in of_phase(events, "X")
                if (slice["pid"], slice["tid"]) == (point["pid"], point["tid"])
                and slice["ts"] <= point["ts"] < slice["ts"] + slice["dur"]
            ]
            for point in (start, end)
        ]
        assert holders[0] == holders[1]
        assert len(holders[0]) == 1


moments = st.integers(0, 10**8)  # in microseconds
durations = st.integers(-(10**6), 10**8)  # less than none where a node's clock was set back
spans = st.tuples(st.sampled_from(STAGES), st.sampled_from(["gang-0", "gang-1", "cpu"]), moments, durations)


@given(st.lists(st.lists(spans, max_size=5), max_size=8))
def test_no_track_has_overlaps(clips: list[list[tuple[str, str, int, int]]]) -> None:
    """Whatever ran when: no two slices of a track overlap, and every span is one, where and when it ran, to the
    microsecond."""
    rows = [a_row(n, *((s, p, BEGAN + b / 1e6, d / 1e6) for s, p, b, d in clip)) for n, clip in enumerate(clips)]
    events = trace(rows)["traceEvents"]
    places = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    tracks, found = defaultdict(list), []
    for event in of_phase(events, "X"):
        tracks[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        found.append((event["args"]["key"], event["name"], places[event["pid"]], event["ts"], event["dur"]))
    for track in tracks.values():
        assert all(before[1] <= after[0] for before, after in pairwise(sorted(track)))
    first = min((began for clip in clips for _, _, began, _ in clip), default=0)
    assert Counter(found) == Counter(
        (f"{number:032x}", stage, place, began - first, max(0, lasted))
        for number, clip in enumerate(clips)
        for stage, place, began, lasted in clip
    )
    assert all(isinstance(began, int) for *_, began, _ in found)


def test_the_last_rows_of_a_dataset(tmp_path: Path) -> None:
    """The last committed ones with spans, or one by its key; a dataset without spans is an error that says so."""
    store = Store(str(tmp_path))
    needed = {"file_name": "a.mp4", "video_sha256": "", "targets": [], "seed": 0}
    store.commit(needed | a_row(9) | {"spans": None})
    store.commit(needed | a_row(10))
    with pytest.raises(InputError, match="has the times of its stages"):
        latest_rows(store, 10)
    for number, row in enumerate(ROWS):
        store.commit(needed | row | {"committed_at": datetime.fromtimestamp(BEGAN - number, UTC)})
    assert [row["id"] for row in latest_rows(store, 2)] == ["p1", "p0"]
    store.compact()
    assert [row["id"] for row in latest_rows(store, 2)] == ["p1", "p0"]
    assert [row["id"] for row in latest_rows(store, 2, f"{2:032x}")] == ["p2"]
    assert trace(latest_rows(store, 3)) == trace(ROWS)
    with pytest.raises(InputError, match="of key 'no'"):
        latest_rows(store, 2, "no")
