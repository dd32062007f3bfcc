"""Check what a run prints while it works."""

import io
import re
import time

import pytest
from rich.console import Console

from xlmprune.core import progress
from xlmprune.core.progress import Reporter


def on_terminal(width=80, level="normal"):
    console = Console(
        file=io.StringIO(), force_terminal=True, width=width, highlight=False, color_system=None
    )
    return Reporter(console, level), console.file


def in_a_log(level="normal"):
    console = Console(file=io.StringIO(), force_terminal=False, width=80, highlight=False)
    return Reporter(console, level), console.file


@pytest.fixture
def clock(monkeypatch):
    """A clock that each update moves on by a second."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "perf_counter", lambda: Clock.now)
    return Clock


def test_a_long_step_is_not_silent(monkeypatch):
    monkeypatch.setattr(progress, "BUSY_EVERY_SECONDS", 0.01)
    reporter, file = in_a_log()
    with reporter.busy("exporting"):
        while file.getvalue().count("exporting  ") < 2:
            time.sleep(0.005)
    said = file.getvalue()
    assert re.search(r"exporting  \d+ s so far", said)
    time.sleep(0.05)
    assert file.getvalue() == said, "nothing is printed after the step"
    reporter, file = on_terminal()
    with reporter.busy("exporting"):
        pass
    assert "exporting" in file.getvalue()
    for make in (in_a_log, on_terminal):
        reporter, file = make(level="quiet")
        with reporter.busy("exporting"):
            time.sleep(0.03)
        assert file.getvalue() == ""


def steps(reporter, clock, total, seconds=1.0):
    for number in range(1, total + 1):
        clock.now += seconds
        yield number
        reporter.step(1, 6, 0.824, number, total, 1.25, later=5 * total)


def test_brackets_are_shown_as_they_are():
    for reporter, file in (on_terminal(120), in_a_log()):
        reporter.say("loading /models/[/x]/[bold]xlmr[/bold]")
        assert "/models/[/x]/[bold]xlmr[/bold]" in file.getvalue()


def test_the_live_line_fits_80_columns_with_a_bar_that_can_be_read(clock):
    reporter, file = on_terminal()
    for number in steps(reporter, clock, 12345):
        if number == 12340:
            reporter._bar.refresh()
            break
    line = file.getvalue().rpartition("stage 1/6")[2]
    shown = "stage 1/6" + line.split("\r")[0].split("\n")[0]
    assert "loss 1.2500" in shown
    assert "about 17:08:51 left" in shown, "of the whole run: the bar shows the stage"
    assert shown.count("━") >= 15
    assert len(shown.split("\x1b")[0]) <= 80
    reporter.stop()


def test_a_rate_is_shown_from_the_second_update_on_and_leaves_out_the_first(clock):
    reporter, _ = in_a_log()
    clock.now += 50  # the first update warms up
    reporter.step(0, 6, 1.0, 1, 100, 1.0)
    assert reporter._clock.rate() == ""
    clock.now += 0.5
    reporter.step(0, 6, 1.0, 2, 100, 1.0)
    assert reporter._clock.rate() == "2.0/s"
    assert reporter._clock.left(100) == "0:49"
    assert reporter._clock.left(20002) == "2:46:40"
    clock.now += 9.5
    reporter.step(0, 6, 1.0, 3, 100, 1.0)
    assert reporter._clock.rate() == "5.0 s each"


def test_a_log_has_a_line_every_ten_seconds_on_one_line_each(clock):
    reporter, file = in_a_log()
    for _ in steps(reporter, clock, 45):
        pass
    lines = file.getvalue().splitlines()
    assert len(lines) == 4
    assert all("stage 1/6   82.4% of the encoder  update" in line for line in lines)
    assert lines[0].endswith(
        "update 11/45  1.0/s loss 1.2500  0:34 left in this stage, about 4:19 in all without export"
    )
    reporter.say("word " * 40)
    assert len(file.getvalue().splitlines()) == 5


def test_a_terminal_wraps_between_words():
    reporter, file = on_terminal(60)
    reporter.say("measuring Norwegian Bokmål, Simplified Chinese and Western Frisian again")
    lines = file.getvalue().splitlines()
    assert len(lines) == 2
    assert "measuring Norwegian Bokmål, Simplified Chinese and" in lines[0]


def test_quiet_prints_warnings_only_and_verbose_prints_details(clock):
    for make in (on_terminal, in_a_log):
        reporter, file = make(level="quiet")
        reporter.say("reading")
        reporter.detail("German 61.2")
        for _ in steps(reporter, clock, 30):
            pass
        assert file.getvalue() == ""
        reporter.warn("English is at chance")
        assert "warning: English is at chance" in file.getvalue()
        reporter, file = make(level="verbose")
        reporter.detail("German 61.2")
        for _ in steps(reporter, clock, 30):
            pass
        assert "German 61.2" in file.getvalue()
        assert "update 11/30" in file.getvalue()


def test_measured_texts_are_counted_in_a_log(clock):
    reporter, file = in_a_log()
    with reporter.counting("measuring texts", 160) as advance:
        for _ in range(5):
            clock.now += 8
            advance(32)
    assert re.findall("measuring texts (.*)", file.getvalue()) == ["96/160  0:16 left"]


def test_measured_texts_are_counted_on_a_terminal(clock):
    reporter, file = on_terminal()
    with reporter.counting("measuring texts", 100) as advance:
        for _ in range(2):
            clock.now += 8
            advance(32)
        reporter._bar.refresh()
        assert "64/100" in file.getvalue()
    assert reporter._bar is None


def test_measuring_between_two_updates_leaves_their_rate(clock):
    reporter, file = in_a_log()
    reporter.step(0, 1, 1.0, 1, 100, 0.5)
    clock.now += 20
    reporter.step(0, 1, 1.0, 2, 100, 0.5)
    with reporter.counting("measuring dev texts", 100) as advance:
        advance(100)
    clock.now += 20
    reporter.step(0, 1, 1.0, 3, 100, 0.5)
    assert "3/100  20.0 s each" in file.getvalue()


def test_more_texts_than_announced_end_at_the_total(clock):
    reporter, file = in_a_log()
    with reporter.counting("measuring texts", 10) as advance:
        for _ in range(4):
            clock.now += 11
            advance(4)
    assert "12/10" not in file.getvalue()


def test_two_stages_have_a_clock_each(clock):
    reporter, file = in_a_log()
    for _ in steps(reporter, clock, 3):
        pass
    clock.now += 1000  # measuring
    for _ in steps(reporter, clock, 3):
        pass
    assert file.getvalue() == ""
    assert time.perf_counter() == clock.now
