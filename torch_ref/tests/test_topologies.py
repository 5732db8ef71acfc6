"""Residual topologies and stream ends: the published modules' own numbers, initial values and promised properties."""

import math

import pytest
import torch

from torch_ref.config import as_record, implementation
from torch_ref.nn.scope import Scope
from torch_ref.tests.hyper_golden import EXPRESSED, digest, fill, our_parameters, to_packed, to_streams

torch.set_num_threads(1)
WIDTH = 8
POSITIONS = torch.arange(3).expand(2, 3)
SCOPE = Scope(POSITIONS)


def build(axis, config, *args):
    return implementation(axis, as_record(config))(as_record(config), WIDTH, *args)


def filled(module, case):
    module = module.double()
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    module.load_state_dict(our_parameters(case, shapes))
    return module


def check(case, module, x, read, out):
    """Compares values, and gradients of the golden loss, with the golden numbers."""
    golden, close = case["golden"], {"rel": case["rtol"], "abs": case["rtol"]}
    loss = (out * fill(out.shape, 70)).sum()
    assert digest(out) == pytest.approx(golden["out"], **close)
    if read is not None:
        loss = loss + (read * fill(read.shape, 80)).sum()
        assert digest(read) == pytest.approx(golden["read"], **close)
    assert loss.item() == pytest.approx(golden["loss"], **close)
    loss.backward()
    assert digest(x.grad) == pytest.approx(golden["dx"], **close)
    ours = {case["ours"][name][0]: p.grad.abs().sum().item() for name, p in module.named_parameters()}
    assert ours == pytest.approx(golden["grads"], **close)


@pytest.mark.parametrize("name", [name for name, case in EXPRESSED.items() if case["axis"] == "residual"])
def test_site_replays_the_golden_numbers(name):
    case = EXPRESSED[name]
    module = filled(build("residual", case["config"], case["site"], case["site"] + 1), case)
    packed = case["layout"] == "packed"
    x = fill(case["x"], 50).requires_grad_()
    state = to_streams(x, case["streams"]) if packed else x
    taps = {}
    read, ctx = module.pre(state, Scope(POSITIONS, taps=taps))
    y = fill(case["y"], 60)
    out = module.post(state, y.unflatten(0, (module.branches, -1)) if module.branches > 1 else y, ctx, SCOPE)
    check(case, module, x, read, to_packed(out) if packed else out)
    for tap in {"post", "res"} & set(case["golden"]):
        theirs = taps[f"h_{tap}"] if tap == "post" else taps["h_res"].mT
        assert digest(theirs) == pytest.approx(case["golden"][tap], rel=case["rtol"])
    if "res_first_token_own" in case["golden"]:
        expected = torch.tensor(case["golden"]["res_first_token_own"], dtype=torch.float64)
        torch.testing.assert_close(taps["h_res"][0, 0].mT, expected, atol=6e-7, rtol=0)


def test_weighted_head_replays_the_golden_numbers():
    case = EXPRESSED["hf/ds4_head"]
    module = filled(build("ends", case["config"], case["streams"]), case)
    x = fill(case["x"], 50).requires_grad_()
    check(case, module, x, None, module.collapse(x))


SINKHORN = {
    "kind": "sinkhorn",
    "iters": 20,
    "temperature": 1.0,
    "order": "columns_then_rows",
    "domain": "log",
    "gradient": "recompute",
}
DYNAMIC = {
    "streams": 4,
    "projection": SINKHORN,
    "alpha": 0.01,
    "phi_std": 0.0,
    "norm_eps": 1e-6,
    "pre_eps": 0.0,
    "post_eps": 0.0,
    "post_gain": 2.0,
    "read_lean": 0.7,
    "diagonal_bias": 4.0,
    "bias": "near_identity",
}
HC = {
    "kind": "hc",
    "streams": 4,
    "fractions": 1,
    "views": 1,
    "dynamic": True,
    "tanh": True,
    "norm": "rms",
    "mixed": True,
    "fraction_init": "identity",
}
CONFIGS = {
    "static_mhc": {
        "kind": "static_mhc",
        "streams": 4,
        "projection": SINKHORN,
        "unit_writes": True,
        "read": "softmax",
        "diagonal_bias": 4.0,
        "res_offset": 0.0,
        "read_bias": 1.0,
        "noise": 0.0,
        "identity_mix": 0.25,
    },
    "dynamic_mhc": DYNAMIC | {"kind": "dynamic_mhc"},
    "single_pass_mhc": DYNAMIC | {"kind": "single_pass_mhc"},
    "ihc": DYNAMIC | {"kind": "dynamic_mhc", "projection": {"kind": "identity"}, "read_lean": 0.0},
    "krom_hc": DYNAMIC | {"kind": "dynamic_mhc", "projection": {"kind": "kronecker"}},
    "mhc_lite": DYNAMIC | {"kind": "dynamic_mhc", "projection": {"kind": "permutations"}},
    "per_stream_mhc": {"kind": "per_stream_mhc", "streams": 4, "projection": SINKHORN, "form": "near_identity"},
    "hc": HC,
    "hc_ln": HC | {"norm": "ln", "tanh": False},
    "hc_static": HC | {"dynamic": False},
    "hc_tokenbender": HC | {"mixed": False},
    "hc_views2": HC | {"views": 2},
    "multi_branch_hc": {"kind": "multi_branch_hc", "streams": 4, "branches": 2, "write_init": "mean"},
    "multi_branch_hc_1": {"kind": "multi_branch_hc", "streams": 4, "branches": 1, "write_init": "mean"},
    "gated": {"kind": "gated", "streams": 4, "rank": 3, "norm_eps": 1e-6, "branch_norm": True},
}
FRAC = {"kind": "frac", "fractions": 4, "dynamic": True, "tanh": True}
COPY = {"kind": "copy", "stream_embed": False, "collapse": "mean", "head_eps": 0.0, "norm_eps": 1e-6}


def random(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def perturbed(module, std=0.3):
    """Every parameter differs from its initial value, so that nothing is the identity."""
    module = module.double()
    with torch.no_grad():
        for seed, p in enumerate(module.parameters()):
            p += std * random(*p.shape, seed=seed)
    return module


def run(module, state, branch=torch.sin):
    u, ctx = module.pre(state, SCOPE)
    return u, module.post(state, branch(u), ctx, SCOPE)


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("name", CONFIGS)
def test_starts_as_a_plain_residual(name, streams):
    config = CONFIGS[name] | {"streams": streams}
    x = random(2, 3, WIDTH)
    ends = build("ends", COPY, streams)
    for site in (0, 5):
        module = build("residual", config, site, 8).double()
        state = module.begin(ends.expand(x))
        u, ctx = module.pre(state, SCOPE)
        views = u if module.views > 1 or module.branches > 1 else u[None]
        if name == "gated":  # half the read, normalised: the branch's norm makes them equal
            expected = 0.5 * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        else:
            expected = x
        torch.testing.assert_close(views, expected.expand_as(views), atol=2e-5, rtol=0)
        y = torch.sin(u if module.branches > 1 or module.views == 1 else u[0])
        after = ends.collapse(module.post(state, y, ctx, SCOPE))
        torch.testing.assert_close(after, x + torch.sin(expected), atol=2e-5, rtol=0)


@pytest.mark.parametrize("dynamic", [True, False])
def test_frac_connections_start_as_a_plain_residual(dynamic):
    x = random(2, 3, WIDTH)
    module = build("residual", FRAC | {"dynamic": dynamic}, 0, 2).double()
    u, after = run(module, x)
    assert torch.equal(u, x)
    assert torch.equal(after, x + x.sin())
    assert len(list(module.parameters())) == (6 if dynamic else 2)


def test_frac_connections_against_the_papers_formula():
    module = perturbed(build("residual", FRAC | {"fractions": 2}, 0, 2))
    x, d = random(2, 3, WIDTH), WIDTH // 2
    u, after = run(module, x)
    p = dict(module.named_parameters())
    for b, t in ((0, 0), (1, 2)):
        H = x[b, t].view(2, d)
        centred = H - H.mean(1, keepdim=True)
        normed = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        YA = p["dynamic_alpha_scale"] * (normed @ p["dynamic_alpha_fn"]).tanh() + p["static_alpha"]
        B = p["dynamic_beta_scale"] * (normed @ p["dynamic_beta_fn"]).tanh() + p["static_beta"]
        torch.testing.assert_close(u[b, t], (YA[:, :2].T @ H).flatten())
        y = u[b, t].sin().view(2, d)
        torch.testing.assert_close(after[b, t], (B[:, None] * y + YA[:, 2:].T @ H).flatten())


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - {"multi_branch_hc"}))
def test_one_result_for_all_streams_equals_one_for_each(name):
    module = perturbed(build("residual", CONFIGS[name], 1, 4))
    state = module.begin(random(2, 3, 4, WIDTH))
    _, ctx = module.pre(state, SCOPE)
    y = random(2, 3, WIDTH, seed=1)
    shared, own = (module.post(state, value, ctx, SCOPE) for value in (y, y[:, :, None].repeat(1, 1, 4, 1)))
    torch.testing.assert_close(own, shared)


@pytest.mark.parametrize("name", [*CONFIGS, "frac"])
def test_tokens_do_not_see_each_other_and_taps_are_what_acts(name):
    config = CONFIGS.get(name, FRAC)
    module = perturbed(build("residual", config, 1, 4))
    h = random(2, 3, WIDTH) if name == "frac" else random(2, 3, 4, WIDTH)
    other = h.clone()
    other[:, -1] += 1
    taps = {}
    u, ctx = module.pre(module.begin(h), Scope(POSITIONS, taps=taps))
    moved, _ = module.pre(module.begin(other), SCOPE)
    assert torch.equal(u[..., :2, :], moved[..., :2, :])
    missing = {"gated": {"h_pre", "h_res"}, "hc_tokenbender": {"h_res"}, "ihc": {"h_res"}}.get(name, set())
    assert list(taps) == [key for key in ("h_pre", "h_post", "h_res") if key not in missing]
    if module.views > 1 or name in ("gated", "frac") or name.startswith("multi_branch"):
        return
    taps.setdefault("h_res", torch.eye(4, dtype=torch.float64))
    after = module.post(module.begin(h), u.sin(), ctx, SCOPE)
    after = after["streams"] if isinstance(after, dict) else after
    pre, post, res = (taps[key].expand(2, 3, *[4] * n) for key, n in (("h_pre", 1), ("h_post", 1), ("h_res", 2)))
    torch.testing.assert_close(u, torch.einsum("btn,btnd->btd", pre, h))
    expected = torch.einsum("btij,btjd->btid", res, h) + torch.einsum("bti,btd->btid", post, u.sin())
    torch.testing.assert_close(after, expected)


def test_single_pass_reads_with_the_weights_of_the_site_before():
    site, plain = (
        perturbed(build("residual", DYNAMIC | {"kind": kind}, 1, 4)) for kind in ("single_pass_mhc", "dynamic_mhc")
    )
    h = random(2, 3, 4, WIDTH)
    u, after = run(site, site.begin(h))
    torch.testing.assert_close(u, h.mean(2))
    _, ctx = plain.pre(h, SCOPE)
    torch.testing.assert_close(after["streams"], plain.post(h, u.sin(), ctx, SCOPE))
    torch.testing.assert_close(after["read"], plain.coefficients(h)[0])
    second, _ = site.pre(after, SCOPE)
    torch.testing.assert_close(second, (after["read"][..., None] * after["streams"]).sum(2))
    torch.testing.assert_close(build("ends", COPY | {"collapse": "carried"}, 4).collapse(after), second)


def test_published_initial_values():
    ihc = build("residual", CONFIGS["ihc"], 0, 2)
    torch.testing.assert_close(ihc.bias, torch.tensor([-math.log(3)] * 4 + [0.0] * 4))
    assert ihc.alpha.shape == (2,)
    deepseek = build("residual", DYNAMIC | {"kind": "dynamic_mhc", "bias": "zeros", "phi_std": 0.02, "alpha": 1}, 0, 2)
    assert not deepseek.bias.any()
    assert deepseek.phi.std().item() == pytest.approx(0.02, rel=0.1)
    assert deepseek.alpha.tolist() == [1, 1, 1]
    lucidrains = build("residual", CONFIGS["per_stream_mhc"] | {"form": "published"}, 6, 8)
    pre, post, res = lucidrains.coefficients(torch.randn(2, 3, 4, WIDTH))
    torch.testing.assert_close(pre[0, 0], torch.tensor([0.5, 0.5, 0.731, 0.5]), atol=1e-3, rtol=0)
    torch.testing.assert_close(post[0, 0], torch.full((4,), 1.462), atol=1e-3, rtol=0)
    torch.testing.assert_close(res[0, 0], 0.175 + 0.3 * torch.eye(4), atol=1e-3, rtol=0)
    static = CONFIGS["static_mhc"] | {"read_bias": 8.0, "diagonal_bias": 8.0, "res_offset": -8.0, "unit_writes": False}
    tokenbender = build("residual", static, 1, 2)
    assert torch.equal(tokenbender.res_logits, 8 * torch.eye(4) - 8)
    assert tokenbender.mix_logit.sigmoid().item() == pytest.approx(0.25)
    torch.testing.assert_close(tokenbender.coefficients(None)[1], torch.full((4,), 0.25))
    noise = build("residual", CONFIGS["static_mhc"] | {"streams": 64, "noise": 0.02, "identity_mix": 0.0}, 0, 2)
    assert (noise.res_logits - 4 * torch.eye(64)).std().item() == pytest.approx(0.02, rel=0.05)
    assert noise.mix_logit is None


def test_fractions_of_hyper_connections_at_initialisation():
    x = random(2, 3, 4, WIDTH)
    module = build("residual", HC | {"fractions": 2}, 5, 8).double()
    u, ctx = module.pre(x, SCOPE)
    assert torch.equal(u, x[:, :, 1])  # every fraction of stream 5 mod 4
    assert torch.equal(module.post(x, torch.zeros_like(u), ctx, SCOPE), x)
    y = random(2, 3, WIDTH, seed=1)
    written = module.post(torch.zeros_like(x), y, ctx, SCOPE)
    torch.testing.assert_close(written, y.unflatten(-1, (2, -1)).sum(2).repeat(1, 1, 2)[:, :, None].expand_as(x))
    published = build("residual", HC | {"streams": 1, "fractions": 4, "fraction_init": "published"}, 0, 8).double()
    u, _ = published.pre(x[:, :, :1], SCOPE)
    assert torch.equal(u, x[:, :, 0, [0, 1, 0, 1, 0, 1, 4, 5]])  # fractions 0, 0, 0, 2
    equal = [build("residual", HC | {"fraction_init": rule, "views": 2}, 3, 8) for rule in ("identity", "published")]
    assert torch.equal(equal[0].static_alpha, equal[1].static_alpha)


def test_unmixed_hyper_connections_never_use_their_mixing_weights():
    module = perturbed(build("residual", CONFIGS["hc_tokenbender"], 1, 4))
    run(module, random(2, 3, 4, WIDTH))[1].square().sum().backward()
    for alpha in (module.static_alpha, module.dynamic_alpha_fn):
        assert alpha.grad[:, 0].any()
        assert not alpha.grad[:, 1:].any()


def test_copying_ends():
    x = random(2, 3, WIDTH)
    for collapse, factor in (("mean", 1), ("sum", 4), ("head", 1), ("pool", 1)):
        ends = build("ends", COPY | {"collapse": collapse}, 4).double()
        assert torch.equal(ends.expand(x), x[:, :, None].expand(2, 3, 4, WIDTH))
        torch.testing.assert_close(ends.collapse(ends.expand(x)), factor * x)
    ends = perturbed(build("ends", COPY | {"stream_embed": True, "collapse": "pool"}, 4))
    h = ends.expand(x)
    torch.testing.assert_close(h[1, 2, 3], x[1, 2] + ends.stream_embed[3])
    logits = torch.stack([h[:, :, s] @ ends.pool.T for s in range(4)], 2)
    torch.testing.assert_close(ends.collapse(h), (logits.softmax(2) * h).sum(2))
    torch.testing.assert_close(ends.collapse({"streams": h}), ends.collapse(h))


def test_gated_residual_without_the_branch_norm_says_so():
    assert not build("residual", CONFIGS["gated"], 0, 2).normalised
    assert build("residual", CONFIGS["gated"] | {"branch_norm": False}, 0, 2).normalised


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("static_mhc", {"streams": 0}, "streams must be at least 1, got 0"),
        ("static_mhc", {"identity_mix": 1.0}, "identity_mix must be in"),
        ("dynamic_mhc", {"bias": "ones"}, "unknown bias 'ones'; known: near_identity, zeros"),
        ("dynamic_mhc", {"post_gain": 1.0}, "dynamic_mhc: post_gain must exceed 1 - post_eps, got 1.0"),
        ("per_stream_mhc", {"projection": {"kind": "identity"}}, "one logit for each pair"),
        ("per_stream_mhc", {"form": "original"}, "unknown form"),
        ("hc", {"fractions": 3}, "a width of 8 does not split into 3 fractions"),
        ("hc", {"views": 0}, "hc: views must be at least 1, got 0"),
        ("hc", {"norm": "l2"}, "unknown hyper-connection norm 'l2'; known: ln, rms"),
        ("hc", {"fraction_init": "zeros"}, "unknown fraction_init"),
        ("multi_branch_hc", {"branches": 0}, "branches must be at least 1"),
        ("multi_branch_hc", {"write_init": "one"}, "unknown write_init"),
        ("gated", {"rank": 0}, "gated: rank must be at least 1, got 0"),
    ],
)
def test_refuses_impossible_settings(name, changes, message):
    with pytest.raises(ValueError, match=message):
        build("residual", CONFIGS[name] | changes, 0, 2)


def test_ends_refuse_impossible_settings():
    with pytest.raises(ValueError, match="no streams to expand to"):
        build("ends", COPY, None)
    with pytest.raises(ValueError, match="unknown collapse 'max'"):
        build("ends", COPY | {"collapse": "max"}, 4)
    with pytest.raises(ValueError, match="needs a residual that carries a read"):
        build("ends", COPY | {"collapse": "carried"}, 4).collapse(torch.zeros(1, 1, 4, WIDTH))
