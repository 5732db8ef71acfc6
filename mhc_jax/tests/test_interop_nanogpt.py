"""nanoGPT checkpoints: names, layouts, containers, and the published numbers of every variant."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhc_jax
from mhc_jax import interop
from mhc_jax.config import ConfigError
from mhc_jax.functional import param_shapes
from mhc_jax.models.gpt import nanogpt
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.norms import LayerNormConfig
from mhc_jax.nn.residual import HyperConnectionsConfig, StaticMHCConfig
from mhc_jax.ops.loss import cross_entropy
from mhc_jax.ops.projections import SCHEDULE
from mhc_jax.tests.own import slow_unless
from mhc_jax.tree import flatten

SIZE = {"vocab_size": 11, "max_len": 8, "width": 8, "layers": 2, "heads": 2}


def small(topology="plain", **changes):
    return nanogpt(topology, "original", **{**SIZE, **changes})


def filled(config, seed=0):
    """Distinct values everywhere, so that no two tensors can be confused."""
    leaves, tree = jax.tree.flatten(param_shapes(config))
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [jnp.asarray(rng.standard_normal(x.shape), x.dtype) for x in leaves])


def assert_same(left, right):
    left, right = flatten(left), flatten(right)
    assert left.keys() == right.keys()
    for path in left:
        np.testing.assert_array_equal(left[path], right[path], err_msg=path)


# The published numbers -------------------------------------------------------------------------------

# Loss; logits: sum, sum of magnitudes, entries 0, 7 and -1; sum of magnitudes of the gradient by wte, and of all.
# Baseline, HC, mHC (temperature 1), orthostochastic mHC, value residual, value residual with mHC.
GOLDEN = {
    "baseline": (
        {},
        (2.80850632, -8.59456071, 123.243503, -0.945163039, -1.03999686, -0.602636553, 5.91880821, 20.011135),
    ),
    "hc": (
        {"hc": 4},
        (5.75318371, -26.6668283, 497.831639, -2.62895626, -2.98226951, -2.68366833, 35.4427027, 129.345642),
    ),
    "mhc_tau1": (
        {"mhc": 4, "sinkhorn_tau": 1.0},
        (6.04228924, -26.3060747, 478.10483, -0.166688173, -0.744087419, -2.25817087, 38.8818829, 129.083489),
    ),
    "mhc_ortho": (
        {"mhc": 4, "mhc_h_res_proj": "orthostochastic"},
        (6.15103735, -25.8507302, 487.508374, -0.143005644, -0.73215391, -2.23529559, 39.1654854, 129.187771),
    ),
    "vres": (
        {"v_residual": True},
        (3.12636227, -6.71538275, 151.9912, -0.189178158, -0.388686782, -0.007397471, 7.42484089, 26.1402939),
    ),
    "vres_mhc": (
        {"v_residual": True, "mhc": 4, "sinkhorn_tau": 1.0},
        (6.11492577, -14.8378631, 468.912154, 0.857088662, 0.276482372, -2.17723126, 41.7503346, 145.655817),
    ),
}


def published_state(hc=0, mhc=0, v_residual=False):
    """The original's parameters: initial values, and a sine of the flat index whose phase is the rank of the name."""
    streams, width = hc or mhc, SIZE["width"]
    initial = {
        "transformer.wte.weight": np.zeros((11, width)),
        "transformer.wpe.weight": np.zeros((8, width)),
        "transformer.ln_f.weight": np.ones(width),
    }
    for layer in range(SIZE["layers"]):
        block = f"transformer.h.{layer}."
        initial |= {
            block + "ln_1.weight": np.ones(width),
            block + "attn.c_attn.weight": np.zeros((3 * width, width)),
            block + "attn.c_proj.weight": np.zeros((width, width)),
            block + "ln_2.weight": np.ones(width),
            block + "mlp.c_fc.weight": np.zeros((4 * width, width)),
            block + "mlp.c_proj.weight": np.zeros((width, 4 * width)),
        }
        if v_residual:
            initial |= {block + "attn.lamb1": np.array(0.5), block + "attn.lamb2": np.array(0.5)}
        for i, site in enumerate(("hc_attn.", "hc_mlp.") if streams else ()):
            initial |= {block + site + name: x for name, x in _site(streams, (2 * layer + i) % streams, mhc).items()}

    def value(k, name, x):
        table = re.search(r"\.(wte|wpe|c_attn|c_proj|c_fc)\.", name)
        sine = np.sin(0.9 * np.arange(x.size) + 0.1 * k + 0.3).reshape(x.shape)
        return 0.5 * sine if table else x + 0.2 * sine

    return {name: value(k, name, initial[name]) for k, name in enumerate(sorted(initial))}


def _site(streams, own, mhc):
    eye, one_hot = np.eye(streams), np.eye(streams)[own]
    found = {
        "static_alpha": np.concatenate([one_hot[:, None], eye], 1),
        "static_beta": np.ones(streams),
        "dynamic_alpha_fn": np.zeros((8, streams + 1)),
        "dynamic_alpha_scale": np.array(0.01),
        "dynamic_beta_fn": np.zeros(8),
        "dynamic_beta_scale": np.array(0.01),
        "norm.gamma": np.zeros(8),
    }
    if mhc:
        found |= {
            "H_res_logits": 8 * eye - 8,
            "H_pre_logits": 8 * one_hot - 8,
            "H_post_logits": np.zeros(streams),
        }
    return found


@pytest.mark.parametrize("name", slow_unless({"mhc_ortho"}, GOLDEN))
def test_published_numbers(name):
    fields, golden = GOLDEN[name]
    hints = {field: value for field, value in fields.items() if field.startswith(("mhc_", "sinkhorn"))}
    state_dict = published_state(**{field: value for field, value in fields.items() if field not in hints})
    with jax.enable_x64(True):
        config, params = interop.from_original("nanogpt", state_dict, n_head=2, **hints)
        config = config.replace(execution=config.execution.replace(policy="float64"))
        b, i = np.arange(2)[:, None], np.arange(9)
        ids = (7 * i + 3 * i**2 + b) % 11

        def objective(params):
            logits = mhc_jax.apply(config, params, jnp.asarray(ids[:, :-1])).logits_BTV
            total, count = cross_entropy(logits, jnp.asarray(ids[:, 1:]))
            return total / count, logits

        (loss, logits), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
        flat = np.asarray(logits).ravel()
        sums = {name: np.abs(x).sum() for name, x in interop.to_torch(config, gradients).items()}
        found = (float(loss), flat.sum(), np.abs(flat).sum(), flat[0], flat[7], flat[-1])
        np.testing.assert_allclose((*found, sums["embed.tokens"], sum(sums.values())), golden, rtol=1e-8, atol=1e-8)


# Names and layouts -----------------------------------------------------------------------------------

VARIANTS = {
    "plain": small(),
    "plain with biases": small(
        norm=LayerNormConfig(), mixer=AttentionConfig(heads=2), mlp=small().mlp.replace(bias=True)
    ),
    "hc": small("hc"),
    "hc of one stream": small("hc", residual=HyperConnectionsConfig(streams=1, mixed=False)),
    "hc of fractions": small("hc", residual=HyperConnectionsConfig(streams=2, fractions=2, mixed=False)),
    "mhc": small("mhc"),
    "mhc of three": small("mhc", residual=small("mhc").residual.replace(streams=3)),
    "mhc with identity mix": small("mhc", residual=small("mhc").residual.replace(identity_mix=0.01)),
    "orthostochastic": small("mhc_orthostochastic"),
    "value residual": small(value_residual="free"),
    "constrained value residual, mhc": small("mhc", value_residual="constrained"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_round_trip(name):
    config, params = VARIANTS[name], filled(VARIANTS[name])
    hints = {"mhc_h_res_proj": "orthostochastic"} if name == "orthostochastic" else {}
    state_dict = interop.to_original("nanogpt", config, params)
    found, loaded = interop.from_original("nanogpt", state_dict, n_head=2, **hints)
    assert_same(loaded, params)
    if isinstance(config.residual, HyperConnectionsConfig):
        config = config.replace(residual=config.residual.replace(fraction_init="published"))
    assert found == config


def test_export_has_every_name_of_the_published_module():
    config = VARIANTS["constrained value residual, mhc"]
    state_dict = interop.to_original("nanogpt", config, filled(config))
    hyper = {
        *("H_res_logits", "H_pre_logits", "H_post_logits", "static_alpha", "static_beta", "norm.gamma"),
        *("dynamic_alpha_fn", "dynamic_alpha_scale", "dynamic_beta_fn", "dynamic_beta_scale"),
    }
    attention, mlp = {"c_attn.weight", "c_proj.weight", "lamb_logits"}, {"c_fc.weight", "c_proj.weight"}
    norms = {"ln_1.weight", "attn_branch.norm.weight", "hc_attn.branch.norm.weight"}
    block = {
        *norms,
        *("ln_2.weight", "hc_mlp.branch.0.weight"),
        *(f"{site}.{name}" for site in ("hc_attn", "hc_mlp") for name in hyper),
        *(f"{place}.{name}" for place in ("attn", "attn_branch.attn", "hc_attn.branch.attn") for name in attention),
        *(f"{place}.{name}" for place in ("mlp", "hc_mlp.branch.1") for name in mlp),
    }
    outside = {"lm_head.weight", "transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.weight"}
    assert state_dict.keys() == outside | {f"transformer.h.{layer}.{name}" for layer in range(2) for name in block}
    for place in norms:
        np.testing.assert_array_equal(state_dict[f"transformer.h.1.{place}"], state_dict["transformer.h.1.ln_1.weight"])


def test_exported_dead_parameters_are_the_initial_ones():
    config = small("mhc")
    state_dict = interop.to_original("nanogpt", config, filled(config))
    for layer in range(2):
        for i, site in enumerate(("hc_attn", "hc_mlp")):
            for leaf, x in _site(4, (2 * layer + i) % 4, False).items():
                found = state_dict[f"transformer.h.{layer}.{site}.{leaf}"]
                np.testing.assert_array_equal(found, x.astype(np.float32))


def test_layouts():
    config = small("mhc")
    params = filled(config)
    state_dict = interop.to_original("nanogpt", config, params)
    mixer = params["blocks"]["mixer"]
    same = np.testing.assert_array_equal
    same(state_dict["transformer.h.1.attn.c_attn.weight"][8:16], mixer["branch"]["k_proj"]["kernel"][1].T)
    same(state_dict["transformer.h.1.hc_attn.H_res_logits"], mixer["residual"]["res_logits"][1].T)
    same(state_dict["transformer.h.0.hc_mlp.H_pre_logits"], params["blocks"]["mlp"]["residual"]["pre_logits"][0])


def test_published_initial_values_are_ours():
    """The softmax does not see that -8 and 0 stand for 0 and 8."""
    state_dict = {name: x.astype(np.float32) for name, x in published_state(mhc=4).items()}
    for name in state_dict:
        if name.endswith("_logits"):
            site = int(name.split(".")[2]) * 2 + ("hc_mlp" in name)
            state_dict[name] = _site(4, site % 4, True)[name.rpartition(".")[2]].astype(np.float32)
    config, params = interop.from_original("nanogpt", state_dict, n_head=2)
    fresh = mhc_jax.init(config, jax.random.key(0))
    for site in ("mixer", "mlp"):
        loaded, ours = (tree["blocks"][site]["residual"] for tree in (params, fresh))
        np.testing.assert_allclose(loaded["pre_logits"], ours["pre_logits"] - 8)
        np.testing.assert_array_equal(loaded["post_logits"], ours["post_logits"])
        np.testing.assert_allclose(loaded["res_logits"], ours["res_logits"] - 8)


# Containers and aliases ------------------------------------------------------------------------------


def test_whole_checkpoint_of_a_compiled_run():
    config, params = small("mhc"), filled(small("mhc"))
    model = interop.to_original("nanogpt", config, params)
    fields = {
        **{"block_size": 8, "vocab_size": 11, "n_layer": 2, "n_head": 2, "n_embd": 8, "dropout": 0.25, "bias": False},
        **{"hc_num_streams": 4, "hc_num_fracs": 1, "hc_disable": False, "mhc": True, "sinkhorn_iters": 3},
        **{"sinkhorn_tau": 0.5, "mhc_h_res_proj": "sinkhorn", "ns_steps": 5, "ns_eps": 1e-7},
        **{"ns_coeffs": (3.0, -3.2, 1.2), "v_residual": False, "v_residual_constrained": False},
        **{"v_residual_lamb_lr": 1e-2},
    }
    compiled = {f"_orig_mod.{name}": x for name, x in model.items()}
    checkpoint = {"model": compiled, "config": fields, "iter_num": 7, "best_val_loss": 3.2}
    found, loaded = interop.from_original("nanogpt", checkpoint)
    assert_same(loaded, params)
    assert (found.dropout, found.mixer.dropout, found.mixer.heads) == (0.25, 0.25, 2)
    assert (found.residual.projection.iters, found.residual.projection.temperature) == (3, 0.5)
    assert interop.from_original("nanogpt", checkpoint, sinkhorn_iters=9)[0].residual.projection.iters == 9
    with pytest.raises(interop.InteropError, match="n_layer=3 contradicts the tensors, which say 2"):
        interop.from_original("nanogpt", checkpoint | {"config": fields | {"n_layer": 3}})


def test_checkpoint_of_plain_nanogpt_keeps_its_model_args():
    params = filled(small())
    kept = r"transformer\.(h\.\d+\.(ln_\d|attn|mlp)|wte|wpe|ln_f)\..*|lm_head\.weight"
    model = {name: x for name, x in interop.to_original("nanogpt", small(), params).items() if re.fullmatch(kept, name)}
    arguments = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 8, "bias": False, "vocab_size": 11}
    checkpoint = {"model": model, "model_args": arguments, "config": {"batch_size": 12, "n_head": 3}}
    found, loaded = interop.from_original("nanogpt", checkpoint)
    assert found == small()
    assert_same(loaded, params)


def test_streams_that_a_disabled_checkpoint_mentions_do_not_matter():
    model = interop.to_original("nanogpt", small(), filled(small()))
    fields = {"n_head": 2, "hc_disable": True, "hc_num_streams": 4, "mhc": True, "v_residual_constrained": True}
    assert interop.from_original("nanogpt", {"model": model, "config": fields})[0] == small()


def test_a_tensor_under_one_of_its_names_is_enough():
    params = filled(small("hc"))
    model = interop.to_original("nanogpt", small("hc"), params)
    only = {name: x for name, x in model.items() if not re.search(r"h\.\d+\.(attn_branch|ln_|attn|mlp)", name)}
    assert_same(interop.from_original("nanogpt", only, n_head=2)[1], params)
    older = {re.sub(r"(hc_attn\.branch)\.(norm|attn)", _number, name): x for name, x in only.items()}
    assert older.keys() != only.keys()
    assert_same(interop.from_original("nanogpt", older, n_head=2)[1], params)


def _number(match):
    return f"{match[1]}.{('norm', 'attn').index(match[2])}"


# What is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("transformer.h.1.hc_mlp.H_pre_logits"), r"missing \(1\): h.1.hc_mlp.H_pre_logits"),
        (lambda s: s.update({"transformer.h.0.extra": np.ones(2)}), r"unexpected \(1\): h.0.extra"),
        (lambda s: s.update({"transformer.h.0.attn_branch.norm.weight": np.ones(8)}), "ln_1.* but the two are one"),
        (lambda s: s.update({"lm_head.weight": s["lm_head.weight"] + 1}), "lm_head.weight differs"),
        (lambda s: s.pop("transformer.wpe.weight"), "wpe.weight of rank 2 is missing"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    state_dict = interop.to_original("nanogpt", small("mhc"), filled(small("mhc")))
    change(state_dict)
    with pytest.raises(interop.InteropError, match=message) as error:
        interop.from_original("nanogpt", state_dict, n_head=2)
    assert "\n" not in str(error.value)


def test_a_hyper_connection_without_a_read_is_refused():
    state_dict = interop.to_original("nanogpt", small("hc"), filled(small("hc")))
    square = {name: x[:, 1:] if name.endswith("static_alpha") else x for name, x in state_dict.items()}
    with pytest.raises(interop.InteropError, match=r"static_alpha of shape \(4, 4\) is not that of a hyper-connection"):
        interop.from_original("nanogpt", square, n_head=2)


@pytest.mark.parametrize(
    ("hints", "message"),
    [
        ({}, "do not tell the number of heads; say n_head"),
        ({"n_head": 3}, "heads 3 must divide the width 8"),
        ({"n_head": 2, "sinkhorn_iter": 3}, "unknown hint 'sinkhorn_iter'; did you mean 'sinkhorn_iters'"),
        ({"n_head": 2, "sinkhorn_iters": 0}, r"sinkhorn_iters=0 leaves H_res at n exp\(logits / tau\), which"),
        ({"n_head": 2, "hc_num_streams": 2}, "hc_num_streams=2 contradicts the tensors, which say 4"),
        ({"n_head": 2, "mhc_h_res_proj": "cayley"}, "'cayley' is not one of sinkhorn, orthostochastic"),
        (
            {"n_head": 2, "mhc_h_res_proj": "orthostochastic", "ns_coeffs": ((1.0, 0.0, 0.0),) * 8},
            "only as the published schedule",
        ),
    ],
)
def test_hints_are_checked(hints, message):
    state_dict = interop.to_original("nanogpt", small("mhc"), filled(small("mhc")))
    with pytest.raises(ConfigError, match=message):
        interop.from_original("nanogpt", state_dict, **hints)


def test_newton_schulz_settings():
    config = small("mhc_orthostochastic")
    state_dict = interop.to_original("nanogpt", config, filled(config))
    hints = {"n_head": 2, "mhc_h_res_proj": "orthostochastic"}
    quintic = interop.from_original("nanogpt", state_dict, **hints, ns_steps=3, ns_coeffs=[2, -1.5, 0.5], ns_eps=1e-6)
    projection = quintic[0].residual.projection
    assert (projection.steps, projection.coefficients, projection.eps) == (3, (2, -1.5, 0.5), 1e-6)
    none = interop.from_original("nanogpt", state_dict, **hints, ns_steps=0)
    logits = none[1]["blocks"]["mixer"]["residual"]["res_logits"][0]
    squares = np.square(logits / (np.linalg.norm(logits) + 1e-7))
    np.testing.assert_allclose(none[0].residual.projection.project(logits, len(logits)), squares, rtol=1e-5)
    eight = config.residual.projection.replace(schedule="eight")
    assert interop.from_original("nanogpt", state_dict, **hints, ns_coeffs=SCHEDULE)[0].residual.projection == eight


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (nanogpt("mhc", **SIZE), "residual 'static_mhc' in another form"),
        (nanogpt("hc", **SIZE), "residual 'hc' in another form"),
        (small("mhc", norm_streams=False), "its final norm after the sum of the streams"),
        (
            small("mhc", residual=StaticMHCConfig(unit_writes=False), ends=small("mhc").ends.replace(collapse="mean")),
            "ends",
        ),
        (small(mixer=AttentionConfig(heads=2)), "attention with biases"),
        (small(mlp=small().mlp.replace(activation="tanh")), "tanh form of GELU"),
        (small(mlp=small().mlp.replace(hidden=12)), "an MLP of another width"),
        (small(mlp=None), "no MLP"),
        (small(dropout=0.5), "several dropout rates"),
    ],
)
def test_what_nanogpt_cannot_express_is_refused(config, message):
    with pytest.raises(interop.InteropError, match=f"cannot express this model: it has .*{message}"):
        interop.to_original("nanogpt", config, filled(config))
