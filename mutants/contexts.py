"""Pytest plugin that records the lines and the cost of each test, including the processes that it starts."""

import json
import os
from pathlib import Path

import coverage
import pytest

VARIABLE = "MUTANTS_TEST"  # names the test to the processes that it starts
TIMES = "MUTANTS_TIMES"  # the file for times and failures

_seconds: dict[str, float] = {}
_failed: set[str] = set()


def processor_seconds() -> float:
    """Spent by this process and by the ended ones that it started; a busy machine does not lengthen them."""
    return sum(os.times()[:4])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logstart(nodeid: str) -> None:
    os.environ[VARIABLE] = nodeid
    _seconds[nodeid] = -processor_seconds()
    if running := coverage.Coverage.current():
        running.switch_context(nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _failed.add(report.nodeid)


def pytest_runtest_logfinish(nodeid: str) -> None:
    _seconds[nodeid] += processor_seconds()


def pytest_sessionfinish() -> None:
    Path(os.environ[TIMES]).write_text(json.dumps({"seconds": _seconds, "failed": sorted(_failed)}), encoding="utf-8")
