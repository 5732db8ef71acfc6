"""Attention and rotary positions against plain formulas in float64."""

import math

import pytest
import torch

from torch_ref.config import as_record, implementation
from torch_ref.nn.scope import Scope
from torch_ref.ops.attention import causal_attention
from torch_ref.ops.rotary import rotate

torch.set_num_threads(1)
B, T, H, K, WIDTH = 2, 5, 4, 6, 16
POSITIONS = torch.tensor([[0, 1, 2, 3, 4], [7, 8, 9, 30, 31]])
SEGMENTS = torch.tensor([[0, 0, 1, 1, 1], [2, 2, 2, 2, 3]])


def random(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def plain_rotation(x, positions, base, layout):
    """Complex multiplication, number by number."""
    out = torch.empty_like(x)
    half = x.shape[-1] // 2
    for b, t, h, i in torch.cartesian_prod(*(torch.arange(n) for n in (*x.shape[:3], half))).tolist():
        first, second = (i, i + half) if layout == "half" else (2 * i, 2 * i + 1)
        angle = positions[b, t].item() * base ** (-2 * i / x.shape[-1])
        turned = complex(x[b, t, h, first], x[b, t, h, second]) * complex(math.cos(angle), math.sin(angle))
        out[b, t, h, first], out[b, t, h, second] = turned.real, turned.imag
    return out


@pytest.mark.parametrize("base", [10000.0, 50.0])
@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_rotation_multiplies_pairs_by_a_phase(layout, base):
    x = random(B, T, 2, K)
    turned = rotate(x, POSITIONS, base=base, layout=layout)
    torch.testing.assert_close(turned, plain_rotation(x, POSITIONS, base, layout))
    assert torch.equal(turned[0, 0], x[0, 0])


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_products_of_rotated_vectors_depend_on_their_distance_alone(layout):
    q, k = random(B, T, 2, K), random(B, T, 2, K, seed=1)
    near, far = (
        (rotate(q, p, layout=layout) * rotate(k, p + 3, layout=layout)).sum(-1)
        for p in (POSITIONS, 0 * POSITIONS + 100)
    )
    torch.testing.assert_close(near, far)


def test_angles_of_bfloat16_are_those_of_float32():
    x, far = random(1, 2, 1, K).bfloat16(), torch.tensor([[1000, 1001]])
    turned = rotate(x, far)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(x.float(), far).bfloat16())


def test_rotation_refuses_bad_arguments():
    with pytest.raises(ValueError, match="heads of even width, got 5"):
        rotate(random(1, 1, 1, 5), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="unknown rotary layout 'pairs'; known: half, interleaved"):
        rotate(random(1, 1, 1, 4), torch.zeros(1, 1), layout="pairs")


def plain_attention(q, k, v, sees):
    """Query by query; ``sees(b, t, s)`` says which keys."""
    out = torch.empty_like(q)
    group = q.shape[2] // k.shape[2]
    for b, t, h in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        keys = [s for s in range(k.shape[1]) if sees(b, t, s)]
        scores = (k[b, keys, h // group] @ q[b, t, h]) / math.sqrt(q.shape[-1])
        out[b, t, h] = scores.softmax(0) @ v[b, keys, h // group]
    return out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_grouped_heads_share_keys(heads, causal):
    q, k, v = random(B, T, H, K), random(B, T, heads, K, seed=1), random(B, T, heads, K, seed=2)
    ours = causal_attention(q, k, v, causal=causal)
    torch.testing.assert_close(ours, plain_attention(q, k, v, lambda b, t, s: s <= t or not causal))


@pytest.mark.parametrize("causal", [True, False])
def test_segments_are_kept_apart(causal):
    q, k, v = random(B, T, H, K), random(B, T, 2, K, seed=1), random(B, T, 2, K, seed=2)

    def sees(b, t, s):
        return SEGMENTS[b, t] == SEGMENTS[b, s] and (s <= t or not causal)

    ours = causal_attention(q, k, v, segment_ids=SEGMENTS, causal=causal)
    torch.testing.assert_close(ours, plain_attention(q, k, v, sees))


def test_keys_before_a_rows_first_token_are_hidden_and_cached_keys_seen():
    q, k, v = random(B, 3, H, K), random(B, T, 2, K, seed=1), random(B, T, 2, K, seed=2)
    first = [1, 4]

    def sees(b, t, s):
        return s == t + 2 or first[b] <= s <= t + 2

    ours = causal_attention(q, k, v, start=2, start_B=torch.tensor(first))
    torch.testing.assert_close(ours, plain_attention(q, k, v, sees))
    segments = SEGMENTS[:, 2:]

    def in_segment(b, t, s):
        return s <= t + 2 and segments[b, t] == segments[b, max(s - 2, 0)]

    torch.testing.assert_close(
        causal_attention(q, k, v, start=2, segment_ids=segments), plain_attention(q, k, v, in_segment)
    )


def test_attention_refuses_bad_shapes():
    with pytest.raises(ValueError, match="3 queries and 5 keys: give the position"):
        causal_attention(random(B, 3, H, K), random(B, T, H, K), random(B, T, H, K))
    with pytest.raises(ValueError, match="4 query heads are not a multiple of 3 key heads"):
        causal_attention(random(B, T, H, K), random(B, T, 3, K), random(B, T, 3, K))


CONFIG = {"kind": "attention", "heads": H, "bias": True, "init_std": 0.2, "dropout": 0.0, "views": 1}


def mixer(**options):
    settings = as_record(CONFIG | options)
    torch.manual_seed(0)
    module = implementation("mixer", settings)(settings, WIDTH, 2).double()
    with torch.no_grad():
        for p in module.parameters():
            p += 0.1 * torch.randn_like(p)
    return module


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kv_heads": 2},
        {"head_width": 6, "kv_heads": 1, "bias": False},
        {"causal": False},
        {"rotary": "half", "rotary_base": 100.0},
        {"rotary": "interleaved", "rotary_base": 10000.0, "kv_heads": 2},
        {"rotary": "half", "rotary_base": 100.0, "rotary_scaling": {"kind": "linear", "factor": 2.0}},
        {"qk_norm": {"kind": "rms", "eps": 1e-6}},
        {
            "qk_norm": {"kind": "rms", "eps": 1e-6},
            "rotary": "half",
            "rotary_base": 10000.0,
            "head_width": 8,
            "kv_heads": 2,
        },
    ],
)
def test_mixer_against_its_formula(options):
    module, x = mixer(**options), random(B, T, WIDTH)
    p = dict(module.named_parameters())
    width, groups = options.get("head_width", WIDTH // H), options.get("kv_heads", H)

    def heads(name, count):
        y = x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)
        return y.reshape(B, T, count, width)

    def placed(y, norm):
        if options.get("qk_norm"):
            y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * p[f"{norm}.weight"]
        if "rotary" in options:
            slower = POSITIONS / options.get("rotary_scaling", {}).get("factor", 1)
            y = plain_rotation(y, slower, options["rotary_base"], options["rotary"])
        return y

    q, k, v = placed(heads("q_proj", H), "q_norm"), placed(heads("k_proj", groups), "k_norm"), heads("v_proj", groups)
    causal = options.get("causal", True)
    attended = plain_attention(q, k, v, lambda b, t, s: s <= t or not causal)
    expected = attended.flatten(2) @ p["out_proj.weight"].T + p.get("out_proj.bias", 0)
    taps = {}
    y, state = module(x, None, Scope(POSITIONS, taps=taps))
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(taps["attended"], attended.flatten(2))
    assert state is None
    named = {"q_norm.weight", "k_norm.weight"}
    assert named & set(p) == (named if options.get("qk_norm") else set())
    if causal:
        first, state = module(x[:, :3], module.init_state(B, T), Scope(POSITIONS[:, :3]))
        rest, state = module(x[:, 3:], state, Scope(POSITIONS[:, 3:], column=3))
        torch.testing.assert_close(torch.cat([first, rest], 1), expected)
        torch.testing.assert_close(state["k"], k)  # cached as they meet the queries


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "heads 3 must divide the width 16"),
        ({"kv_heads": 3}, "kv_heads 3 must divide heads 4"),
        ({"kv_heads": 0}, "kv_heads 0 must divide heads 4"),
        ({"head_width": 0}, "head_width 0 be at least 1"),
        ({"rotary": "axial"}, "unknown rotary layout 'axial'; known: half, interleaved, none"),
        ({"rotary": "half", "head_width": 3}, "heads of even width, got 3"),
        (
            {"rotary": "half", "rotary_scaling": {"kind": "nosuch"}},
            "unknown rotary_scaling kind 'nosuch'; known: .*linear",
        ),
        ({"rotary": "half", "rotary_scaling": {"kind": "linear", "factor": 0.5}}, "linear: factor must be at least 1"),
    ],
)
def test_mixer_refuses_impossible_settings(options, message):
    with pytest.raises(ValueError, match=message):
        mixer(**options)
