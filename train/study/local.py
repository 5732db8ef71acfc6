"""The runs of a study as processes of this machine."""

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from mhc_jax.config import ConfigError
from train.storage.folder import DIVERGED_FILE
from train.study.plan import Job, Plan
from train.terminal.console import say


class Children:
    """Processes that this one waits for, from several threads, and that it can end."""

    def __init__(self):
        self._lock, self._running, self._ended = threading.Lock(), set(), False

    def run(self, argv: Sequence[str]) -> tuple[int, str]:
        """The exit status of a process and its standard error, or else its output."""
        with self._lock:
            if self._ended:
                return 128 + signal.SIGTERM, ""
            # A separate session, because a second signal from the terminal would keep it from saving.
            process = subprocess.Popen(
                argv,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
            self._running.add(process)
        printed, complaint = process.communicate()
        with self._lock:
            self._running.remove(process)
        return process.returncode, complaint or printed

    def end(self) -> None:
        """Asks those that run to stop, and starts no more."""
        with self._lock:
            self._ended = True
            for process in self._running:
                process.terminate()


def train(job: Job, plan: Plan, children: Children) -> None:
    """Trains one run.

    Raises:
        ConfigError: the run failed; the message is its last complaint.
    """
    folder = job.folder(plan.out)
    status, said = children.run([sys.executable, *plan.command(job)])
    if status == 3:
        (folder / DIVERGED_FILE).touch()
    elif status:
        lines = said.strip().splitlines() if status > 0 else []  # of one that a signal ended, they are of other things
        raise ConfigError(f"{folder}: {lines[-1].removeprefix('error: ') if lines else f'exit status {status}'}")


def train_all(plan: Plan, jobs_at_a_time: int) -> None:
    """Trains all that is not finished.

    Raises:
        ConfigError: see :func:`train`.
    """
    children = Children()
    with ThreadPoolExecutor(jobs_at_a_time) as pool, _ending(children):
        while jobs := plan.due():
            for job, _ in zip(jobs, pool.map(lambda job: train(job, plan, children), jobs)):
                summary = plan.summary(job)
                if summary is None:
                    raise ConfigError(f"{job.folder(plan.out)} has ended without a summary")
                say(f"{job.row}  lr {job.rate:g}  seed {job.seed}  validation loss {summary['val_loss']:.4f}")


@contextlib.contextmanager
def _ending(children: Children) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        children.end()
        raise
