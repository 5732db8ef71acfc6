"""Published implementations of others, forward and backward."""

import builtins
import sys

import jax
import numpy as np
import pytest
import torch

from mhc_jax import init, interop
from mhc_jax.config import ConfigError
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.norms import LayerNormConfig
from parity_tests import cases, oracles
from parity_tests.__main__ import main
from parity_tests.checks import beyond, check, of_tier
from parity_tests.mutations import Mutation, options, run

SITE = "transformers DeepseekV4HyperConnection"


def _fault(fault, target, replace, case):
    return Mutation(fault, f"mhc_jax.{target}", replace, "oracles", case)


MUTATIONS = [
    _fault(
        "queries and keys swapped",
        "interop.gpt:_FUSED",
        lambda parts: (parts[1], parts[0], parts[2]),
        "transformers GPT2LMHeadModel",
    ),
    _fault(
        "YaRN leaves queries and keys as long as they are",
        "nn.rotary:YarnScalingConfig.gain",
        lambda healthy: 1.0,
        "transformers LlamaForCausalLM yarn scaling",
    ),
    _fault(
        "DeepSeek's scores do not grow under YaRN",
        "nn.mixers.latent_attention:latent_attention",
        options(scale=None),
        "transformers DeepseekV3ForCausalLM yarn scaling",
    ),
    _fault(
        "mixing block not transposed",
        "interop.deepseek_v4:_order",
        lambda healthy: lambda fn, base, scale: np.arange(len(fn)),
        SITE,
    ),
    _fault(
        "head without the epsilon of its norm",
        "ops.hyper:flat_weights",
        lambda healthy: lambda *args, eps: healthy(*args, eps=0.0),
        "transformers HYV4HyperHead",
    ),
    _fault(
        "mixed streams transposed",
        "ops.streams:mix",
        lambda healthy: lambda h, mix_MN: healthy(h, mix_MN.mT),
        "hyper-connections 0.4.11 mHC version 2, linear domain",
    ),
]


# Names begin with the package and its class; HC and mHC are one class of theirs.
a_variant = beyond(1, "oracles", words=2)
# A layer whose mixer another oracle has, a model that its next version contains, and parts of a scan that its own
# golden numbers and forms hold.
MET_ELSEWHERE = (
    "OlmoHybridDecoder",
    "GLADecoder",
    "two summaries merged",
    "one chunk of a scan",
    "V2ForCausalLM yarn scaling",
)


def slow(name):
    return name.endswith(MET_ELSEWHERE) or (a_variant(name) and not name.endswith("mHC version 1, log domain"))


@of_tier("oracles", slow=slow)
def test_oracles(case):
    check(case)


@pytest.mark.parametrize(
    "mutation",
    [pytest.param(x, id=x.fault, marks=[] if x in MUTATIONS[:1] else pytest.mark.slow) for x in MUTATIONS],
)
def test_faults_are_caught(mutation):
    assert run(mutation).caught


def test_the_truth_is_in_float64():
    torch_part = cases.of_tier("oracles")[SITE].torch
    exact, rounded = torch_part("float64", 0), torch_part("float32", 0)
    for name, x in exact.items():
        assert x.dtype == np.float64
        assert not np.array_equal(x, x.astype(np.float32)), f"{name} has passed through float32"
        np.testing.assert_allclose(rounded[name], x, rtol=1e-4, atol=1e-5)
    assert torch.ones(1, dtype=torch.float64).float().dtype == torch.float32


def test_a_missing_package_is_named(monkeypatch):
    healthy = builtins.__import__

    def without(name, *args, **options):
        if name == "hyper_connections":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return healthy(name, *args, **options)

    monkeypatch.delitem(sys.modules, "parity_tests.oracles.lucidrains")
    monkeypatch.delattr(oracles, "lucidrains")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="needs hyper_connections: pip install"):
        list(oracles.cases())


@pytest.mark.slow
def test_a_folder_of_transformers_is_certified(tmp_path, capsys):
    parts = {"mixer": AttentionConfig(heads=2), "mlp": GeluMLPConfig(activation="tanh"), "norm": LayerNormConfig()}
    config = LMConfig(vocab_size=13, max_len=9, width=8, layers=2, **parts)
    interop.save_huggingface(tmp_path / "model", config, init(config, jax.random.key(0)))
    main(["--checkpoint", str(tmp_path / "model")])
    assert "tensors agree" in capsys.readouterr().out
