"""Plugin of pytest that records which test executes which line, in processes it starts too, and how long it takes."""

import json
import os
from pathlib import Path

import coverage
import pytest

VARIABLE = "MUTANTS_TEST"  # names the test to the processes that it starts
TIMES = "MUTANTS_TIMES"  # the file for times and failures

_seconds: dict[str, float] = {}
_failed: set[str] = set()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logstart(nodeid: str) -> None:
    os.environ[VARIABLE] = nodeid
    if running := coverage.Coverage.current():
        running.switch_context(nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _seconds[report.nodeid] = _seconds.get(report.nodeid, 0.0) + report.duration
    if report.failed:
        _failed.add(report.nodeid)


def pytest_sessionfinish() -> None:
    Path(os.environ[TIMES]).write_text(json.dumps({"seconds": _seconds, "failed": sorted(_failed)}), encoding="utf-8")
