"""The optimizer against torch.optim.AdamW, its schedule and its mask."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from transformers import get_wsd_schedule

import torch_ref
import torch_ref.muon
import torch_ref.train
from mhc_jax import interop, registry
from mhc_jax.config import ConfigError
from mhc_jax.functional import ParamInfo, param_info, param_shapes
from mhc_jax.models import mhc_ssm, with_topology
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.tree import flatten, unflatten
from train.config import OptimConfig
from train.update.muon import is_hidden_matrix
from train.update.optimizer import clip_by_global_norm, decay_mask, make_optimizer, rate_factors, schedule

torch.set_num_threads(1)
CONSTANT = OptimConfig(lr=3e-3, decay="all", schedule="constant", warmup_steps=0)


def stepped(optimizer, params, gradients):
    """The parameters after an update for each of the gradients."""
    params = jax.tree.map(jnp.asarray, params)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(jax.tree.map(jnp.asarray, gradient), state, params)
        params = optax.apply_updates(params, updates)
    return params


def infos_of(params, **roles):
    """Of ad-hoc parameters; vectors, unless the role is given by the name of the leaf."""
    return {
        name: ParamInfo(x.shape, x.dtype, roles.get(name.rpartition(".")[2], "vector"), ("",) * x.ndim, 1.0)
        for name, x in flatten(params).items()
    }


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_twenty_steps_equal_torch_in_float64(clip):
    config = CONSTANT.replace(clip=clip)
    rng = np.random.default_rng(0)
    start = {name: rng.standard_normal(shape) for name, shape in {"kernel": (4, 3), "bias": (3,)}.items()}
    gradients = [{name: 3 * rng.standard_normal(value.shape) for name, value in start.items()} for _ in range(20)]

    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    adamw = torch.optim.AdamW(
        theirs.values(), lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, weight_decay=0.1
    )
    for gradient in gradients:
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradient[name])
        if clip:
            torch.nn.utils.clip_grad_norm_(theirs.values(), clip)
        adamw.step()

    with jax.enable_x64(True):
        ours = stepped(make_optimizer(config, 20, infos_of(start)), start, gradients)
        for name in start:
            np.testing.assert_allclose(ours[name], theirs[name].detach().numpy(), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
def test_muon_equals_torch_layer_by_layer_in_float64(scale, monkeypatch):
    """PyTorch's, which would round to bfloat16, is kept from it."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    config = CONSTANT.replace(name="muon", muon_lr=0.02, muon_weight_decay=0.3, muon_scale=scale, clip=0.0)
    rng = np.random.default_rng(0)
    shapes = {"wide": (2, 3, 5), "tall": (2, 7, 4), "experts": (2, 3, 4, 6), "head": (2, 3)}
    axes = dict.fromkeys(("wide", "tall"), ("layer", "embed", "mlp"))
    axes |= {"experts": ("layer", "expert", "embed", "mlp"), "head": ("embed", "vocab")}
    infos = {name: ParamInfo(shape, np.dtype("float64"), "kernel", axes[name], 1.0) for name, shape in shapes.items()}
    start, *gradients = ({name: rng.standard_normal(shape) for name, shape in shapes.items()} for _ in range(6))
    theirs = {
        (name, *at): torch.nn.Parameter(torch.tensor(value[at].T))
        for name, value in start.items()
        if name != "head"
        for at in np.ndindex(value.shape[:-2])
    }
    options = {"momentum": 0.95, "adjust_lr_fn": scale, "eps": 1e-20}
    muon = torch.optim.Muon(theirs.values(), lr=0.02, weight_decay=0.3, **options)
    head = torch.nn.Parameter(torch.tensor(start["head"]))
    adamw = torch.optim.AdamW([head], lr=config.lr, weight_decay=0.1)
    for gradient in gradients:
        for (name, *at), parameter in theirs.items():
            parameter.grad = torch.tensor(gradient[name][*at].T.copy())
        head.grad = torch.tensor(gradient["head"])
        muon.step()
        adamw.step()

    with jax.enable_x64(True):
        ours = stepped(make_optimizer(config, 5, infos), start, gradients)
        np.testing.assert_allclose(ours["head"], head.detach().numpy(), rtol=1e-12)
        for (name, *at), parameter in theirs.items():
            np.testing.assert_allclose(ours[name][*at].T, parameter.detach().numpy(), rtol=1e-7, atol=1e-9)


def test_muon_takes_the_matrices_of_hidden_layers_in_both_frameworks():
    taken = {
        "mhc_ssm": {"mixer.branch.in_proj", "mixer.branch.out_proj"},
        "gpt": {f"mixer.branch.{name}_proj" for name in ("q", "k", "v", "out")}
        | {f"mlp.branch.{name}_proj" for name in ("up", "down")},
    }
    models = {"mhc_ssm": mhc_ssm("adapters", vocab_size=11, max_len=8, width=8, layers=2)}
    models["gpt"] = model_of("dynamic_mhc", "attention")
    for name, model in models.items():
        infos = param_info(model)
        found = {path for path, info in infos.items() if is_hidden_matrix(info)}
        assert found == {f"blocks.{part}.kernel" for part in taken[name]}
        mask = {path: jnp.full(info.shape, path in found) for path, info in infos.items()}
        chosen = {path for path, x in interop.to_torch(model, unflatten(mask)).items() if x.all()}
        assert chosen == torch_ref.muon.hidden_matrices(torch_ref.build(model))
    with pytest.raises(ConfigError, match="no matrix of a hidden layer"):
        make_optimizer(OptimConfig(name="muon"), 1, infos_of({"kernel": jnp.zeros((2, 2))}, kernel="kernel"))


def test_schedule_warms_up_linearly_then_follows_half_a_cosine():
    config = OptimConfig(lr=2.0, warmup_steps=4, final_lr=0.1)
    rate = schedule(config, 14)
    rates = [float(rate(step)) for step in range(15)]
    np.testing.assert_allclose(rates[:5], [0.5, 1.0, 1.5, 2.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(rates[9], 2.0 * 0.55, rtol=1e-6)
    np.testing.assert_allclose(rates[14], 0.2, rtol=1e-6)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_the_full_rate_may_follow_the_warm_up():
    """As in nanoGPT: ``(step + 1) / (warmup_steps + 1)``, then the cosine from its top."""
    config = OptimConfig(lr=2.0, warmup_steps=4, warmup_end="after")
    rate = schedule(config, 14)
    np.testing.assert_allclose([rate(step) for step in range(5)], [0.4, 0.8, 1.2, 1.6, 2.0], rtol=1e-6)
    np.testing.assert_array_equal(rate(9), schedule(config.replace(warmup_end="last"), 14)(9))
    assert schedule(config.replace(warmup_steps=0), 14)(0) == 2.0
    assert torch_ref.train.learning_rate(config, 3, 14) == pytest.approx(1.6)


def test_a_cosine_may_end_before_the_run():
    config = OptimConfig(lr=2.0, warmup_steps=4)
    np.testing.assert_array_equal(schedule(config.replace(decay_steps=14), 50)(9), schedule(config, 14)(9))
    np.testing.assert_allclose(schedule(config.replace(decay_steps=14), 50)(30), 0.2, rtol=1e-6)


def test_value_and_stream_residuals_have_rates_of_their_own():
    params = {
        "values": {"lambdas": jnp.zeros(2)},
        "residual": {"adapter": {"kernel": jnp.zeros(2)}},
        "branch": {"values": jnp.zeros(2)},
        "bias": jnp.zeros(2),
    }
    config = CONSTANT.replace(value_lr=1e-2, residual_lr=1e-4, weight_decay=0.0)
    optimizer = make_optimizer(config, 10, infos_of(params))
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["values"]["lambdas"], -1e-2, rtol=1e-5)
    np.testing.assert_allclose(updates["residual"]["adapter"]["kernel"], -1e-4, rtol=1e-5)
    for update in (updates["bias"], updates["branch"]["values"]):
        np.testing.assert_allclose(update, -CONSTANT.lr, rtol=1e-5)


def test_constant_schedule_without_warmup_is_constant():
    rate = schedule(CONSTANT, 10)
    assert {float(rate(step)) for step in (0, 5, 50)} == {float(np.float32(CONSTANT.lr))}


def test_optimizer_applies_and_reports_the_scheduled_rate():
    config = OptimConfig(lr=1.0, warmup_steps=2, weight_decay=0.0, clip=0.0)
    params = {"bias": jnp.zeros(1)}
    optimizer = make_optimizer(config, 10, infos_of(params))
    state = optimizer.init(params)
    for rate in (0.5, 1.0):
        updates, state = optimizer.update({"bias": jnp.ones(1)}, state, params)
        assert float(optax.tree.get(state, "learning_rate")) == rate
        np.testing.assert_allclose(updates["bias"], [-rate], rtol=1e-4)


# Every leaf of every model by its name: a matrix of a dense layer, a matrix that predicts coefficients, or neither.
DECAYED = {
    "kernel": "kernel", "phi": "matrix", "dynamic_alpha_fn": "matrix", "dynamic_beta_fn": "matrix",
    "alpha_fn": "matrix", "beta_fn": "matrix", "down": "matrix", "up": "matrix", "inject": "matrix",
    "tokens": "", "positions": "", "scale": "", "bias": "", "filter": "", "logit_a": "", "b": "", "c": "", "d": "",
    "gamma": "", "gamma_pre": "", "gamma_post": "", "alpha": "", "pre_logits": "", "post_logits": "", "res_logits": "",
    "mix_logit": "", "static_alpha": "", "static_beta": "", "alpha_static": "", "beta_static": "", "lambdas": "",
    "dynamic_alpha_scale": "", "dynamic_beta_scale": "", "pre_scale": "", "res_scale": "", "post_scale": "",
    "gate_scale": "", "collapse_logits": "", "stream_embed": "", "pool": "", "a_log": "", "read": "", "write": "",
    "skew": "", "dt_bias": "",
}  # fmt: skip
CELLS = [(topology, "attention") for topology in registry.names("topology")]
CELLS += [("mhc", mixer) for mixer in registry.names("mixer") if mixer != "attention"]


def model_of(topology, mixer):
    config = LMConfig(
        vocab_size=11,
        max_len=4,
        width=8,
        layers=2,
        mixer=registry.get("mixer", mixer)().small(),
        mlp=GeluMLPConfig(),
    )
    return with_topology(config, topology)


@pytest.mark.parametrize(("topology", "mixer"), CELLS)
def test_every_parameter_of_every_model_is_decayed_as_ever(topology, mixer):
    """The roles say what the published names of the leaves have always said."""
    model = model_of(topology, mixer)
    infos, shapes = param_info(model), param_shapes(model)
    for decay, kinds in (
        ("matrices", {"kernel", "matrix"}),
        ("kernels", {"kernel"}),
        ("all", {"kernel", "matrix", ""}),
    ):
        mask = decay_mask(OptimConfig(decay=decay), infos, shapes)
        for path, keep in jax.tree_util.tree_leaves_with_path(mask):
            assert keep == (DECAYED[path[-1].key] in kinds), (decay, jax.tree_util.keystr(path))


@pytest.mark.parametrize(("topology", "mixer"), CELLS)
def test_residual_and_value_rates_reach_what_they_name_alone(topology, mixer):
    config = OptimConfig(lr=0.1, value_lr=0.02, residual_lr=0.3)
    shapes = param_shapes(model_of(topology, mixer))
    for path, factor in jax.tree_util.tree_leaves_with_path(rate_factors(config, shapes)):
        parts = {part.key for part in path}
        expected = 0.2 if "lambdas" in parts else 3.0 if "residual" in parts else 1.0
        assert factor == pytest.approx(expected), path
    usual = rate_factors(OptimConfig(), shapes)
    assert set(jax.tree.leaves(usual)) == {1.0}


def test_decay_acts_on_what_is_chosen_alone():
    """With gradients of zero an update is the decay, at the scheduled rate."""
    params = {"kernel": jnp.full(2, 3.0), "phi": jnp.full(2, 3.0), "scale": jnp.full(2, 3.0)}
    zero = jax.tree.map(jnp.zeros_like, params)
    for decay, still in (("matrices", {"scale"}), ("kernels", {"scale", "phi"}), ("all", set())):
        config = CONSTANT.replace(lr=0.5, decay=decay, weight_decay=0.2)
        optimizer = make_optimizer(config, 10, infos_of(params, kernel="kernel", phi="mixing"))
        updates, _ = optimizer.update(zero, optimizer.init(params), params)
        for name, update in updates.items():
            np.testing.assert_allclose(update, 0.0 if name in still else -0.3, rtol=1e-6, err_msg=f"{decay} {name}")


def test_clipping_keeps_what_is_short_and_dtypes():
    clip = clip_by_global_norm(1.0)
    for scale, expected in ((0.1, 0.1), (10.0, 1.0)):
        gradient = {"a": jnp.array([0.6 * scale], jnp.bfloat16), "b": jnp.array([0.8 * scale])}
        clipped, _ = clip.update(gradient, clip.init(gradient))
        np.testing.assert_allclose(
            [float(clipped["a"][0]), float(clipped["b"][0])], [0.6 * expected, 0.8 * expected], rtol=5e-3
        )
        assert {name: x.dtype for name, x in clipped.items()} == {"a": jnp.bfloat16, "b": jnp.float32}


@pytest.mark.parametrize(
    ("changes", "total", "rates"),
    [
        ({"schedule": "constant", "warmup_steps": 4}, 10, {0: 0.5, 1: 1.0, 3: 2.0, 4: 2.0, 9: 2.0, 50: 2.0}),
        ({"schedule": "constant", "warmup_steps": 0}, 10, {0: 2.0, 9: 2.0}),
        ({"warmup_steps": 0, "final_lr": 0.0}, 10, {0: 2.0, 5: 1.0, 10: 0.0, 11: 0.0}),
        ({"warmup_steps": 0, "final_lr": 0.5}, 8, {0: 2.0, 2: 1.5 + 0.5 * 2**-0.5, 4: 1.5, 8: 1.0, 100: 1.0}),
        ({"warmup_steps": 2, "final_lr": 0.0, "decay_steps": 6}, 50, {0: 1.0, 1: 2.0, 2: 2.0, 4: 1.0, 6: 0.0, 49: 0.0}),
        ({"warmup_steps": 10, "final_lr": 0.0}, 5, {0: 0.2, 4: 1.0, 9: 2.0}),
        # RLM-mHC's own factors.
        (
            {"warmup_steps": 2, "warmup_end": "after_zero", "schedule": "cosine_floored"},
            20,
            {0: 0.0, 1: 1.0, 2: 2.0, 11: 1.0, 16: 0.2339556, 17: 0.2, 20: 0.2, 90: 0.2},
        ),
        ({"warmup_steps": 0, "schedule": "linear_floored", "final_lr": 0.25}, 8, {0: 2.0, 2: 1.5, 6: 0.5, 7: 0.5}),
    ],
)
def test_schedules(changes, total, rates):
    rate = schedule(OptimConfig(lr=2.0).replace(**changes), total)
    np.testing.assert_allclose([rate(step) for step in rates], list(rates.values()), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", ["1-sqrt", "linear", "cosine"])
@pytest.mark.parametrize("floor", [0.0, 0.25])
def test_wsd_is_that_of_transformers_and_of_the_mirror(shape, floor):
    config = OptimConfig(lr=2.0, schedule="wsd", decay_shape=shape, final_lr=floor, warmup_steps=3)
    config = config.replace(warmup_end="after_zero")
    stepped = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    lengths = {"num_warmup_steps": 3, "num_decay_steps": 4, "num_training_steps": 20}
    theirs = get_wsd_schedule(stepped, **lengths, decay_type=shape, min_lr_ratio=floor)
    (factor,) = theirs.lr_lambdas
    steps = range(23)
    rates = [float(schedule(config, 20)(step)) for step in steps]
    # Theirs also warms up from the floor.
    begin = 0 if floor == 0 else 3
    np.testing.assert_allclose(rates[begin:], [2.0 * factor(step) for step in steps[begin:]], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(rates, [torch_ref.train.learning_rate(config, step, 20) for step in steps], rtol=1e-6)
    assert rates[3:17] == [2.0] * 14
    assert rates[17] < 2.0


def test_wsd_decays_after_the_warm_up_and_ends_with_decay_steps():
    config = OptimConfig(lr=2.0, schedule="wsd", decay_shape="linear", final_lr=0.0, warmup_steps=6)
    rates = {0: 1 / 3, 5: 2.0, 6: 2.0, 7: 1.5, 9: 0.5, 10: 0.0, 15: 0.0}
    for changes, total in (({"decay_fraction": 0.5}, 10), ({"decay_fraction": 1.0, "decay_steps": 10}, 90)):
        rate = schedule(config.replace(**changes), total)
        np.testing.assert_allclose([rate(step) for step in rates], list(rates.values()), rtol=1e-6, atol=1e-7)
    for changes in ({"decay_fraction": 0.0}, {"decay_fraction": 1.5}, {"decay_shape": "sqrt"}, {"schedule": "wsdd"}):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            config.replace(**changes).validate()


def test_the_reported_rate_is_that_of_the_first_update_before_it():
    params = {"bias": jnp.zeros(1)}
    optimizer = make_optimizer(OptimConfig(lr=1.0, warmup_steps=4), 10, infos_of(params))
    assert float(optax.tree.get(optimizer.init(params), "learning_rate")) == 0.25


def test_numbers_that_float32_rounds_to_one_or_infinity_are_refused():
    """An average that keeps all of itself, for one, would stay the first parameters."""
    for changes, fault in (
        *(({name: 1 - 1e-9}, f"{name} is 1 in float32") for name in ("beta1", "beta2", "muon_momentum", "ema")),
        ({"eps": 1e39}, "eps must fit float32"),
    ):
        with pytest.raises(ConfigError, match=fault):
            OptimConfig(**changes).validate()
    OptimConfig(ema=1 - 1e-7).validate()
