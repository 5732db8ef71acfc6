"""Ctrl-C and SIGTERM: one line, the customary status, and what a run was doing goes on as if nothing had happened."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mhc_jax.models import mhc_ssm
from train.study.local import Children
from train.terminal import interrupt
from train.terminal.interrupt import Interrupted
from train.tests.runs import measured, offer, tiny_run

HERE = Path(__file__).parent


def call(folder, argv, signal_at=""):
    """``python -m ARGV``, which sends itself a signal, see ``signal_at/sitecustomize.py``."""
    path = [str(folder), *sys.path]
    environment = os.environ | ({"SIGNAL_AT": signal_at} if signal_at else {})
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE / "signal_at"), *path] if signal_at else path)
    return subprocess.run(
        [sys.executable, "-m", *argv], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("train", signal.SIGTERM),
        ("train.compare", signal.SIGINT),
        pytest.param("parity_tests", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_command_that_loads_ends_in_one_line(tmp_path, command, number):
    ended = call(tmp_path, [command], f"tyro/__init__.py:<module> 1 {number:d}")
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + number, "", "interrupted\n")


def test_importing_the_package_leaves_the_signals_alone(tmp_path):
    # What a process started in the background inherits is that SIGINT is ignored.
    code = (
        "import signal; before = signal.getsignal(2); import train, parity_tests; assert signal.getsignal(2) is before"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_first_signal_raises_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stop, interrupt.advising("go on"), interrupt.raising():
        os.kill(os.getpid(), signal.SIGTERM)
    assert (str(stop.value), interrupt.status(stop.value)) == ("go on", 143)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_is_not_lost_where_python_drops_exceptions():
    class Dropping:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    def dropped_and_waited():
        with interrupt.raising():
            Dropping()
            time.sleep(5)

    hook = sys.unraisablehook
    with pytest.raises(Interrupted) as stop:
        dropped_and_waited()
    assert stop.value.number == signal.SIGTERM
    assert sys.unraisablehook is hook


@pytest.mark.slow
def test_a_command_whose_signal_came_to_a_collector_ends_in_one_line(tmp_path):
    (tmp_path / "dropping.py").write_text(
        "import gc, os, signal, time\n"
        "def callback(phase, info):\n"
        "    gc.callbacks.remove(callback)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "gc.callbacks.append(callback)\n"
        "gc.collect()\n"
        "time.sleep(5)\n"
        "os._exit(3)\n"
    )
    argv = ["train", "quickstart", "--import", "dropping", "--run-dir", str(tmp_path / "run")]
    ended = call(tmp_path, argv)
    assert (ended.returncode, ended.stdout, ended.stderr) == (143, "", "interrupted\n")


def test_an_inner_advice_stays():
    with pytest.raises(Interrupted, match="^inner$"), interrupt.advising("outer"), interrupt.advising("inner"):
        raise Interrupted(signal.SIGINT)


def test_a_noted_signal_is_asked_for_between_batches():
    with interrupt.Interrupt() as request:
        items = request.between(range(9))
        assert [next(items), next(items)] == [0, 1]
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted):
            next(items)


def test_children_end_and_no_more_are_started():
    children, ended = Children(), []
    sleep = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(600)"]
    thread = threading.Thread(target=lambda: ended.append(children.run(sleep)))
    thread.start()
    while not children._running:
        time.sleep(0.01)
    children.end()
    thread.join(60)
    assert ended[0][0] == -signal.SIGTERM
    assert children.run(sleep)[0] == 143


# Of a run of 12 steps with three evaluations, and after it one of the whole split.
MOMENTS = {
    "importing": "jax/__init__.py:<module> 1",
    "flags": "train/terminal/cli.py:parse 1",
    "encoding": "train/data/corpus.py:load_corpus 1",
    "initialising": "train/update/step.py:init_state 2",
    "tracing": "train/update/step.py:train_step 1",
    "compiling": "train/loop/run.py:_compile_train_step 1",
    "step 1": "train/loop/run.py:report 1",
    "evaluating": "train/data/loader.py:batch 2",
    "saving": "train/storage/checkpoint.py:save 1",
    "evaluating at the end": "train/measure/scores.py:evaluate 4",
    "drawing": "train/report/losses.py:plot_losses 1",
    "sampling": "train/data/continuation.py:sample 1",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted")
    config = tiny_run(folder)
    offer(
        config.replace(
            train=config.train.replace(steps=12, eval_every=4, eval_batches=2),
            data=config.data.replace(sample_tokens=4),
            checkpoint=config.checkpoint.replace(every=5),
        ),
        folder,
    )
    assert call(folder, command(folder, "whole")).returncode == 0
    return folder


def command(folder, name):
    return ["train", "tiny", "--import", "tiny_plugin", "--run-dir", str(folder / name)]


def last_line(stopped):
    """The line about the interruption, which follows what was said of the work on the way and is one."""
    *notes, line = stopped.stderr.splitlines()
    assert line.startswith("interrupted")
    assert not [note for note in notes if re.search(r"interrupted|Traceback|^  |Error", note)], stopped.stderr
    return line


def finish_and_compare(folder, name, stopped):
    """Goes on with a run as the line says, and compares it with the one that was never disturbed."""
    line = last_line(stopped)
    _, resumable, typed = line.partition("resume with: ")
    again = shlex.split(typed)[2:] if resumable else command(folder, name)
    assert not resumable or "saved" in line
    ended = call(folder, again)
    assert ended.returncode == 0, ended.stderr
    assert measured(folder / name) == measured(folder / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_anywhere_ends_as_the_undisturbed_one(folder, moment, number):
    name = f"{moment} {number:d}"  # a blank has to be quoted in the command that resumes
    stopped = call(folder, command(folder, name), f"{MOMENTS[moment]} {number:d}")
    assert stopped.returncode == 128 + number
    finish_and_compare(folder, name, stopped)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["train/data/loader.py:batch 2", "train/update/step.py:train_step 1"])
def test_the_second_signal_acts_at_once(folder, place):
    name = place.split(":")[1]
    stopped = call(folder, command(folder, name), f"{place} {signal.SIGINT:d} {signal.SIGINT:d}")
    assert stopped.returncode == 130
    last_line(stopped)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "place"),
    [
        (["train.evaluate", "whole"], "train/data/loader.py:batch 1"),
        (["train.sample", "whole"], "train/storage/restore.py:load_run 1"),
        (["train.inspect", "whole"], "train/measure/cost.py:cost_rows 1"),
        (["train.export", "whole", "exported"], "train/export.py:export 1"),
        (["train.compare", "whole"], "train/compare.py:draw_curves 1"),
        (["train.prepare_fineweb", "--out", "shards"], "train/prepare_fineweb.py:prepare 1"),
        (["train.benchmark", "quickstart", "--what", "traffic", "--out", ""], "train/benchmark/traffic.py:table 1"),
        (["parity_tests", "--golden"], "parity_tests/replays/__init__.py:rows 1"),
    ],
)
def test_every_command_ends_in_one_line(folder, argv, place):
    stopped = call(folder, argv, f"{place} {signal.SIGTERM:d}")
    assert stopped.returncode == 143
    last_line(stopped)


@pytest.mark.slow
def test_a_signal_while_xla_compiles_ends_in_one_line(tmp_path, monkeypatch):
    """A compilation goes on in a thread of XLA when the interpreter has begun to end."""
    (tmp_path / "compiling.py").write_text(
        "import os, signal, threading, train.loop.run as loop\n"
        "compiled = loop._compile_train_step\n"
        "def soon(*args):\n"
        "    threading.Timer(1.5, os.kill, [os.getpid(), signal.SIGTERM]).start()\n"
        "    return compiled(*args)\n"
        "loop._compile_train_step = soon\n"
    )
    config = tiny_run(tmp_path)
    offer(config.replace(model=mhc_ssm("mhc", vocab_size=None, max_len=None, width=32, layers=2)), tmp_path)
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    monkeypatch.delenv("XLA_FLAGS")  # so that it takes its time
    ended = call(tmp_path, [*command(tmp_path, "run"), "--import", "compiling"])
    assert ended.returncode == 143, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("interrupted")
