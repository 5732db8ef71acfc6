"""Weights through the mirror and back, bit by bit; published checkpoints into both frameworks."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import mhc_jax
import torch_ref
from mhc_jax import interop
from mhc_jax.tree import flatten
from parity_tests.compare import error
from parity_tests.replays import mhc_ssm as replay
from parity_tests.systems import SYSTEMS, Weights, batch

systems = pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)


def assert_bitwise(left, right):
    left, right = flatten(left), flatten(right)
    assert left.keys() == right.keys()
    for path in left:
        a, b = np.asarray(left[path]), np.asarray(right[path])
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), path


@systems
def test_jax_to_mirror_to_jax_is_bitwise(system):
    config = system.config
    params = interop.from_torch(config, Weights(config))
    module = torch_ref.build(config)
    state_dict = {name: torch.from_numpy(x) for name, x in interop.to_torch(config, params).items()}
    module.load_state_dict(state_dict, strict=True)
    assert list(module.state_dict()) != []
    assert_bitwise(interop.from_torch(config, module.state_dict()), params)


@systems
def test_mirror_initialises_what_jax_expects(system):
    interop.from_torch(system.config, torch_ref.build(system.config).state_dict())
    record = system.config.to_dict()
    assert torch_ref.build(record).state_dict().keys() == interop.names.torch_shapes(system.config).keys()


def test_bfloat16_tensors_are_kept():
    config = SYSTEMS["mhc 2, ln, chunked"].config
    tensors = {name: torch.from_numpy(x).bfloat16() for name, x in Weights(config).items()}
    params = interop.from_torch(config, tensors)
    assert {leaf.dtype for leaf in flatten(params).values()} == {jnp.dtype(jnp.bfloat16)}
    for name, x in interop.to_torch(config, params).items():
        np.testing.assert_array_equal(x.astype(np.float32), tensors[name].float().numpy())


def test_published_checkpoint_enters_both_frameworks():
    config = SYSTEMS["adapters 2, original, ln"].config.replace(stream_diversity=0.0)  # of training alone
    filled = interop.to_original("mhc_ssm", config, interop.from_torch(config, Weights(config)))
    checkpoint = {
        "arch": "mhc",
        "model": {f"_orig_mod.{name}": torch.from_numpy(replay.fill(name, x.shape)) for name, x in filled.items()},
        "cfg": {"n_streams": 2, "sinkhorn_iters": 8, "stream_adapters": True, "adapter_rank": 3},
    }
    checkpoint["model"]["_orig_mod.lm_head.weight"] = checkpoint["model"]["_orig_mod.tok_emb.emb.weight"]
    found, params = interop.from_original("mhc_ssm", checkpoint)
    assert found == config.replace(mixer=found.mixer)
    assert found.mixer == config.mixer.replace(chunk=found.mixer.chunk)  # how the scan runs is no part of a checkpoint
    module = torch_ref.build(found)
    module.load_state_dict({name: torch.from_numpy(x) for name, x in interop.to_torch(found, params).items()})
    tokens = batch(found)["tokens"]
    theirs = module(torch.from_numpy(tokens)).detach().numpy()
    assert error(mhc_jax.apply(found, params, jnp.asarray(tokens)).logits_BTV, theirs) < 1e-6
