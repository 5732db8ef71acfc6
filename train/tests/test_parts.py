"""Time by part: every part runs alone on its own parameters, and what is counted adds up to the model."""

import jax
import jax.numpy as jnp
import pytest

import mhc_jax
from mhc_jax import accounting, registry
from mhc_jax.functional import bind, param_shapes
from mhc_jax.models import SHCOriginalConfig, mhc_ssm, with_topology
from mhc_jax.nn.channel import GeluMLPConfig, SwiGLUConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig, SelectiveSSMConfig
from mhc_jax.nn.scope import Scope
from train.loop import named
from train.measure import parts
from train.tests.tiny import tiny_config

SMALL = {"vocab_size": 61, "max_len": 16, "width": 24, "layers": 2}
MODELS = {
    "attention": LMConfig(**SMALL, mixer=AttentionConfig(heads=2), mlp=GeluMLPConfig(), head="dense"),
    "selective_ssm": LMConfig(**SMALL, mixer=SelectiveSSMConfig(state=2), mlp=SwiGLUConfig(hidden=8)),
    "diagonal_ssm": mhc_ssm("adapters", **SMALL),
}
PUBLISHED = SHCOriginalConfig(vocab_size=61, max_len=16, width=8, layers=2, heads=2, hidden=7)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_counted_by_part_adds_up_to_the_model(name):
    model = with_topology(MODELS[name], "shc")
    _check_counts(model)
    part = next(part for part in accounting.summary(model).parts if part.name == "blocks.mixer.residual")
    assert parts.counts(accounting.summary(model), parts._pieces(model))["mixer: topology"][0] >= part.parameters > 0


def test_what_is_counted_of_the_published_shc_adds_up():
    _check_counts(PUBLISHED)


def _check_counts(model):
    of_model = accounting.summary(model, 16)
    counted = parts.counts(of_model, parts._pieces(model))
    assert [sum(x) for x in zip(*counted.values())] == [of_model.parameters, of_model.forward_flops]
    assert counted[parts.OTHER] == (0, 0)
    assert counted[parts.HEAD][1] == 2 * model.vocab_size * model.width


def _one_token(model):
    """Every piece in training on (2, 5) tokens, and on one token after others, with its own parameters alone."""

    def run(params, tokens):
        found = {}
        for name, prefixes in parts._pieces(model).items():
            scope = Scope.over(5, key=jax.random.key(1))
            x = bind(model, params).pieces()[name].given(tokens, scope)
            owned = parts._owned(params, prefixes)
            y, _ = parts._bound(model, owned).pieces()[name].run(x, None, scope)
            if not model.causal:
                found[name] = y
                continue
            token, scope = tokens[:1, :1], Scope(jnp.full((1, 1), 3), column=3)
            x = bind(model, params).pieces()[name].given(token, scope)
            piece = parts._bound(model, owned).pieces()[name]
            states = bind(model, params).init_state(1, 8) if piece.remembers else None
            found[name] = y, *piece.run(x, states, scope)
        return found

    return run


# A state that is one array, one of several entries; several reads, several runs of a branch, other parts within.
KINDS = ("plain", "frac", "single_pass_mhc", "hc_views", "multi_branch", "mhc_ssm_adapters", "value_residual", "shc")


@pytest.mark.parametrize(
    "topology",
    [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in registry.names("topology")],
)
def test_every_topology_has_pieces_that_run(topology):
    model = with_topology(MODELS["attention"], topology)
    found = jax.eval_shape(_one_token(model), param_shapes(model), jax.ShapeDtypeStruct((2, 5), jnp.int32))
    assert {"embedding", "mixer: topology", "mixer: attention", "mlp: topology", "mlp: gelu_mlp"} <= found.keys()
    assert found["embedding"][0].shape == (2, 5, 24)
    layers, rows, *_, columns = found["mixer: attention"][2]["k"].array.shape
    assert (layers, rows, columns) == (2, model.residual.branches, 8)


OTHERS = ("selective_ssm", "diagonal_ssm", "published")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention", *OTHERS])
def test_pieces_need_no_parameters_but_their_own(name):
    """Those of others are NaN."""
    model = PUBLISHED if name == "published" else with_topology(MODELS[name], "shc")
    params = mhc_jax.init(model, jax.random.key(0))
    found = jax.jit(_one_token(model))(params, jnp.arange(10).reshape(2, 5))
    for piece, outputs in found.items():
        assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(outputs)), piece


def test_the_pieces_in_order_are_the_model():
    """Without mixing the pieces of a model of one layer compose to its hidden states."""
    model = with_topology(MODELS["attention"], "plain").replace(layers=1, mlp=None)
    params, tokens = mhc_jax.init(model, jax.random.key(0)), jnp.arange(10).reshape(2, 5)
    scope = Scope.over(5)
    pieces = bind(model, params).pieces()
    embedded, _ = pieces["embedding"].run(tokens, None, scope)
    normalised, _ = pieces["mixer: norm"].run(embedded, None, scope)
    branch, _ = pieces["mixer: attention"].run(normalised, None, scope)
    state = embedded + branch - normalised  # the piece adds its input to its output
    hidden, _ = pieces["ends and final norm"].run(state, None, scope)
    expected = mhc_jax.apply(model, params, tokens).hidden_BTD
    assert jnp.abs(hidden - expected).max() < 1e-5
    doubled, _ = pieces["mixer: topology"].run(embedded, None, scope)
    assert jnp.abs(doubled - 2 * embedded).max() < 1e-6  # x + x: its branch gives back what it reads


@pytest.mark.slow
def test_a_profile_has_a_time_for_every_part(tmp_path):
    config = tiny_config(tmp_path)
    config = config.replace(train=config.train.replace(accumulate=2))
    params = mhc_jax.init(config.model, jax.random.key(0))
    found = parts.measure(config, params, length=12)
    assert [row["part"] for row in found.rows] == [
        *("embedding", "ends and final norm", "mixer: topology", "mixer: norm", "mixer: diagonal_ssm"),
        *("head and loss", "optimizer", "sum of the parts", "whole"),
    ]
    *of_parts, total, whole = found.rows
    assert total["ms a step"] == pytest.approx(sum(row["ms a step"] for row in of_parts))
    assert total["us a token"] == pytest.approx(sum(row["us a token"] or 0 for row in of_parts))
    assert total["parameters"] == accounting.summary(config.model).parameters
    assert all(row["ms a step"] > 0 for row in (*of_parts, whole))
    assert "4 x 16 tokens" in found.note
    memory = {row["memory"]: row["KiB"] for row in found.memory}
    assert memory["decoding state of one row, 12 tokens"] == parts.state_bytes(config.model, 12) / 1024
    assert memory["optimizer state"] > 2 * memory["parameters"]
    assert memory["temporaries of a training step"] > 0


def test_the_state_of_attention_grows_with_length_and_that_of_a_recurrence_does_not():
    sizes = {name: [parts.state_bytes(model, length) for length in (8, 16)] for name, model in MODELS.items()}
    assert sizes["attention"] == [2 * 2 * 8 * 24 * 4, 2 * 2 * 16 * 24 * 4]
    for name in ("selective_ssm", "diagonal_ssm"):
        assert sizes[name][0] == sizes[name][1] > 0


def test_the_student_of_shc_keeps_the_same_of_a_text_of_any_length():
    """The cache of attention has a key and a value of every layer for each token."""
    student, model = (
        named.load(name).model.replace(vocab_size=257, max_len=4096) for name in ("shc_student", "shc_500m")
    )
    assert parts.state_bytes(student, 256) == parts.state_bytes(student, 4096) < 1.5 * 2**20
    assert parts.state_bytes(model, 4096) == 4096 * 2 * 36 * 1024 * 2
