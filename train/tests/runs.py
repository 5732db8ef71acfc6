"""A tiny run over a text file, for the tests of the loop and of the command."""

import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

from mhc_jax.models import mhc_ssm
from train.config import CheckpointConfig, LogConfig, OptimConfig, RunConfig, TrainConfig
from train.data.config import CorpusConfig
from train.objectives.cross_entropy import CrossEntropyConfig
from train.storage.folder import read_metrics

PLUGIN = """
import pathlib
from mhc_jax.registry import register
from train.config import RunConfig

@register("config", "tiny")
def tiny():
    return RunConfig.from_json(pathlib.Path(__file__).with_name("tiny.json").read_text())
"""
MEASURED = ("loss", "lr", "grad_norm", "param_norm", "update_norm", "tokens", "skipped", "val_loss", "val_bpb")

WORDS = ["streams", "carry", "state", "through", "depth", "and", "tokens", "exchange", "information", "in", "time"]


def tiny_run(folder: Path) -> RunConfig:
    """Bytes of sentences of twelve words; 8 x 16 tokens a step; one layer of width 16."""
    rng = random.Random(0)
    corpus = folder / "corpus.txt"
    corpus.write_text("".join(" ".join(rng.choices(WORDS, k=6)) + ".\n" for _ in range(400)))
    return RunConfig(
        name="tiny",
        run_dir=str(folder / "run"),
        model=mhc_ssm("baseline", vocab_size=None, max_len=None, width=16, layers=1),
        data=CorpusConfig(
            source=str(corpus),
            tokenizer="bytes",
            seq_len=16,
            batch_size=8,
            cache_dir=str(folder / "cache"),
            max_eval_tokens=400,
            sample_tokens=0,
        ),
        optim=OptimConfig(lr=3e-2, warmup_steps=5),
        objective=CrossEntropyConfig(chunk=8),
        train=TrainConfig(steps=150, eval_every=60, eval_batches=3),
        checkpoint=CheckpointConfig(every=50),
        log=LogConfig(every=1, progress=False),
    )


def offer(config: RunConfig, folder: Path) -> None:
    """Makes ``config`` known to :func:`start` as the configuration ``tiny``, from a plug-in in ``folder``."""
    (folder / "tiny.json").write_text(config.to_json())
    (folder / "tiny_plugin.py").write_text(PLUGIN)


def start(
    folder: Path, name: str, *flags: str, signal_at: tuple[int, signal.Signals] | None = None
) -> subprocess.Popen:
    """``python -m train tiny`` as a process that writes to ``folder/name``.

    Args:
        signal_at: a step, and the signal that the process sends itself once it has logged that step.
    """
    argv = ["-m", "train", "tiny", "--import", "tiny_plugin", "--run-dir", str(folder / name), *flags]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    if signal_at:
        argv += ["--import", "train.tests.self_signal"]
        environment["SELF_SIGNAL"] = "{:d} {:d}".format(*signal_at)
    return subprocess.Popen(
        [sys.executable, *argv], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def start_two(
    folder: Path,
    name: str,
    *flags: str,
    signal_at: tuple[int, signal.Signals] | None = None,
    signalled: int = 1,
    other: tuple[str, ...] = (),
    first: tuple[str, ...] = (),
) -> list[subprocess.Popen]:
    """Two processes that train together, as :func:`start` does.

    Args:
        signal_at: what process ``signalled`` sends itself, see :func:`start`.
        other: flags of the second process alone.
        first: flags of the first process alone.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    place = ("--distributed.coordinator", address, "--distributed.num-processes", "2", "--distributed.process-id")
    return [
        start(folder, name, *flags, *extra, *place, str(i), signal_at=signal_at if i == signalled else None)
        for i, extra in enumerate((first, other))
    ]


def finish(*processes: subprocess.Popen, status: int = 0) -> list[str]:
    """Waits for all of them, which must end with ``status``; what each printed."""
    try:
        outputs = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert {process.returncode for process in processes} == {status}, "\n".join(outputs)
    return outputs


def measured(run_dir: Path) -> list[dict]:
    """The lines of a run's metrics without its timings."""
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [{key: line[key] for key in ("step", *MEASURED) if key in line} for line in lines]
