"""The mirror's multi-head latent attention, against its formula head by head and against itself in pieces."""

import math

import pytest
import torch

from torch_ref.config import as_record, implementation
from torch_ref.nn.scope import Scope
from torch_ref.ops.attention import absorbed_latent_attention, latent_attention
from torch_ref.ops.rotary import rotate

B, T, WIDTH = 2, 6, 16
H, K, P, R, V = 3, 4, 2, 5, 3
CONFIG = {
    "kind": "latent_attention", "heads": H, "latent_width": R, "query_latent_width": None, "head_width": K,
    "value_head_width": V, "rotary": "half", "rotary_width": P, "rotary_base": 100.0, "rotary_scaling": None,
    "mscale_all_dim": 0.0, "latent_norm": {"kind": "rms", "eps": 1e-6}, "causal": True, "bias": True, "init_std": 0.2,
    "scale_output": True, "dropout": 0.0,
}  # fmt: skip
POSITIONS = torch.arange(T).expand(B, T)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixer(**options):
    settings = as_record(CONFIG | options)
    torch.manual_seed(0)
    return implementation("mixer", settings)(settings, WIDTH, 2).double()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"query_latent_width": 4, "rotary": "interleaved"},
        {"rotary": "none", "rotary_width": None, "bias": False},
        {"causal": False},
        {
            "rotary_scaling": {
                "kind": "yarn", "factor": 1.0, "attention_factor": 1.0, "beta_fast": 32.0, "beta_slow": 1.0,
                "original_max_position_embeddings": 8, "truncate": True,
            },
            "mscale_all_dim": 1.0,
        },
    ],
)  # fmt: skip
def test_mixer_against_its_formula(options):
    module, x = mixer(**options), random(B, T, WIDTH)
    p, turned = dict(module.named_parameters()), options.get("rotary", "half")

    def product(name, y):
        return y @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)

    def normalised(name, y):
        return y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * p[f"{name}.weight"]

    q = (
        product("q_proj", x)
        if "q_proj.weight" in p
        else product("q_up_proj", normalised("q_norm", product("q_down_proj", x)))
    )
    q = q.reshape(B, T, H, -1)
    latent = normalised("kv_norm", product("kv_down_proj", x))
    k = product("k_up_proj", latent).reshape(B, T, H, K)
    v = product("v_up_proj", latent).reshape(B, T, H, V)
    scores = torch.einsum("bthk,bshk->bhts", q[..., :K], k)
    width = K
    if turned != "none":
        key = rotate(product("k_rope_proj", x)[:, :, None], POSITIONS, base=100.0, layout=turned)
        query = rotate(q[..., K:], POSITIONS, base=100.0, layout=turned)
        scores, width = scores + torch.einsum("bthp,bsgp->bhts", query, key), K + P
    if options.get("causal", True):
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
    attended = torch.einsum("bhts,bshv->bthv", (scores / math.sqrt(width)).softmax(-1), v)
    expected = product("out_proj", attended.flatten(2))
    taps = {}
    y, state = module(x, None, Scope(POSITIONS, taps=taps))
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(taps["latent"], latent)
    assert state is None
    if options.get("causal", True):
        first, state = module(x[:, :3], module.init_state(B, T), Scope(POSITIONS[:, :3]))
        rest, state = module(x[:, 3:], state, Scope(POSITIONS[:, 3:], column=3))
        torch.testing.assert_close(torch.cat([first, rest], 1), expected)
        torch.testing.assert_close(state["latent"], latent)
        assert ("k_rope" in state) == (turned != "none")


def test_scores_grow_with_the_factor():
    yarn = {
        "kind": "yarn", "factor": math.e, "attention_factor": None, "beta_fast": 32.0, "beta_slow": 1.0,
        "original_max_position_embeddings": 8, "truncate": True,
    }  # fmt: skip
    assert mixer(rotary_scaling=yarn, mscale_all_dim=2.0).scale == pytest.approx(1.2**2 / math.sqrt(K + P))


def test_both_forms_are_one_function_after_padding():
    arrays = random(B, 3, H, K), random(B, 3, H, P), random(B, T, R), random(B, T, P), random(R, H, K), random(R, H, V)
    options = {"start": 2, "start_B": torch.tensor([0, 3]), "scale": 0.7}
    torch.testing.assert_close(latent_attention(*arrays, **options), absorbed_latent_attention(*arrays, **options))


def test_sizes_left_out_follow_from_the_width():
    module = mixer(heads=2, head_width=None, value_head_width=None, latent_width=None, rotary_width=None)
    assert (module.head_width, module.rotary_width, module.kv_down_proj.out_features) == (8, 4, 5)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="at least 1, got heads 17 of 0"):
        mixer(heads=17, head_width=None)
    with pytest.raises(ValueError, match="heads of even width, got 3"):
        mixer(rotary_width=3)
    with pytest.raises(ValueError, match="cannot decode"):
        mixer(causal=False).init_state(1, 4)
    module = mixer()
    with pytest.raises(ValueError, match="max_len 4 has no room for 6 tokens"):
        module(random(B, T, WIDTH), module.init_state(B, 4), Scope(POSITIONS))
