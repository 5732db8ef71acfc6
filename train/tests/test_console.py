"""What a person sees of work under way: a bar on a terminal, lines in a log, results alone on standard output."""

import os
import pty
import subprocess
import sys
from unittest import mock

import jax
import pytest

from train.terminal import console

SCRIPT = """
import time
from train.terminal.console import Display, say, task
with task("evaluating the test split", 3) as work:
    for _ in range(3):
        work.advance(status="loss 2.5")
        time.sleep(0.15)
values = {"loss": 2.5, "lr": 3e-4, "grad_norm": 0.5, "skipped": 0, "tokens": 32}
values |= {"tokens_per_second": 37123.0, "mfu": 0.41}
with Display(0, 200000, bar=True) as display:
    display.metrics(100000, values)
    with task("evaluating", 7, quiet=True) as work:
        work.advance()
        time.sleep(0.15)
        say("resume with: " + "x" * 90)
    time.sleep(0.15)
print("done")
"""


def on_terminal(columns: int) -> str:
    """What SCRIPT writes to a terminal of that width."""
    reader, writer = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "24"}
    child = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=writer, stderr=writer, env=environment)
    os.close(writer)
    written = b""
    while True:
        try:
            part = os.read(reader, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        written += part
    os.close(reader)
    assert child.wait() == 0
    return written.decode()


@pytest.mark.slow
def test_terminal_has_bars_that_fit_and_lines_that_are_not_broken():
    written = on_terminal(80)
    for words in (
        "evaluating the test split",
        "1/3",
        "step 100000/200000",
        "loss 2.500",
        "lr 3.0e-4",
        "37.1k tok/s",
        "MFU 41%",
    ):
        assert words in written
    assert "x" * 90 in written
    assert written.rstrip().endswith("done")
    assert "…" not in written  # nothing was too wide


def test_log_has_lines_without_control_codes():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    *steps, resume, last = done.stdout.splitlines()
    assert steps == ["step 100000/200000  loss 2.500  lr 3.0e-4  |g| 0.50  37.1k tok/s  MFU 41%  ETA 1:26"]
    assert (resume, last) == ("resume with: " + "x" * 90, "done")
    assert done.stderr.splitlines() == ["evaluating the test split"]
    assert "\x1b" not in done.stdout + done.stderr


def test_log_has_a_line_every_ten_seconds(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.task("encoding", 4000, spell="{:.0f} kB".format) as work:
        for _ in range(40):
            now[0] += 1
            work.advance(100)
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "encoding"
    assert lines == [f"encoding: {n * 1000} kB/4000 kB, 100 kB/s, ETA 0:{40 - 10 * n:02}" for n in (1, 2, 3, 4)]


def test_what_a_model_writes_commands_no_terminal(monkeypatch):
    written = "a\tb\r\nc\x1b[2Jd\x07\x7f\x9be\rf é"
    assert console.shown(written) == written  # elsewhere it is data
    monkeypatch.setattr(console.sys, "stdout", mock.Mock(isatty=lambda: True))
    assert console.shown(written) == "a\tb\r\nc\\x1b[2Jd\\x07\\x7f\\x9be\\x0df é"


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "0:07"), (60, "1:00"), (3723, "1:02:03")])
def test_clock(seconds, text):
    assert console.clock(seconds) == text


def test_bars_belong_to_the_process_that_speaks_on_a_terminal(monkeypatch):
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    for process, bars in ((0, True), (1, False)):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        with console.task("something", quiet=True):
            assert (console._bars is not None) == bars
        assert console._bars is None


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999"), (37_100, "37.1k"), (1.2e6, "1.2M"), (6e8, "600M"), (1e9, "1G")]
)
def test_three_digits_of_a_number(number, text):
    assert console._short(number) == text
