"""One mutant in a separate process, forked from one that has imported everything but the project."""

import contextlib
import dataclasses
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from mutants.contexts import processor_seconds
from mutants.operators import Mutant

LIBRARIES = (
    "jax", "jax.numpy", "flax.nnx", "optax", "orbax.checkpoint", "grain.python", "datasets", "transformers",
    "tokenizers", "safetensors.numpy", "matplotlib.pyplot", "rich.progress", "tyro", "torch", "hypothesis", "pytest",
)  # fmt: skip
FILES_AT_ONCE = 3
ASLEEP = 180  # seconds without work after which it counts as hanging


def preload() -> None:
    """Imports the project's dependencies without starting a backend, whose threads would not survive a fork."""
    for library in LIBRARIES:
        importlib.import_module(library)
    from jax._src import xla_bridge

    assert not xla_bridge.backends_are_initialized(), "a library starts jax's backend when it is imported"


def copy_tree(root: Path, to: Path) -> None:
    """The files of the repository that git tracks or would."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=root, capture_output=True, text=True, check=True).stdout
    shutil.rmtree(to, ignore_errors=True)
    for name in filter(None, names.split("\0")):
        if (root / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name)


class Chosen:
    """Plugin of pytest: only these tests, and no new one once the budget is spent.

    The budget is in seconds of processors, children included: a busy machine does not shorten it.

    What ended the session, a test's name or the time, is left in the file ``verdict``.
    """

    def __init__(self, tests: dict[str, float], budget: float, verdict: Path):
        self.tests, self.end, self.verdict = tests, processor_seconds() + budget, verdict

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if item.nodeid in self.tests]

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.verdict.write_text(report.nodeid, encoding="utf-8")

    def pytest_runtest_logfinish(self, nodeid):
        if processor_seconds() > self.end and not self.verdict.exists():
            self.verdict.write_text("out of time", encoding="utf-8")
            os._exit(0)


@dataclasses.dataclass
class Trial:
    """A running mutant.

    Attributes:
        mutant: None for the unmutated code.
        tree: copy of the repository for this process only.
        tests: expected processor seconds by test name; their files are run in this order.
        worked: processor seconds seen so far.
        woke: when they last grew.
    """

    mutant: Mutant | None
    tree: Path
    tests: dict[str, float]
    budget: float
    pid: int = 0
    began: float = 0.0
    worked: float = 0.0
    woke: float = 0.0

    @property
    def log(self) -> Path:
        return self.tree.with_suffix(".log")

    @property
    def verdict(self) -> Path:
        return self.tree.with_suffix(".verdict")

    @property
    def limit(self) -> float:
        """Processor seconds after which it counts as hanging: its tests may take four times as many as they did."""
        return 120 + 4 * sum(self.tests.values())

    def start(self) -> None:
        if self.mutant:
            self._write(self.mutant.apply((self.tree / self.mutant.file).read_text(encoding="utf-8")))
        self.verdict.unlink(missing_ok=True)
        self.began = self.woke = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._child()
            finally:
                os._exit(3)

    def _child(self) -> None:
        """Runs the tests and ends with pytest's exit status."""
        os.setsid()
        output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(self.tree)
        sys.path[0] = os.environ["PYTHONPATH"] = str(self.tree)
        import pytest

        chosen = Chosen(self.tests, self.budget, self.verdict)
        files = list(dict.fromkeys(test.split("::")[0] for test in self.tests))
        # Collecting takes longer than most tests, and few files notice most mutants.
        for few in (files[at : at + FILES_AT_ONCE] for at in range(0, len(files), FILES_AT_ONCE)):
            status = pytest.main(["-x", "-q", "--no-header", "-p", "no:cacheprovider", *few], plugins=[chosen])
            sys.stdout.flush()
            if status not in (0, 5):  # passed, or none of the chosen tests exists
                os._exit(status)
        os._exit(0)

    def poll(self) -> dict | None:
        """The outcome, once there is one."""
        seconds = time.monotonic() - self.began
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid and not self._hangs():
            return None
        with contextlib.suppress(ProcessLookupError):  # and all processes that the tests have started
            os.killpg(self.pid, signal.SIGKILL)
        if not pid:
            os.waitpid(self.pid, 0)
        return {"seconds": round(seconds, 1), **self._outcome(os.waitstatus_to_exitcode(status) if pid else None)}

    def _hangs(self) -> bool:
        """Whether it works without end, or sleeps."""
        worked = 0.0
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self.pid)
            for process in (top, *top.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    worked += sum(process.cpu_times()[:4])
        if worked > self.worked + 1:
            self.worked, self.woke = worked, time.monotonic()
        return worked > self.limit or time.monotonic() - self.woke > ASLEEP

    def _outcome(self, status: int | None) -> dict:
        verdict = self.verdict.read_text(encoding="utf-8") if self.verdict.exists() else ""
        if status is None:
            return {"killed": True, "by": "timeout"}
        if status == 0:
            return {"killed": False, "by": verdict}
        return {"killed": True, "by": verdict or ("import" if status == 2 else f"exit status {status}")}

    def restore(self, source: str) -> None:
        """The tree as it was."""
        if self.mutant:
            self._write(source)

    def _write(self, text: str) -> None:
        """Without its compiled form: the new one may have the same size and second."""
        file = self.tree / self.mutant.file
        file.write_text(text, encoding="utf-8")
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
            compiled.unlink()
