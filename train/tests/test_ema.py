"""The moving average of the parameters: PyTorch's, kept, resumed, sharded, scored and exported; with Muon beside it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import mhc_jax
from mhc_jax.config import ConfigError
from mhc_jax.functional import param_info
from mhc_jax.models import mhc_ssm
from mhc_jax.tree import flatten
from train import evaluate, export
from train.config import OptimConfig, RunConfig
from train.data.config import CorpusConfig
from train.loop.run import run
from train.storage.folder import read_metrics
from train.storage.restore import load_run
from train.tests.runs import tiny_run
from train.update.optimizer import make_optimizer
from train.update.step import init_state, make_train_step

WORKER = Path(__file__).with_name("optimizer_on_meshes.py")
EMA = 0.75


def test_it_is_that_of_torch_and_a_skipped_step_leaves_it():
    config = RunConfig(
        model=mhc_ssm("baseline", vocab_size=31, max_len=6, width=8, layers=1),
        data=CorpusConfig(seq_len=6, batch_size=2),
        optim=OptimConfig(lr=1e-2, warmup_steps=0, ema=EMA),
    )
    optimizer = make_optimizer(config.optim, 10, param_info(config.model))
    step, state = jax.jit(make_train_step(config, optimizer)), init_state(config, optimizer)
    tokens = np.arange(12, dtype=np.int32).reshape(2, 6)
    good = {"inputs": tokens, "targets": tokens + 1}
    none = good | {"targets": np.full_like(tokens, -100)}  # a mean of nothing is NaN
    name = "embed.tokens"
    weight = torch.nn.Linear(*flatten(state.params)[name].T.shape, bias=False)
    averaged = AveragedModel(weight, multi_avg_fn=get_ema_multi_avg_fn(EMA))
    for batch in (none, good, good, none, good):
        before = state
        state, metrics = step(state, batch)
        if batch is none:
            jax.tree.map(np.testing.assert_array_equal, state.ema, before.ema)
            continue
        with torch.no_grad():
            weight.weight.copy_(torch.tensor(np.asarray(flatten(state.params)[name])))
        averaged.update_parameters(weight)
        of_torch = averaged.module.weight.detach().numpy()
        np.testing.assert_allclose(flatten(state.ema)[name], of_torch, rtol=1e-6, atol=1e-8)
    assert metrics["skipped"] == 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with Muon and an average, the same stopped and resumed, and one without an average."""
    folder = tmp_path_factory.mktemp("ema")
    config = tiny_run(folder)
    train = config.train.replace(steps=12, eval_every=6, eval_batches=2)
    optim = config.optim.replace(name="muon", schedule="wsd", decay_steps=12, ema=EMA)
    config = config.replace(optim=optim, train=train, run_dir=str(folder / "whole"))
    whole = run(config)
    part = config.replace(run_dir=str(folder / "part"))
    run(part.replace(train=train.replace(steps=7)))
    resumed = run(part.replace(train=train.replace(resume=True)))
    plain = config.replace(run_dir=str(folder / "plain"), optim=optim.replace(ema=0.0))
    return folder, config, whole, resumed, run(plain)


@pytest.mark.slow
def test_a_resumed_run_ends_bitwise_alike(runs):
    _, _, whole, resumed, plain = runs
    for one, other in ((whole.params, resumed.params), (whole.ema, resumed.ema), (whole.params, plain.params)):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert plain.ema is None


@pytest.mark.slow
def test_both_scores_are_logged_and_the_average_is_scored_and_exported(runs, capsys):
    folder, _, whole, *_ = runs
    lines = [line for line in read_metrics(folder / "whole" / "metrics.jsonl") if "val_loss" in line]
    assert len(lines) == 2
    assert all({"val_ema_loss", "val_ema_ppl"} <= line.keys() for line in lines)
    assert whole.summary["val_ema_loss"] != whole.summary["val_loss"]
    evaluate.main([str(folder / "whole"), "--which", "last", "--ema", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["loss"] == pytest.approx(whole.summary["val_ema_loss"], rel=1e-5)
    export.main([str(folder / "whole"), str(folder / "exported"), "--which", "last", "--ema"])
    _, params = mhc_jax.load(folder / "exported")
    jax.tree.map(np.testing.assert_array_equal, params, whole.ema)


@pytest.mark.slow
def test_an_average_that_is_not_there_is_refused(runs):
    folder, config, *_ = runs
    with pytest.raises(ConfigError, match="plain was trained without an average"):
        load_run(folder / "plain", ema=True)
    export.main([str(folder / "plain"), str(folder / "raw")])
    with pytest.raises(ConfigError, match="raw is an exported folder"):
        load_run(folder / "raw", ema=True)
    again = config.replace(run_dir=str(folder / "plain"), train=config.train.replace(resume=True, steps=20))
    with pytest.raises(ConfigError, match=r"--optim.ema was 0.0 and is now 0.75"):
        run(again)


@pytest.mark.slow
def test_muon_and_the_average_are_sharded_and_equal_one_device():
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parents[2])}
    done = subprocess.run([sys.executable, str(WORKER)], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["sliced_losses"] == pytest.approx(report["losses"], rel=1e-5)
    assert report["losses"][-1] < report["losses"][0]
    assert max(report["params"], report["ema"]) < 1e-3 < report["apart"]
    assert "blocks.mlp.branch.up_proj.kernel" in report["momentum"]
    assert "embed.tokens" not in report["momentum"]
    assert report["momentum_follows"]
    assert report["ema_follows"]
