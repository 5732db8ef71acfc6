"""A classifier on the prefixes of a model that scans, on a stand-in whose prefixes are sums of embeddings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhc_jax
from mhc_jax import functional, registry
from mhc_jax.config import ConfigError
from mhc_jax.models import mhc_ssm
from mhc_jax.nn.init import normal
from mhc_jax.nn.model import Model, ModelConfig
from mhc_jax.nn.transformer_scan import TransformerScanConfig, gpt2_backbone
from mhc_jax.precision import policy
from train.config import OptimConfig, RunConfig, TrainConfig
from train.data.group_words import GroupWordsConfig
from train.data.kind import IGNORE
from train.loop.resolve import resolve
from train.loop.run import run
from train.objectives.cross_entropy import CrossEntropyConfig
from train.objectives.prefixes import CLASSIFIER, TAP, PrefixesConfig
from train.storage.folder import read_metrics

WIDTH, CHUNK = 4, 2


class Sums(Model):
    """Each token's embedding; prefixes are sums of all chunks before."""

    def __init__(self, config, init):
        self.policy = policy(config.execution.policy)
        self.table = init("table", normal(1.0), config.vocab_size, WIDTH, role="table", axes=("vocab", "width"))

    def init_state(self, batch, max_len):
        return ()

    def __call__(self, tokens_BT, state, scope):
        x_BTD = self.table[...][tokens_BT]
        chunks_BNCD = x_BTD.reshape(x_BTD.shape[0], -1, CHUNK, WIDTH)
        scope.tap(TAP, jnp.cumsum(chunks_BNCD, axis=1) - chunks_BNCD)
        return x_BTD, None

    def head_VD(self):
        return self.table[...]


@dataclasses.dataclass(frozen=True)
class SumsConfig(ModelConfig):
    causal = True

    def build(self, init):
        return Sums(self, init)


@pytest.fixture(scope="module", autouse=True)
def scanning():
    registry.register("model", "sums")(SumsConfig)
    yield
    registry._REGISTRY["model"].pop("sums")


@pytest.fixture(scope="module")
def known():
    model = SumsConfig(vocab_size=6, max_len=6)
    params = mhc_jax.init(model, jax.random.key(0))
    batch = GroupWordsConfig(seq_len=6, batch_size=3, stage_steps=1, first_len=5).load()._batch(0, 0)
    return model, params, PrefixesConfig(weight=0.25), {name: jnp.asarray(x) for name, x in batch.items()}


def test_the_target_of_a_prefix_is_that_of_the_token_before_its_chunk(known):
    model, params, objective, batch = known
    own = objective.init(model, jax.random.key(1))
    sums, penalties = objective.training_sums(model, params, own, None, batch)
    prefixes = functional.hidden(model, params, batch["inputs"], taps=(TAP,)).taps[TAP]
    losses = []
    for row, targets in zip(np.asarray(prefixes), np.asarray(batch["targets"]), strict=True):
        for chunk, target in ((1, targets[1]), (2, targets[3])):
            logits = np.einsum("vcd,cd->v", own[CLASSIFIER], row[chunk])
            losses.append(np.log(np.exp(logits).sum()) - logits[target])
    assert penalties.keys() == {TAP}
    np.testing.assert_allclose(penalties[TAP], 0.25 * np.mean(losses), rtol=1e-5)
    plain = CrossEntropyConfig().sums(model, params, batch)[0]
    assert sums.keys() == plain.keys()
    np.testing.assert_allclose(sums["loss"], plain["loss"], rtol=1e-6)
    assert sums["tokens"] == 15


def test_prefixes_without_a_target_do_not_count(known):
    model, params, objective, batch = known
    own = objective.init(model, jax.random.key(1))
    targets = batch["targets"].at[:, 1:].set(IGNORE)
    assert objective.training_sums(model, params, own, None, batch | {"targets": targets})[1][TAP] == 0


def test_it_is_trained_and_evaluated_by_cross_entropy_alone(tmp_path):
    config = RunConfig(
        run_dir=str(tmp_path / "run"),
        model=SumsConfig(),
        data=GroupWordsConfig(seq_len=6, batch_size=64, eval_count=1),
        objective=PrefixesConfig(errors=True),
        optim=OptimConfig(lr=1e-1, warmup_steps=0),
        train=TrainConfig(steps=30, eval_every=0),
    )
    config = config.replace(log=config.log.replace(every=1, progress=False))
    summary = run(config).summary
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if TAP in line]
    assert lines[-1][TAP] < 0.95 * lines[0][TAP]
    assert {"val_loss", "val_error"} <= summary.keys()
    assert f"val_{TAP}" not in summary


def test_a_model_without_prefixes_is_refused_before_anything_is_trained():
    model = mhc_ssm("baseline", vocab_size=None, max_len=None, width=8, layers=1)
    config = RunConfig(model=model, data=GroupWordsConfig(seq_len=6, batch_size=4), objective=PrefixesConfig())
    with pytest.raises(ConfigError, match="kind 'lm' has no prefixes.*take --objective cross_entropy"):
        resolve(config)
    with pytest.raises(ConfigError, match="weight"):
        PrefixesConfig(weight=-1.0).validate()


@pytest.mark.slow
def test_a_scan_over_chunks_has_prefixes_to_teach(known):
    """Whether or not it has one for the chunk to come, which no target of the row belongs to."""
    *_, objective, batch = known
    network = gpt2_backbone(8, 1, 2)
    losses = []
    for boundary in ("token", "prefix"):
        model = TransformerScanConfig(
            vocab_size=6, max_len=6, chunk=CHUNK, aggregator=network, reader=network, boundary=boundary
        )
        own, params = objective.init(model, jax.random.key(0)), mhc_jax.init(model, jax.random.key(0))
        losses.append(objective.training_sums(model, params, own, None, batch)[1][TAP])
    np.testing.assert_allclose(*losses, rtol=1e-6)
