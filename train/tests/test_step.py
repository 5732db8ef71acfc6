"""The training step: what it computes, accumulates, skips and reports."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mhc_jax
from mhc_jax.config import ConfigError
from mhc_jax.functional import param_info
from mhc_jax.models import mhc_ssm
from mhc_jax.ops.loss import IGNORE, cross_entropy
from train.config import OptimConfig, RunConfig
from train.data.config import CorpusConfig
from train.objectives.cross_entropy import CrossEntropyConfig
from train.objectives.kind import ObjectiveConfig
from train.update.optimizer import make_optimizer
from train.update.step import RESERVED, init_state, make_eval_step, make_train_step

CONFIG = RunConfig(
    model=mhc_ssm("baseline", vocab_size=31, max_len=12, width=8, layers=1),
    data=CorpusConfig(seq_len=12, batch_size=8),
    # A large eps, so that the rounding of a gradient near zero does not decide the direction of Adam's update.
    optim=OptimConfig(lr=1e-2, warmup_steps=0, eps=1e-2),
    objective=CrossEntropyConfig(chunk=5),
)


def optimizer_of(config):
    return make_optimizer(config.optim, 100, param_info(config.model))


def compiled(config):
    return jax.jit(make_train_step(config, optimizer_of(config)))


def with_train(**changes):
    return CONFIG.replace(train=CONFIG.train.replace(**changes))


def assert_close(one, other, rtol=2e-5, atol=2e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), one, other)


@pytest.fixture(scope="module")
def batch():
    """Eight sequences whose numbers of targets differ."""
    rng = np.random.default_rng(0)
    inputs, targets = (rng.integers(0, 31, (8, 12)).astype(np.int32) for _ in range(2))
    for row in range(8):
        targets[row, : row + 1] = IGNORE
    return {"inputs": inputs, "targets": targets}


@pytest.fixture(scope="module")
def start():
    return init_state(CONFIG, optimizer_of(CONFIG))


@pytest.fixture(scope="module")
def step():
    return compiled(CONFIG)


@pytest.fixture(scope="module")
def after(step, start, batch):
    return step(start, batch)


@pytest.mark.parametrize("coefficient", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
def test_equals_a_step_written_out_with_whole_logits(coefficient, batch, step, start):
    """Without streams; and with streams and the stream-diversity term, which the reported loss leaves out."""
    config = CONFIG
    if coefficient:
        config = config.replace(
            model=mhc_ssm(vocab_size=31, max_len=12, width=8, layers=1, stream_diversity=coefficient),
        )
        start, step = init_state(config, optimizer_of(config)), compiled(config)

    def objective(params):
        output = mhc_jax.apply(config.model, params, batch["inputs"])
        total, count = cross_entropy(output.logits_BTV, batch["targets"])
        diversity = output.penalties.get("stream_diversity", 0.0)
        return total / count + diversity, (total / count, diversity)

    (_, (loss, diversity)), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(start.params)
    updates, _ = optimizer_of(config).update(grads, start.opt_state, start.params)
    state, metrics = step(start, batch)
    assert_close(state.params, optax.apply_updates(start.params, updates))
    expected = {
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        "update_norm": optax.tree.norm(updates),
        "param_norm": optax.tree.norm(state.params),
        "tokens": np.sum(batch["targets"] != IGNORE),
        "lr": 1e-2,
        "skipped": 0,
    }
    if coefficient:
        expected["stream_diversity"] = diversity
    for name, wanted in expected.items():
        np.testing.assert_allclose(metrics[name], wanted, rtol=1e-5, err_msg=name)
    assert ("stream_diversity" in metrics) == bool(coefficient)
    assert int(state.step) == 1


def test_accumulation_equals_the_whole_batch_though_targets_are_uneven(start, batch, after):
    state, metrics = compiled(with_train(accumulate=4))(start, batch)
    assert_close(state.params, after[0].params)
    for name in ("loss", "grad_norm", "tokens", "update_norm"):
        np.testing.assert_allclose(metrics[name], after[1][name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_step_changes_only_the_counters(bad, step, start, batch):
    embed = start.params["embed"]
    poisoned = {**start.params, "embed": {**embed, "positions": embed["positions"].at[3, 2].set(bad)}}
    state = dataclasses.replace(start, params=poisoned)
    for count in (1, 2):
        state, metrics = step(state, batch)
        assert not np.isfinite(metrics["grad_norm"])
        jax.tree.map(np.testing.assert_array_equal, state.params, poisoned)
        jax.tree.map(np.testing.assert_array_equal, state.opt_state, start.opt_state)
        assert (int(state.step), int(state.skipped), int(state.consecutive_skipped)) == (count, count, count)
    state, metrics = step(dataclasses.replace(state, params=start.params), batch)
    assert (int(metrics["skipped"]), int(metrics["consecutive_skipped"]), int(state.step)) == (2, 0, 3)


def test_update_that_overflows_the_parameters_is_skipped(start, batch):
    config = CONFIG.replace(optim=CONFIG.optim.replace(lr=1e38))
    state, metrics = compiled(config)(start, batch)
    assert np.isfinite(metrics["grad_norm"])
    assert int(metrics["skipped"]) == 1
    jax.tree.map(np.testing.assert_array_equal, state.params, start.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_a_parameter_that_would_overflow_stays_and_the_step_counts_as_skipped(start, batch):
    def spoilt(updates, _):
        return updates | {"embed": jax.tree.map(lambda u: u.at[0, 1].set(np.inf), updates["embed"])}

    optimizer = optax.chain(optimizer_of(CONFIG), optax.stateless(spoilt))
    state, metrics = jax.jit(make_train_step(CONFIG, optimizer))(init_state(CONFIG, optimizer), batch)
    assert (int(metrics["skipped"]), int(metrics["consecutive_skipped"])) == (1, 1)
    assert np.isinf(metrics["update_norm"])
    for after, before in zip(jax.tree.leaves(state.params["embed"]), jax.tree.leaves(start.params["embed"])):
        stayed = np.zeros(before.shape, bool)
        stayed[0, 1] = True
        np.testing.assert_array_equal(after == before, stayed)


@dataclasses.dataclass(frozen=True)
class Linear(ObjectiveConfig):
    """Its gradient is the batch."""

    def sums(self, model, params, batch, **_):
        return {"loss": optax.tree.vdot(params, batch["gradient"]), "tokens": 1.0}, {}


def test_the_update_writes_the_state_in_place_and_without_a_second_one():
    config = CONFIG.replace(model=mhc_ssm("baseline", vocab_size=4096, max_len=12, width=64, layers=1))
    config = config.replace(objective=Linear())
    state = jax.eval_shape(lambda: init_state(config, optimizer_of(config)))
    step = jax.jit(make_train_step(config, optimizer_of(config)), donate_argnums=0)
    memory = step.lower(state, {"gradient": state.params}).compile().memory_analysis()
    params, whole = (sum(leaf.size * 4 for leaf in jax.tree.leaves(tree)) for tree in (state.params, state))
    assert memory.alias_size_in_bytes == whole
    # A select that waited for the norms of the update would keep the new parameters and moments beside the old ones.
    assert memory.temp_size_in_bytes < 3 * params


@pytest.mark.slow
def test_dropout_depends_on_seed_and_step_alone_and_evaluation_has_none(batch):
    config = CONFIG.replace(model=CONFIG.model.replace(dropout=0.2))
    start = init_state(config, optimizer_of(config))
    step = compiled(config)
    first, again = step(start, batch)[1]["loss"], step(start, batch)[1]["loss"]
    later = step(dataclasses.replace(start, step=start.step + 1), batch)[1]["loss"]
    assert first == again
    assert first != later
    sums = jax.jit(make_eval_step(config))(start.params, batch)
    without_dropout = mhc_jax.apply(config.model, start.params, batch["inputs"]).logits_BTV
    expected, expected_count = cross_entropy(without_dropout, batch["targets"])
    assert sums.keys() == {"loss", "tokens"}
    np.testing.assert_allclose(sums["loss"], expected, rtol=1e-5)
    assert sums["tokens"] == expected_count


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_every_micro_batch_of_every_step_drops_by_a_key_of_its_own(accumulate, batch):
    """The loss written out: the key of part i of step s is that of the seed, folded with s and then with i."""
    config = with_train(accumulate=accumulate, seed=5).replace(model=CONFIG.model.replace(dropout=0.4))
    state = dataclasses.replace(init_state(config, optimizer_of(config)), step=jnp.int32(3))
    same = {name: np.repeat(x[:4], 2, axis=0) for name, x in batch.items()}  # two parts with equal rows
    metrics = compiled(config)(state, same)[1]
    key = jax.random.fold_in(jax.random.key(5), 3)

    @jax.jit
    def mean(inputs, targets, key):
        total, count = cross_entropy(mhc_jax.apply(config.model, state.params, inputs, key=key).logits_BTV, targets)
        return total / count

    parts = [{name: x[part::accumulate] for name, x in same.items()} for part in range(accumulate)]
    losses = [mean(part["inputs"], part["targets"], jax.random.fold_in(key, i)) for i, part in enumerate(parts)]
    assert len({float(loss) for loss in losses}) == accumulate
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)


def test_the_seed_decides_the_start():
    one, other = (init_state(with_train(seed=seed), optimizer_of(CONFIG)) for seed in (1, 2))
    assert (one.params["embed"]["tokens"] != other.params["embed"]["tokens"]).all()
    assert [int(x) for x in (one.step, one.skipped, one.consecutive_skipped)] == [0, 0, 0]


def test_bfloat16_steps_keep_float32_state(batch):
    config = CONFIG.replace(model=CONFIG.model.replace(execution=CONFIG.model.execution.replace(policy="bfloat16")))
    for accumulate in (1, 2):
        config = config.replace(train=config.train.replace(accumulate=accumulate))
        state = jax.eval_shape(lambda config=config: init_state(config, optimizer_of(config)))
        after, metrics = jax.eval_shape(make_train_step(config, optimizer_of(config)), state, batch)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
        floats = {"loss", "lr", "grad_norm", "update_norm", "param_norm", "tokens"}
        assert {name: metrics[name].dtype for name in floats} == dict.fromkeys(floats, jnp.float32)


def test_whole_logits_never_exist_in_the_compiled_step(start):
    config = CONFIG.replace(data=CONFIG.data.replace(batch_size=4))
    batch = {name: jnp.zeros((4, 12), jnp.int32) for name in ("inputs", "targets")}
    text = jax.jit(make_train_step(config, optimizer_of(config))).lower(start, batch).as_text()
    assert "4x5x31x" in text
    assert "4x12x31x" not in text


@dataclasses.dataclass(frozen=True)
class Naming(ObjectiveConfig):
    """Gives a sum, and an auxiliary loss, of these names."""

    total: str = "tokens"
    penalty: str = "other"

    def sums(self, model, params, batch, **_):
        loss = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))
        return {"loss": loss, "tokens": 1.0, self.total: 1.0}, {self.penalty: loss}


@pytest.mark.parametrize("name", ["loss", "tokens", "lr", "grad_norm", "mfu", "step", "val_loss", "spread"])
def test_a_penalty_under_the_name_of_another_metric_is_refused(name, start, batch):
    config = CONFIG.replace(objective=Naming(total="spread", penalty=name))
    with pytest.raises(ConfigError, match=f"the penalty '{name}' has the name of another metric; rename it"):
        jax.eval_shape(make_train_step(config, optimizer_of(config)), start, batch)


def test_a_sum_of_the_objective_under_the_name_of_another_metric_is_refused(start, batch):
    config = CONFIG.replace(objective=Naming(total="lr"))
    with pytest.raises(ConfigError, match="the sum of the objective 'lr' has the name of another metric"):
        jax.eval_shape(make_train_step(config, optimizer_of(config)), start, batch)


def test_all_numbers_of_a_step_have_reserved_names(start, batch):
    _, metrics = jax.eval_shape(make_train_step(CONFIG, optimizer_of(CONFIG)), start, batch)
    assert metrics.keys() - {"loss", "tokens"} == RESERVED & metrics.keys()
