"""Lines to a stream that is slow, stands still, or fails: nobody waits for it, and what is lost is counted."""

import fcntl
import io
import logging
import os
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from edge_agent.contract import cli
from edge_agent.contract.outlet import BURST_S, MAX_LINES, Outlet
from tests.broker import wait_until

SMALL = 4096


@contextmanager
def pipe():
    """A pipe that holds little: its reading end, and a stream to it."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, SMALL)
    with open(writing, "w", encoding="utf-8", errors="backslashreplace") as stream:
        try:
            yield reading, stream
        finally:
            os.close(reading)


def lines_of(reading):
    """All lines that come until a second passes without one, read in a thread."""
    os.set_blocking(reading, False)
    content, latest = b"", time.monotonic()
    while time.monotonic() - latest < 1.0:
        try:
            content += (more := os.read(reading, 65_536))
        except BlockingIOError:
            threading.Event().wait(0.01)
        else:
            latest = time.monotonic() if more else latest
    return content.decode().splitlines()


def test_lines_come_in_order_and_all_of_them():
    with pipe() as (reading, stream):
        outlet = Outlet(stream, lambda error: None)
        wanted = [f"{i} é" + "x" * 500 for i in range(100)]
        assert all(outlet.print(line) for line in wanted)
        assert lines_of(reading) == wanted
        assert outlet.close(1.0) == 0
        assert not outlet.print("too late")


def test_a_reader_who_stops_reading_holds_up_nobody_and_gets_later_lines_when_he_goes_on():
    with pipe() as (reading, stream):
        outlet = Outlet(stream, lambda error: None)
        began = time.monotonic()
        taken = [outlet.print(f"{i} " + "x" * 200) for i in range(3 * MAX_LINES)]
        assert time.monotonic() - began < BURST_S + 2.0  # it waits once, not for each line
        assert MAX_LINES <= sum(taken) < MAX_LINES + 50
        given = lines_of(reading)
        assert [line.split()[0] for line in given] == [str(i) for i in range(sum(taken))]
        assert outlet.print("again")
        assert lines_of(reading) == ["again"]


def test_many_bytes_are_bounded_like_many_lines():
    with pipe() as (_, stream):
        outlet = Outlet(stream, lambda error: None)
        taken = [outlet.print("x" * 1_000_000) for _ in range(8)]
        assert 4 <= sum(taken) <= 5


def test_each_line_that_a_stream_does_not_take_is_an_error():
    errors = []
    with open("/dev/full", "w") as full:
        outlet = Outlet(full, errors.append)
        for _ in range(3):
            outlet.print("x")
        wait_until(lambda: len(errors) == 3)
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed:
        Outlet(closed, errors.append).print("x")
        wait_until(lambda: isinstance(errors[-1], BrokenPipeError))


def test_a_file_and_a_stream_of_a_test_are_written_at_once(tmp_path):
    with (tmp_path / "file").open("w") as file:
        for stream in (file, io.StringIO()):
            Outlet(stream, lambda error: None).print("x")
    assert (tmp_path / "file").read_text() == "x\n"


def test_lines_on_a_stdout_that_nobody_reads_are_counted_and_one_warning_says_so(monkeypatch, caplog):
    with pipe() as (_, stream):
        monkeypatch.setattr(sys, "stdout", stream)
        lines = cli.SideLines("alerts are stored all the same")
        for i in range(2 * MAX_LINES):
            lines.print(f"{i} " + "x" * 200)
        lost = lines.lost
        lines.close()
        monkeypatch.undo()
    assert MAX_LINES - 50 < lost <= MAX_LINES
    assert lines.lost > 2 * MAX_LINES - 30  # at the end those that still wait, too
    assert caplog.messages == ["stdout cannot be written (nobody reads it): alerts are stored all the same"]


def test_a_log_that_nobody_reads_holds_up_nobody(monkeypatch):
    with pipe() as (_, stream):
        monkeypatch.setattr(sys, "stderr", stream)
        handler, logger = cli.LogLines(), logging.Logger("of a test")
        logger.addHandler(handler)
        began = time.monotonic()
        for i in range(2 * MAX_LINES):
            logger.warning("%d %s", i, "x" * 200)
        assert handler.lost > MAX_LINES - 50
        handler.close()
        assert time.monotonic() - began < BURST_S + 3.0
        monkeypatch.undo()


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_stream_that_was_closed_before_the_command_began_takes_nothing(monkeypatch, name):
    monkeypatch.setattr(sys, name, None)
    lines, log = cli.SideLines("x"), cli.LogLines()
    lines.print("x")
    lines.close()
    log.print("x")
    log.close()
    assert lines.lost == log.lost == 0
