"""Weights in other forms: names, strict accounting, published checkpoints, safetensors folders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhc_jax import interop, registry
from mhc_jax.config import ConfigError
from mhc_jax.functional import param_shapes
from mhc_jax.models import mhc_ssm
from mhc_jax.tree import flatten, unflatten

SIZE = {"vocab_size": 11, "max_len": 7, "width": 6, "layers": 3}


def small(variant, form="default", norm="rms", streams=3, kernel=2):
    config = mhc_ssm(variant, form, norm=registry.get("norm", norm)(), **SIZE)
    config = config.replace(mixer=config.mixer.replace(conv_kernel=kernel))
    if variant != "baseline":
        config = config.replace(residual=config.residual.replace(streams=streams))
    if variant == "adapters":
        config = config.replace(adapters=config.adapters.replace(rank=5))
    return config


CONFIGS = {
    "baseline rms": small("baseline"),
    "baseline ln": small("baseline", norm="ln", kernel=1),
    "mhc": small("mhc"),
    "mhc n=1": small("mhc", "original", streams=1),
    "adapters rms": small("adapters", "original"),
    "adapters ln": small("adapters", "original", norm="ln", kernel=4),
}
ORIGINALS = {
    f"{variant} {norm}": small(variant, "original", norm)
    for variant in ("baseline", "mhc", "adapters")
    for norm in ("rms", "ln")
}


def filled(config, seed=0):
    """Distinct values everywhere, so that no two tensors can be confused."""
    leaves, tree = jax.tree.flatten(param_shapes(config))
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [jnp.asarray(rng.standard_normal(x.shape), x.dtype) for x in leaves])


def assert_bitwise(left, right):
    left, right = flatten(left), flatten(right)
    assert left.keys() == right.keys()
    for path in left:
        a, b = np.asarray(left[path]), np.asarray(right[path])
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        assert a.tobytes() == b.tobytes(), path


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_torch_round_trip_is_bitwise(config):
    params = filled(config)
    assert_bitwise(interop.from_torch(config, interop.to_torch(config, params)), params)


def test_bfloat16_is_kept():
    config = CONFIGS["mhc"]
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), filled(config))
    assert_bitwise(interop.from_torch(config, interop.to_torch(config, params)), params)


def test_names_and_layouts_follow_pytorch():
    config = CONFIGS["adapters rms"]
    params = filled(config)
    state_dict = interop.to_torch(config, params)
    mixer = params["blocks"]["mixer"]
    branch = mixer["branch"]
    same = np.testing.assert_array_equal
    same(state_dict["blocks.2.mixer.branch.in_proj.weight"], branch["in_proj"]["kernel"][2].T)
    same(state_dict["blocks.1.mixer.branch.conv.weight"][:, 0, :], branch["conv"]["filter"][1].T)
    same(state_dict["blocks.0.mixer.residual.inner.res_logits"], mixer["residual"]["inner"]["res_logits"][0])
    same(state_dict["blocks.0.mixer.residual.up.weight"], mixer["residual"]["up"]["kernel"][0].T)
    same(state_dict["final_norm.weight"], params["final_norm"]["scale"])
    same(state_dict["embed.tokens"], params["embed"]["tokens"])
    assert state_dict["ends.proj.weight"].shape == (18, 6)


def test_flatten_and_unflatten_are_inverse():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert flatten(tree) == {"a.b": 1, "a.c.d": 2, "e": 3}
    assert unflatten(flatten(tree)) == tree


def test_every_fault_is_listed():
    config = CONFIGS["mhc"]
    state_dict = interop.to_torch(config, filled(config))
    del state_dict["final_norm.weight"]
    state_dict["extra"] = np.zeros(3, np.float32)
    state_dict["embed.tokens"] = state_dict["embed.tokens"].T
    with pytest.raises(interop.InteropError) as error:
        interop.from_torch(config, state_dict)
    message = str(error.value)
    assert "\n" not in message
    assert "missing (1): final_norm.weight" in message
    assert "unexpected (1): extra" in message
    assert "wrong shape (1): embed.tokens is (6, 11), expected (11, 6)" in message


def test_parameters_of_another_model_are_refused():
    with pytest.raises(interop.InteropError, match=r"missing.*blocks.mixer.residual.pre_logits"):
        interop.to_torch(CONFIGS["mhc"], filled(CONFIGS["baseline rms"]))


def test_integer_and_double_weights_are_refused():
    config = CONFIGS["baseline rms"]
    state_dict = interop.to_torch(config, filled(config))
    for dtype, hint in ((np.int32, "must be floating point: embed.tokens is int32"), (np.float64, "64-bit mode")):
        wrong = state_dict | {"embed.tokens": state_dict["embed.tokens"].astype(dtype)}
        with pytest.raises(interop.InteropError, match=hint):
            interop.from_torch(config, wrong)


# The published checkpoints ------------------------------------------------------------------------


@pytest.mark.parametrize("config", ORIGINALS.values(), ids=ORIGINALS)
def test_original_round_trip(config):
    params = filled(config)
    state_dict = interop.to_original("mhc_ssm", config, params)
    np.testing.assert_array_equal(state_dict["lm_head.weight"], params["embed"]["tokens"])
    found, loaded = interop.from_original("mhc_ssm", state_dict)
    assert found == config
    assert_bitwise(loaded, params)


def test_original_names():
    config = ORIGINALS["adapters ln"]
    names = interop.to_original("mhc_ssm", config, filled(config)).keys()
    block = {
        *("hpre_logits", "hpost_logits", "hres_logits", "gamma_pre", "gamma_post"),
        *("ssm.norm.weight", "ssm.norm.bias", "ssm.in_proj.weight", "ssm.in_proj.bias"),
        *("ssm.dwconv.weight", "ssm.dwconv.bias", "ssm.ssm.logit_a", "ssm.ssm.b", "ssm.ssm.c", "ssm.ssm.d"),
        *("ssm.out_proj.weight", "ssm.out_proj.bias", "ad_down.weight", "ad_down.bias"),
        *("ad_up.weight", "ad_up.bias", "ad_norm.weight", "ad_norm.bias"),
    }
    outside = {
        *("tok_emb.emb.weight", "pos_emb.pos.weight", "expand.proj.weight", "expand.proj.bias"),
        *("aggregate.w_logits", "norm_f.weight", "norm_f.bias", "lm_head.weight"),
    }
    assert names == outside | {f"blocks.{layer}.{name}" for layer in range(3) for name in block}


def original_cfg(**changes):
    """The configuration that the original stores in its checkpoints, for the small sizes."""
    return {
        **{"vocab_size": 11, "dim": 6, "n_layers": 3, "dropout": 0.25, "conv_kernel": 2, "norm_type": "rms"},
        **{"n_streams": 3, "sinkhorn_iters": 5, "sinkhorn_temp": 0.5, "adaptive_routing": False, "route_hidden": 256},
        **{"route_from": "u", "stream_adapters": False, "adapter_rank": 64, "adapter_dropout": 0.1},
        **changes,
    }


def test_whole_checkpoint_of_a_compiled_run():
    config = ORIGINALS["mhc rms"]
    params = filled(config)
    tensors = interop.to_original("mhc_ssm", config, params)
    compiled = {f"_orig_mod.{name}": value for name, value in tensors.items()}
    checkpoint = {"arch": "mhc", "step": 3, "model": compiled, "opt": {}, "scaler": None, "cfg": original_cfg()}
    found, loaded = interop.from_original("mhc_ssm", checkpoint)
    assert (found.dropout, found.residual.projection.iters, found.residual.projection.temperature) == (0.25, 5, 0.5)
    assert_bitwise(loaded, params)
    assert interop.from_original("mhc_ssm", checkpoint, sinkhorn_iters=2)[0].residual.projection.iters == 2
    with pytest.raises(interop.InteropError, match="arch 'baseline'"):
        interop.from_original("mhc_ssm", checkpoint | {"arch": "baseline"})
    with pytest.raises(interop.InteropError, match="cfg of the checkpoint must be a dict of fields, .* not object"):
        interop.from_original("mhc_ssm", checkpoint | {"cfg": object()})
    assert interop.from_original("mhc_ssm", checkpoint | {"cfg": None})[0].dropout == 0
    with pytest.raises(interop.InteropError, match="dim=8 contradicts"):
        interop.from_original("mhc_ssm", checkpoint | {"cfg": original_cfg(dim=8)})


def test_whole_checkpoint_of_a_baseline_ignores_the_fields_it_does_not_use():
    config = ORIGINALS["baseline rms"]
    tensors = interop.to_original("mhc_ssm", config, filled(config))
    for adapters in (False, True):
        checkpoint = {"arch": "baseline", "model": tensors, "cfg": original_cfg(stream_adapters=adapters)}
        assert interop.from_original("mhc_ssm", checkpoint)[0] == config.replace(dropout=0.25)


def broken(change):
    config = ORIGINALS["mhc rms"]
    state_dict = interop.to_original("mhc_ssm", config, filled(config))
    change(state_dict)
    return state_dict


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.ssm.ssm.logit_a"), r"missing \(1\): blocks.1.ssm.ssm.logit_a"),
        (lambda s: s.pop("tok_emb.emb.weight"), "tok_emb.emb.weight.*missing"),
        (lambda s: s.update({"blocks.0.extra": s["norm_f.weight"]}), r"unexpected \(1\): blocks.0.extra"),
        (lambda s: s.update({"expand.proj.bias": s["norm_f.weight"]}), r"expand.proj.bias is \(6,\), expected \(18,\)"),
        (lambda s: s.update({"lm_head.weight": s["lm_head.weight"] + 1}), "lm_head.weight differs"),
        (lambda s: s.pop("norm_f.weight"), r"missing \(1\): norm_f.weight"),
    ],
)
def test_original_refuses_what_does_not_fit(change, message):
    with pytest.raises(interop.InteropError, match=message):
        interop.from_original("mhc_ssm", broken(change))


@pytest.mark.parametrize(
    ("hints", "message"),
    [
        ({"sinkhorn_iter": 3}, "unknown hint 'sinkhorn_iter'; did you mean 'sinkhorn_iters'"),
        ({"n_streams": 4}, "n_streams=4 contradicts the tensors, which say 3"),
        ({"adapter_rank": 4}, "adapter_rank=4 contradicts"),
        ({"sinkhorn_temp": 0.0}, "temperature must be positive"),
        ({"sinkhorn_iters": "10"}, "mhc_ssm: sinkhorn_iters must be an integer, got '10'"),
        ({"sinkhorn_iters": True}, "sinkhorn_iters must be an integer, got True"),
        ({"sinkhorn_temp": float("inf")}, "sinkhorn_temp must be a finite number, got inf"),
        ({"n_layers": True}, "n_layers=True contradicts"),
    ],
)
def test_original_hints_are_checked(hints, message):
    with pytest.raises(ConfigError, match=message):
        interop.from_original("mhc_ssm", broken(lambda s: None), **hints)


def test_unknown_system_names_the_nearest():
    with pytest.raises(interop.InteropError, match="unknown original 'mhc_smm'; did you mean 'mhc_ssm'"):
        interop.from_original("mhc_smm", {})


def test_what_the_original_cannot_express_is_refused():
    config = CONFIGS["mhc"]
    with pytest.raises(interop.InteropError, match="cannot express"):
        interop.to_original("mhc_ssm", config, filled(config))


@pytest.mark.parametrize("state_dict", [None, 3, [1], {1: np.zeros(2)}, {"a": object()}])
def test_what_is_no_state_dict_is_refused(state_dict):
    for read in (
        lambda: interop.from_torch(CONFIGS["mhc"], state_dict),
        lambda: interop.from_original("mhc_ssm", state_dict),
        lambda: interop.from_original("gpt2", state_dict),
        lambda: interop.from_original("nanogpt", state_dict),
    ):
        with pytest.raises(interop.InteropError) as error:
            read()
        assert "\n" not in str(error.value)


def test_an_integer_among_floating_layers_is_refused():
    config = CONFIGS["mhc"]
    tensors = interop.to_torch(config, filled(config))
    name = "blocks.1.mixer.branch.in_proj.weight"
    with pytest.raises(interop.InteropError, match=f"floating point: {name} is int8"):
        interop.from_torch(config, tensors | {name: tensors[name].astype(np.int8)})
    published = interop.to_original("mhc_ssm", ORIGINALS["mhc rms"], filled(ORIGINALS["mhc rms"]))
    name = "blocks.1.ssm.in_proj.weight"
    with pytest.raises(interop.InteropError, match=f"floating point: {name} is int8"):
        interop.from_original("mhc_ssm", published | {name: published[name].astype(np.int8)})
