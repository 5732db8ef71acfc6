"""The deciding side of a benchmark: contenders in their own processes, timed in turns."""

import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping

from mhc_jax.config import ConfigError
from train.benchmark.worker import Spec

SETTLE_S = 0.3  # idle threads of the contender that just ran spin for up to 0.2 s
SLOW_S = 20.0  # an eager contender whose first call takes longer is not called again


class WorkerError(ConfigError):
    """A contender failed to run its task. The message ends with the last line that it printed."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """A contender: ``python -m module`` with a specification.

    Attributes:
        module: worker module.
        spec: handed to it as JSON.
        python: interpreter, so that frameworks that cannot share an environment need not.
        eager: its first call compiles nothing, so that call counts if it is too slow to be repeated.
    """

    module: str
    spec: Spec
    python: str = sys.executable
    eager: bool = False


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one contender.

    Attributes:
        median_s: median over all calls of all rounds.
        low_s, high_s: smallest and largest median of a round.
        first_s: the first call, which compiles.
        peak_bytes: memory at its highest.
        calls: number of calls timed.
    """

    median_s: float
    low_s: float
    high_s: float
    first_s: float
    peak_bytes: int
    calls: int


class _Process:
    """A running contender; leaving the context ends it."""

    def __init__(self, name: str, contender: Contender):
        self.name, self.contender = name, contender
        self.rounds: list[list[float]] = []

    def __enter__(self):
        self.log = tempfile.TemporaryFile("w+")
        command = [self.contender.python, "-m", self.contender.module, json.dumps(self.contender.spec)]
        self.process = subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log
        )
        assert self.process.stdin is not None  # both are pipes
        assert self.process.stdout is not None
        self.orders, self.answers = self.process.stdin, self.process.stdout
        return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.wait()
        for stream in (self.orders, self.answers, self.log):
            stream.close()

    def _answer(self):
        line = self.answers.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            said = self.log.read().strip().splitlines() or ["(nothing printed)"]
            raise WorkerError(f"benchmark contender {self.name!r} failed: {said[-1]}")
        return json.loads(line)

    def start(self) -> None:
        """Waits for the first call."""
        self.first_s = self._answer()["first_s"]

    def run(self, calls: int) -> None:
        """One turn. An eager contender whose first call was slow has had its turn."""
        if self.contender.eager and self.first_s > SLOW_S:
            self.rounds = [[self.first_s]]
            return
        time.sleep(SETTLE_S)
        self.orders.write(f"{calls}\n")
        self.orders.flush()
        self.rounds.append(self._answer())

    def timing(self) -> Timing:
        """Ends the contender."""
        self.orders.close()
        medians = [statistics.median(round_) for round_ in self.rounds]
        every = [seconds for round_ in self.rounds for seconds in round_]
        peak = self._answer()["peak_bytes"]
        return Timing(statistics.median(every), min(medians), max(medians), self.first_s, peak, len(every))


def alternate(contenders: Mapping[str, Contender], *, rounds: int, calls: int) -> dict[str, Timing]:
    """Times all contenders in turns (A B C, A B C, ...), ``calls`` calls each turn; only one runs at a time.

    An eager contender whose first call takes longer than 20 s is not called again: that call is its time.

    Raises:
        WorkerError: a contender failed.
    """
    with contextlib.ExitStack() as stack:
        processes = []
        for name, contender in contenders.items():
            processes.append(stack.enter_context(_Process(name, contender)))
            processes[-1].start()
            _say(f"{name}: first call {processes[-1].first_s:.2f} s")
        for turn in range(rounds):
            for process in processes:
                process.run(calls)
            medians = (f"{process.name} {1e3 * statistics.median(process.rounds[-1]):.1f} ms" for process in processes)
            _say(f"round {turn + 1} of {rounds}: {', '.join(medians)}")
        return {process.name: process.timing() for process in processes}


def _say(line: str) -> None:
    """Writes to standard error, because standard output holds only the table."""
    print(line, file=sys.stderr, flush=True)
