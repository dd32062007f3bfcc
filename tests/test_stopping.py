"""Signals: which stop, when, and which stay ignored."""

import os
import signal

import pytest

from xlmprune.core.stopping import SIGNALS, Stopped, StopRequest, interruptible


def test_which_signals_stop():
    assert set(SIGNALS) == {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_asks_and_the_second_does_not_wait(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.asked
        os.kill(os.getpid(), number)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", SIGNALS)
def test_where_nothing_has_to_be_saved_the_first_interrupts(number):
    with interruptible(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_an_ignored_signal_stays_ignored(number):
    """`nohup` ignores SIGHUP, and a shell script ignores SIGINT for its background jobs."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), number)
            assert not stop.asked
        with interruptible():
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_guarded_function_stops_before_its_next_call():
    with StopRequest() as stop:
        double = stop.guard(lambda number: 2 * number)
        assert double(2) == 4
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            double(2)
