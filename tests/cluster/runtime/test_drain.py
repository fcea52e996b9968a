"""Signals ask a job to stop without loss."""

import os
import signal
import threading

import pytest

from cluster.runtime.drain import SIGNALS, Drain


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_and_a_second_one_insists(number: signal.Signals) -> None:
    """The first one asks, the second one means now; afterwards the process's own handlers are back."""
    before = signal.getsignal(number)
    with Drain(grace=60) as drain:
        assert not drain.asked
        os.kill(os.getpid(), number)
        assert (drain.asked, drain.over, drain.signal) == (True, False, number.name)
        os.kill(os.getpid(), signal.SIGTERM)
        assert drain.over
    assert signal.getsignal(number) is before


def test_the_grace_ends() -> None:
    """Without a second signal, what is under way is left after `grace` seconds."""
    with Drain(grace=0.0) as drain:
        os.kill(os.getpid(), signal.SIGTERM)
        assert drain.over


def test_signals_are_taken_back_from_a_library() -> None:
    """Ray takes SIGTERM when it is initialised: `listen` again, and the handlers from before are still kept."""
    before = signal.getsignal(signal.SIGTERM)
    with Drain(grace=60) as drain:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        drain.listen()
        os.kill(os.getpid(), signal.SIGTERM)
        assert drain.asked
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_without_signals_is_no_error() -> None:
    """Jobs that are run from a thread can't be drained by signals, and run."""
    asked: list[bool] = []

    def run() -> None:
        with Drain(grace=1) as drain:
            asked.append(drain.asked)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert asked == [False]
