"""A model kind from outside the repository: trained, decoded, exported and certified as ours are."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhc_jax
from mhc_jax.functional import param_info
from mhc_jax.nn.model import ModelConfig
from train.config import OptimConfig, RunConfig
from train.objectives.cross_entropy import CrossEntropyConfig
from train.update.optimizer import make_optimizer
from train.update.step import init_state, make_train_step

EXAMPLES = Path(__file__).parents[2] / "examples"
LENGTHS, NEW = [4, 1, 6], 5


@pytest.fixture(scope="module")
def config():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        import bag_of_tokens
        import bag_of_tokens_torch  # noqa: F401  registers the twin

        yield bag_of_tokens.BagOfTokensConfig(vocab_size=11, max_len=8, width=4)
    for name in ("bag_of_tokens", "bag_of_tokens_torch"):
        sys.modules.pop(name)


@pytest.fixture(scope="module")
def params(config):
    return mhc_jax.init(config, jax.random.key(0))


@pytest.fixture(scope="module")
def tokens(config):
    return jax.random.randint(jax.random.key(1), (3, 6), 0, config.vocab_size)


def test_it_learns(config, tokens):
    run = RunConfig(model=config, optim=OptimConfig(lr=0.1, warmup_steps=0), objective=CrossEntropyConfig(chunk=6))
    optimizer = make_optimizer(run.optim, 100, param_info(config))
    step, state = jax.jit(make_train_step(run, optimizer)), init_state(run, optimizer)
    batch = {"inputs": tokens, "targets": tokens}
    losses = []
    for _ in range(20):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]


def test_prompts_of_unequal_length_go_on_past_the_longest_sequence(config, params, tokens):
    found = mhc_jax.generate(config, params, tokens, lengths_B=LENGTHS, max_new_tokens=NEW, temperature=0.0)
    for row, length in enumerate(LENGTHS):
        alone = mhc_jax.generate(config, params, tokens[row : row + 1, :length], max_new_tokens=NEW, temperature=0.0)
        np.testing.assert_array_equal(found[row, : length + NEW], alone[0])


def test_it_comes_back_from_its_export(config, params, tokens, tmp_path):
    mhc_jax.save(tmp_path / "export", config, params)
    back, weights = mhc_jax.load(tmp_path / "export")
    assert back == config == ModelConfig.from_json(config.to_json())
    one, other = (mhc_jax.apply(config, p, tokens).logits_BTV for p in (params, weights))
    np.testing.assert_array_equal(one, other)


def test_it_is_certified_and_a_wrong_twin_is_not(config, params, monkeypatch):
    from parity_tests.certify import checkpoint_cases
    from parity_tests.compare import failures, judge

    for case in checkpoint_cases(config, params):
        assert not failures(judge(case))
    import bag_of_tokens_torch

    monkeypatch.setattr(bag_of_tokens_torch.torch, "lerp", lambda a, b, share: b)
    assert all(failures(judge(case)) for case in checkpoint_cases(config, params))


def test_what_it_is_made_of_can_be_read(config, params):
    assert [part.kind for part in config.parts()] == ["bag_of_tokens", None]
    assert config.description == ("bag_of_tokens",)
    assert mhc_jax.apply(config, params, jnp.zeros((1, 2), int), taps=True).taps.keys() == {"embed", "hidden", "logits"}
