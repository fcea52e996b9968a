"""Rounds: a clip that several tasks ask for is made once; a verified sample goes on until it is settled."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.job.acceptance import Decision, Ruling
from cluster.job.names import TaskNames
from cluster.job.tasks import ClipTask
from cluster.runtime.rounds import Rounds
from tests.cluster.job.test_worklist import a_plan, numbered
from tests.cluster.tasks import tasks_of


@pytest.fixture
def names(tmp_path: Path) -> TaskNames:
    """A seed search among NUMINA's clips, and the verified first of them."""
    names = "strategies=[numina+seed_search,numina+verified]"
    return TaskNames(a_plan(numbered(tmp_path, 1), names, "search.seeds=3", "verify.attempts=3"))


@pytest.fixture
def tasks(names: TaskNames, tmp_path: Path) -> list[ClipTask]:
    """The search's three; the first is the verified one too."""
    prepared = a_plan(
        str(tmp_path / "set.parquet"), "strategies=[numina+seed_search,numina+verified]", "search.seeds=3"
    )
    return list(tasks_of(prepared))


def refused(attempt: int) -> Ruling:
    """Of three attempts."""
    return Ruling(attempt, Decision.REJECTED if attempt == 2 else Decision.NEXT_ATTEMPT, 0.0)


def test_a_clip_under_way_is_waited_for(names: TaskNames, tasks: list[ClipTask]) -> None:
    """The next attempt is a clip that the seed search asked for before: it is made once, and both get it."""
    rounds = Rounds(names)
    first, second = (rounds.enter(task) for task in tasks[:2])
    assert (first, second) == (tasks[0], tasks[1])
    assert [(own.key, own.there) for own in rounds.committed(tasks[0].key)] == [(tasks[0].key, True)]
    following = rounds.next_attempt(tasks[0], refused(0))
    assert following is not None
    assert following.key == tasks[1].key
    assert rounds.enter(following) is None, "it is under way"
    assert [own.verified for own in rounds.committed(tasks[1].key)] == [False, True]
    assert rounds.supplied(following) == tasks[0].key, "what the supply knows"


def test_a_clip_that_was_made_is_not_made_again(names: TaskNames, tasks: list[ClipTask]) -> None:
    """Where the verified sample came to it first, the seed search has it."""
    rounds = Rounds(names)
    rounds.enter(tasks[0])
    rounds.committed(tasks[0].key)
    following = rounds.next_attempt(tasks[0], refused(0))
    assert following is not None
    assert rounds.enter(following) == following
    rounds.committed(following.key)
    assert rounds.enter(tasks[1]) == replace(tasks[1], there=True)


def test_a_sample_is_settled_by_acceptance_or_by_the_last_attempt(names: TaskNames, tasks: list[ClipTask]) -> None:
    """And known to the supply by its first attempt's key, however many there were."""
    rounds = Rounds(names)
    assert rounds.next_attempt(tasks[0], Ruling(0, Decision.ACCEPTED, 1.0)) is None
    second = rounds.next_attempt(tasks[0], refused(0))
    assert second is not None
    third = rounds.next_attempt(second, refused(1))
    assert third is not None
    assert (second.attempt, third.attempt) == (1, 2)
    assert rounds.next_attempt(third, refused(2)) is None
    assert rounds.supplied(third) == tasks[0].key


def test_a_judge_may_pass_over_attempts_that_are_there(names: TaskNames, tasks: list[ClipTask]) -> None:
    """On resuming, a ruling may be about a later attempt than the one asked about."""
    following = Rounds(names).next_attempt(tasks[0], refused(1))
    assert following is not None
    assert following.attempt == 2


def test_all_who_wait_learn_that_a_clip_cant_be_had(names: TaskNames, tasks: list[ClipTask]) -> None:
    """One failure, of everybody who asked."""
    rounds = Rounds(names)
    rounds.enter(tasks[1])
    following = rounds.next_attempt(tasks[0], refused(0))
    assert following is not None
    rounds.enter(following)
    assert rounds.given_up(tasks[1]) == [tasks[1], following]
    assert rounds.given_up(tasks[2]) == [tasks[2]], "a task whose clip is there, and can't be judged"
