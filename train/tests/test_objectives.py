"""What objectives sum, and that a further kind needs no edit of the step, the loop or the scores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhc_jax
from mhc_jax import registry
from mhc_jax.backend import compiling_for
from mhc_jax.config import ConfigError
from mhc_jax.functional import param_info
from mhc_jax.models import mhc_ssm
from mhc_jax.ops.loss import IGNORE, cross_entropy
from train.config import RunConfig, TrainConfig
from train.loop.run import run
from train.objectives.cross_entropy import CrossEntropyConfig
from train.objectives.distillation import DistillationConfig
from train.objectives.kind import ObjectiveConfig
from train.storage.folder import read_metrics
from train.tests.runs import tiny_run
from train.update.optimizer import make_optimizer
from train.update.step import init_state, make_train_step

MODEL = mhc_ssm("mhc", vocab_size=11, max_len=8, width=12, layers=2)


@pytest.fixture(scope="module")
def known():
    """Parameters, a batch whose targets are the likeliest tokens but for two, and the logits."""
    params = mhc_jax.init(MODEL, jax.random.key(0))
    inputs = jax.random.randint(jax.random.key(1), (2, 8), 0, 11)
    logits = np.asarray(mhc_jax.apply(MODEL, params, inputs).logits_BTV)
    targets = logits.argmax(-1)
    targets[0, 2] = logits[0, 2].argmin()
    targets[1, 7] = logits[1, 7].argsort()[-2]
    targets[0, 5] = targets[1, 0] = IGNORE
    return params, {"inputs": inputs, "targets": jnp.asarray(targets)}, logits


@pytest.mark.parametrize("chunk", [1, 3, 8, 20])
def test_cross_entropy_and_errors_of_known_targets(chunk, known):
    params, batch, logits = known
    sums, penalties = CrossEntropyConfig(chunk=chunk, errors=True).sums(MODEL, params, batch)
    expected, count = cross_entropy(logits, batch["targets"])
    assert sums.keys() == {"loss", "tokens", "error"}
    np.testing.assert_allclose(sums["loss"], expected, rtol=1e-5)
    assert (sums["tokens"], sums["error"]) == (count, 2) == (14, 2)
    assert not penalties


@pytest.mark.parametrize("policy", ["float32", "bfloat16", "bfloat16_wide_streams", "float16"])
def test_chunks_have_the_gradients_of_all_tokens_at_once_under_every_policy(policy, known):
    """In one compiled program: a CPU cannot transpose what a product in 16 bits has widened."""
    params, batch, _ = known
    model = MODEL.replace(execution=MODEL.execution.replace(policy=policy))

    def chunked(params):
        return CrossEntropyConfig(chunk=3).sums(model, params, batch)[0]["loss"]

    def whole(params):
        return cross_entropy(mhc_jax.apply(model, params, batch["inputs"]).logits_BTV, batch["targets"])[0]

    error = 1e-4 if policy == "float32" else 0.05
    found, expected = (jax.jit(jax.grad(loss))(params) for loss in (chunked, whole))
    for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=error * float(jnp.abs(y).max()))


@pytest.mark.parametrize("z_loss", [0.0, pytest.param(0.1, marks=pytest.mark.slow)])
def test_a_step_by_kernels_is_that_by_xla(z_loss, known):
    params, batch, _ = known
    found = []
    for implementation in ("xla", "pallas"):
        config = tiny_run_of(CrossEntropyConfig(chunk=3, z_loss=z_loss, implementation=implementation), 1)
        optimizer = make_optimizer(config.optim, 10, param_info(MODEL))
        state = dataclasses.replace(init_state(config, optimizer), params=params)
        found.append(jax.jit(make_train_step(config, optimizer))(state, batch))
    (by_xla, metrics), (by_kernels, same) = found
    assert metrics.keys() == same.keys()
    for x, y in zip(*map(jax.tree.leaves, ((by_xla.params, metrics), (by_kernels.params, same))), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_kernels_that_there_are_not_are_refused():
    objective, narrow = CrossEntropyConfig(implementation="pallas"), MODEL.execution.replace(policy="float16")
    objective.check_kernels(MODEL)
    with pytest.raises(ConfigError, match="implementation 'pallas': .* or bfloat16, not float16; take such a"):
        tiny_run_of(objective, 1).replace(model=MODEL.replace(execution=narrow)).validate()
    with compiling_for("gpu"), pytest.raises(ConfigError, match="implementation 'pallas': .*are for TPUs; take impl"):
        objective.check_kernels(MODEL)
    with pytest.raises(ConfigError, match="'pallas' has no distillation; leave it at 'xla'"):
        DistillationConfig(implementation="pallas").validate()


def test_errors_are_counted_in_evaluation_alone_and_only_if_asked_for(known):
    params, batch, _ = known
    training, _ = CrossEntropyConfig(errors=True).sums(MODEL, params, batch, key=jax.random.key(0))
    unasked, _ = CrossEntropyConfig().sums(MODEL, params, batch)
    assert training.keys() == unasked.keys() == {"loss", "tokens"}


@pytest.mark.slow
def test_the_z_loss_is_reported_beside_the_loss_and_only_training_minimises_it(known):
    params, batch, logits = known
    objective = CrossEntropyConfig(chunk=3, z_loss=0.5)
    valid = np.asarray(batch["targets"]) != IGNORE
    log_z = jax.nn.logsumexp(logits, axis=-1)

    def total(params):
        sums, penalties = objective.sums(MODEL, params, batch, key=jax.random.key(0))
        return sums["loss"] / sums["tokens"] + penalties["z_loss"], (sums, penalties)

    def whole(params):
        found = mhc_jax.apply(MODEL, params, batch["inputs"]).logits_BTV
        loss, count = cross_entropy(found, batch["targets"])
        return loss / count + 0.5 * jnp.mean(jax.nn.logsumexp(found, axis=-1)[valid] ** 2)

    gradient, (sums, penalties) = jax.jit(jax.grad(total, has_aux=True))(params)
    np.testing.assert_allclose(penalties["z_loss"], 0.5 * (log_z[valid] ** 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(sums["loss"], CrossEntropyConfig().sums(MODEL, params, batch)[0]["loss"], rtol=1e-6)
    expected = jax.jit(jax.grad(whole))(params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6), gradient, expected)
    with pytest.raises(ConfigError, match="z_loss must not be negative"):
        objective.replace(z_loss=-1.0).validate()
    with pytest.raises(ConfigError, match="z_loss is not part of distillation"):
        DistillationConfig(z_loss=1e-4).validate()


def test_equal_logits_name_the_first_token_and_what_is_no_number_names_none(known):
    params, batch, _ = known
    objective = CrossEntropyConfig(errors=True)
    flat = jax.tree.map(jnp.zeros_like, params)
    first = batch | {"targets": jnp.zeros((2, 8), int).at[1, 1].set(1)}
    assert objective.sums(MODEL, flat, first)[0]["error"] == 1
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
    assert objective.sums(MODEL, broken, first)[0]["error"] == 16


@pytest.fixture
def squared():
    """An objective from outside: the squared distance of the probabilities from the target, and a further sum."""
    before = dict(registry._REGISTRY["objective"])

    @registry.register("objective", "brier")
    @dataclasses.dataclass(frozen=True)
    class BrierConfig(ObjectiveConfig):
        weight: float = 1.0

        def check(self, model):
            self.require(model.layers < 3, "no more than two layers")

        def sums(self, model, params, batch, *, key=None, progress=None, batch_sharding=None):
            found = mhc_jax.apply(model, params, batch["inputs"], key=key, batch_sharding=batch_sharding)
            valid = batch["targets"] != IGNORE
            distance = jax.nn.softmax(found.logits_BTV) - jax.nn.one_hot(batch["targets"], model.vocab_size)
            score = jnp.sum(jnp.where(valid, (distance**2).sum(-1), 0.0))
            spread = jnp.sum(jnp.where(valid, found.logits_BTV.std(-1), 0.0))
            told = valid.sum() * (2.0 if progress is None else progress)
            return {"loss": self.weight * score, "tokens": valid.sum(), "spread": spread, "told": told}, found.penalties

    yield BrierConfig()
    registry._REGISTRY["objective"] = before


@pytest.mark.slow
def test_another_objective_trains_reports_and_resumes(squared, tmp_path):
    config = tiny_run(tmp_path)
    train = config.train.replace(steps=40, eval_every=20)
    config = config.replace(objective=squared.replace(weight=2.0), train=train)
    whole = run(config).summary
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[0] == pytest.approx(2.0, rel=0.05)  # alike for 257 bytes
    assert losses[-1] < losses[0] - 0.1
    assert all("spread" in line for line in lines if "loss" in line)
    assert {"val_loss", "val_spread"} <= whole.keys()
    assert [line["told"] for line in lines if "loss" in line] == pytest.approx([step / 40 for step in range(40)])
    assert whole["val_told"] == 2.0  # evaluation is told nothing

    constant = config.replace(optim=config.optim.replace(schedule="constant"))
    runs = [constant.replace(run_dir=str(tmp_path / name)) for name in ("one", "two")]
    expected = run(runs[0]).summary["val_loss"]
    run(runs[1].replace(train=train.replace(steps=17)))
    assert run(runs[1].replace(train=train.replace(resume=True))).summary["val_loss"] == expected
    with pytest.raises(ConfigError, match=r"--objective.weight was 2.0 and is now 1.0"):
        run(runs[1].replace(objective=squared, train=train.replace(resume=True)))


def test_an_objective_refuses_a_model_by_its_field(squared, tmp_path):
    config = tiny_run(tmp_path).replace(objective=squared)
    with pytest.raises(ConfigError, match="no more than two layers"):
        run(config.replace(model=config.model.replace(layers=3)))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_further_sums_are_means_over_all_targets_whatever_the_parts(squared, known):
    params, batch, _ = known
    found = []
    for accumulate in (1, 2):
        config = tiny_run_of(squared, accumulate)
        optimizer = make_optimizer(config.optim, 10, param_info(MODEL))
        state = dataclasses.replace(init_state(config, optimizer), params=params)
        found.append(jax.jit(make_train_step(config, optimizer))(state, batch)[1])
    whole, parts = found
    direct, _ = squared.sums(MODEL, params, batch)
    for name in ("loss", "spread", "grad_norm"):
        np.testing.assert_allclose(whole[name], parts[name], rtol=1e-5)
    np.testing.assert_allclose(whole["spread"], direct["spread"] / 14, rtol=1e-5)


def tiny_run_of(objective, accumulate):
    return RunConfig(model=MODEL, objective=objective, train=TrainConfig(accumulate=accumulate))
