"""The loop: what a run writes, refuses and survives."""

import collections
import contextlib
import importlib.util
import io
import json
import logging
import math
import os
import re
import shutil
import signal
import sys
import types

import jax
import numpy as np
import pytest

from mhc_jax.config import ConfigError
from mhc_jax.functional import param_info
from mhc_jax.models import mhc_ssm, with_topology
from train.config import OptimConfig, recorded
from train.loop import run as run_module
from train.loop.resolve import changed
from train.loop.run import NonFiniteError, run
from train.measure.log import MetricsLog
from train.measure.scores import evaluate_split
from train.storage.checkpoint import Checkpoints
from train.storage.folder import read_metrics
from train.storage.restore import load_run
from train.terminal.interrupt import Interrupted
from train.tests.runs import measured, tiny_run


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run: its configuration, folder, summary, and how often JAX compiled what."""
    folder = tmp_path_factory.mktemp("done")
    config = tiny_run(folder)
    config = config.replace(data=config.data.replace(sample_tokens=8))
    compiled = collections.Counter()

    class Count(logging.Handler):
        def emit(self, record):
            if found := re.match(r"Finished XLA compilation of (\S+)", record.getMessage()):
                compiled[found[1]] += 1

    logger = logging.getLogger("jax")
    handlers, logger.handlers, logger.propagate = logger.handlers, [Count()], False
    printed = io.StringIO()
    with jax.log_compiles(), contextlib.redirect_stdout(printed):
        summary = run(config).summary
    logger.handlers, logger.propagate = handlers, True
    return types.SimpleNamespace(
        config=config,
        folder=folder / "run",
        summary=summary,
        compiled=compiled,
        printed=printed.getvalue().splitlines(),
    )


def extended(done, **changes):
    """The finished run to be resumed with other training options."""
    return done.config.replace(train=done.config.train.replace(resume=True, **changes))


@pytest.mark.slow
def test_loss_falls_below_the_unigram_model(done):
    assert done.summary["val_ppl"] < 0.5 * done.summary["unigram_ppl"]
    losses = [line["loss"] for line in read_metrics(done.folder / "metrics.jsonl") if "loss" in line]
    assert losses[-1] < losses[0] - 3


def test_what_a_run_prints_fits_a_terminal(done):
    own = [line.replace(str(done.folder.parent), "folder") for line in done.printed]
    assert max(map(len, own)) <= 80
    assert not any(re.search(r"ppl \d+\.\d{4}", line) for line in own)


def test_training_and_evaluation_steps_compile_once(done):
    assert done.compiled["jit(train_step)"] == 1
    assert done.compiled["jit(eval_step)"] == 1


def test_metrics_have_a_line_for_every_step_and_evaluation(done):
    lines = read_metrics(done.folder / "metrics.jsonl")
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == list(range(1, 151))
    assert {"lr", "grad_norm", "param_norm", "update_norm", "tokens", "skipped"} <= set(training[0])
    assert {"tokens_per_second", "data_wait", "flops_per_second"} <= set(training[0])
    assert [line["lr"] for line in training[:6]] == pytest.approx([0.006, 0.012, 0.018, 0.024, 0.03, 0.03])
    assert all(line["tokens"] == 128 for line in training)
    evaluations = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in evaluations] == [60, 120, 150]
    for line in evaluations:
        assert line["val_ppl"] == pytest.approx(math.exp(line["val_loss"]))


def test_summary_is_what_the_last_checkpoint_scores(done):
    summary = json.loads((done.folder / "summary.json").read_text())
    assert summary == done.summary
    config, params = load_run(done.folder, "last")
    assert (config.model.vocab_size, config.model.max_len) == (257, 16)
    scores = evaluate_split(config, params, config.data.load())
    for name in ("loss", "ppl", "bpb"):
        assert summary[f"val_{name}"] == pytest.approx(scores[name], rel=1e-6)
    assert scores["tokens"] == 24 * 16  # the whole split, not only train.eval_batches
    assert summary["params"] == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert summary["tokens"] == 150 * 128
    assert "jax" in summary["versions"]


def test_checkpoints_keep_the_latest_and_the_best(done):
    checkpoints = Checkpoints(done.folder, 2)
    assert checkpoints.latest_step() == 150
    evaluations = {
        line["step"]: line["val_loss"] for line in read_metrics(done.folder / "metrics.jsonl") if "val_loss" in line
    }
    assert checkpoints.best_step() == min(evaluations, key=evaluations.get)


def test_picture_and_sample_are_written(done):
    assert (done.folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (done.folder / "sample.txt").read_text().strip()


def test_an_existing_run_is_not_overwritten(done):
    before = (done.folder / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="already holds a run; continue it with --resume "):
        run(done.config)
    assert (done.folder / "metrics.jsonl").read_bytes() == before


def test_resume_refuses_what_changes_the_numbers(done):
    other = extended(done).replace(optim=done.config.optim.replace(lr=0.5))
    with pytest.raises(ConfigError, match=r": --optim.lr was 0.03 and is now 0.5"):
        run(other)
    with pytest.raises(ConfigError, match=r": --model.ends.init was None and is now 'repeat'"):
        run(extended(done).replace(model=mhc_ssm(vocab_size=None, max_len=None, width=16, layers=1)))


def test_resume_takes_another_implementation(done):
    config = recorded(done.folder / "config.json")
    mixer = config.model.mixer.replace(implementation="pallas")
    assert changed(config.replace(model=config.model.replace(mixer=mixer))) == ""
    other = config.model.replace(mixer=mixer.replace(chunk=mixer.chunk + 1))
    assert changed(config.replace(model=other)) == "--model.mixer.chunk was 16 and is now 17"


def test_resume_takes_iterations_that_are_kept_or_repeated(done, tmp_path):
    def having(gradient):
        model = with_topology(done.config.model, "mhc")
        projection = model.residual.projection.replace(gradient=gradient)
        model = model.replace(residual=model.residual.replace(projection=projection))
        return done.config.replace(model=model, run_dir=str(tmp_path))

    (tmp_path / "config.json").write_text(json.dumps(having("recompute").to_dict()))
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert changed(having("unrolled")) == ""
    told = "--model.residual.projection.gradient was 'recompute' and is now 'implicit'"
    assert changed(having("implicit")) == told


def test_resume_refuses_other_text(done):
    corpus = done.folder.parent / "corpus.txt"
    text = corpus.read_text()
    corpus.write_text(text.replace("depth", "width"))
    try:
        with pytest.raises(ConfigError, match="the text or its tokenizer is not what the run began with"):
            run(extended(done, steps=160))
    finally:
        corpus.write_text(text)


def test_resume_refuses_a_folder_that_is_no_run(tmp_path):
    config = tiny_run(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds no config.json"):
        run(config.replace(train=config.train.replace(resume=True)))


def test_steps_without_a_finite_number_stop_the_run_and_save_nothing(tmp_path):
    config = tiny_run(tmp_path)
    config = config.replace(
        optim=OptimConfig(lr=3e38, warmup_steps=0, schedule="constant"),
        train=config.train.replace(max_nonfinite=4, eval_every=2),
        checkpoint=config.checkpoint.replace(every=50),
    )
    with pytest.raises(NonFiniteError, match=r"4 steps in a row up to step 4 .* Lower --optim.lr"):
        run(config)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["skipped"] for line in lines if "skipped" in line] == [1, 2, 3, 4]
    state, _, _ = _last(tmp_path / "run", config)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def _last(folder, config):
    """The last checkpoint, restored to the state of ``config``."""
    config = run_module.resolve(config)
    optimizer = run_module.make_optimizer(config.optim, 1, param_info(config.model))
    abstract = jax.eval_shape(lambda: run_module.init_state(config, optimizer))
    return Checkpoints(folder, 2).restore(abstract)


def test_a_signal_saves_and_a_resumed_run_ends_as_if_nothing_had_happened(done, tmp_path, monkeypatch):
    config = tiny_run(tmp_path).replace(run_dir=str(tmp_path / "stopped"))
    batches = run_module.sharding.global_batch

    def interrupting(batch, mesh, count=iter(range(1000))):
        if next(count) == 29:
            os.kill(os.getpid(), signal.SIGTERM)
        return batches(batch, mesh)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(run_module.sharding, "global_batch", interrupting)
        with pytest.raises(Interrupted, match=r"saved step 30 in .*/stopped; resume with: do it again$"):
            run(config, resume_command="do it again")
    assert (tmp_path / "stopped" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert signal.getsignal(signal.SIGTERM) is before
    assert Checkpoints(tmp_path / "stopped", 2).latest_step() == 30
    summary = run(config.replace(train=config.train.replace(resume=True))).summary
    for name in ("val_loss", "val_bpb", "tokens", "best_val_loss"):
        assert summary[name] == done.summary[name]


@pytest.mark.slow
def test_lines_hold_the_mean_loss_since_the_last_line_also_of_a_resumed_run(tmp_path):
    config = tiny_run(tmp_path)
    config = config.replace(
        train=config.train.replace(steps=10, eval_every=0),
        checkpoint=config.checkpoint.replace(every=6),
    )

    def losses(name, *, every, steps=(10,), callbacks=(), profile=""):
        log = config.log.replace(every=every, profile=profile)
        for count in steps:
            optim = config.optim.replace(decay_steps=10)
            train = config.train.replace(steps=count, resume=count != steps[0])
            one = config.replace(run_dir=str(tmp_path / name), log=log, optim=optim, train=train)
            result = run(one, callbacks=callbacks)
        lines = [line for line in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in line]
        assert all(line["total_tokens"] == 128 * line["step"] for line in lines)
        return {line["step"]: line["loss"] for line in lines}, result

    heard = []
    single, result = losses("single", every=1, callbacks=[lambda step, values: heard.append((step, values))])
    assert [(step, values["loss"]) for step, values in heard if "loss" in values] == list(single.items())
    assert [step for step, values in heard if "val_loss" in values] == [10]
    assert sum(leaf.size for leaf in jax.tree.leaves(result.params)) == result.summary["params"]
    mean, _ = losses("mean", every=4, profile="2:3")
    expected = {1: single[1], 4: [1, 4], 8: [5, 8], 10: [9, 10]}
    for step, span in expected.items():
        first, last = span if isinstance(span, list) else (step, step)
        assert mean[step] == pytest.approx(np.mean([single[i] for i in range(first, last + 1)]), rel=1e-6)
    assert list((tmp_path / "mean" / "profile").rglob("perfetto_trace.json.gz"))
    resumed, _ = losses("resumed", every=4, steps=(6, 10))
    assert {step: loss for step, loss in resumed.items() if step in (8, 10)} == {8: mean[8], 10: mean[10]}


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_again(done, tmp_path, capsys):
    """Such a run leaves its configuration, its metrics, and a checkpoint under the name of an unfinished one."""
    killed = tmp_path / "killed"
    (killed / "checkpoints" / "50.orbax-checkpoint-tmp").mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(done.folder / name, killed)
    summary = run(extended(done).replace(run_dir=str(killed))).summary
    assert f"no finished checkpoint in {killed}: starting at the beginning" in capsys.readouterr().out
    assert summary["val_loss"] == done.summary["val_loss"]
    assert measured(killed) == measured(done.folder)
    assert not list((killed / "checkpoints").glob("*tmp*"))


def test_missing_trackers_are_named_before_anything_starts(tmp_path, monkeypatch):
    config = tiny_run(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for change, package in (({"tensorboard": True}, "tensorboardX"), ({"wandb": "project"}, "wandb")):
        with pytest.raises(ConfigError, match=rf"needs {package}, which is not installed: pip install"):
            run(config.replace(log=config.log.replace(**change)))
    assert not (tmp_path / "run").exists()


def test_trackers_receive_what_the_file_receives(tmp_path, monkeypatch):
    written = collections.defaultdict(list)

    class Writer:
        def __init__(self, folder):
            written["folder"].append(folder)

        def add_scalar(self, name, value, step):
            written["tensorboard"].append((name, value, step))

        def close(self):
            written["closed"].append("tensorboard")

    class Project:
        def log(self, values, step):
            written["wandb"].append((values, step))

        def finish(self):
            written["closed"].append("wandb")

    def start(**options):
        written["options"].append(options)
        return Project()

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=start))
    config = tiny_run(tmp_path)
    config = config.replace(log=config.log.replace(tensorboard=True, wandb="project"))
    with MetricsLog(tmp_path, config, start=0) as log:
        log.write(3, {"loss": 1.5, "grad_norm": math.nan})
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 3, "total_tokens": 384, "loss": 1.5, "grad_norm": None}
    ]
    assert ("loss", 1.5, 3) in written["tensorboard"]
    assert written["wandb"][0][1] == 3
    assert written["options"][0]["project"] == "project"
    assert written["closed"] == ["tensorboard", "wandb"]


def test_resumed_metrics_drop_what_will_be_repeated_and_half_a_line(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    with MetricsLog(tmp_path, tiny_run(tmp_path), start=2) as log:
        log.write(3, {"loss": 1.25})
    assert [line["loss"] for line in read_metrics(file)] == [3.0, 2.0, 1.25]
