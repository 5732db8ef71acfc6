"""Projections onto mixing matrices: published numbers, invariants, gradients and limits."""

import pytest
import torch

from torch_ref.config import as_record
from torch_ref.nn.projections import build_projection
from torch_ref.ops import projections as ops
from torch_ref.ops import sinkhorn
from torch_ref.tests.hyper_golden import GOLDEN, fill

torch.set_num_threads(1)
SINKHORN = {
    "kind": "sinkhorn",
    "iters": 20,
    "temperature": 1.0,
    "order": "columns_then_rows",
    "domain": "log",
    "gradient": "recompute",
}
QUINTIC = {
    "kind": "orthostochastic",
    "schedule": "quintic",
    "steps": 5,
    "coefficients": [3.0, -3.2, 1.2],
    "eps": 1e-7,
    "normalise": True,
    "start": "rotation",
}
CONFIGS = {
    "sinkhorn": SINKHORN,
    "sinkhorn_rows_then_columns": SINKHORN | {"order": "rows_then_columns"},
    "sinkhorn_exp": SINKHORN | {"order": "rows_then_columns", "domain": "exp"},
    "sinkhorn_implicit": SINKHORN | {"gradient": "implicit"},
    "clamped_sinkhorn": {"kind": "clamped_sinkhorn", "iters": 20},
    "deepseek_sinkhorn": {"kind": "deepseek_sinkhorn", "iters": 20, "eps": 1e-6},
    "quintic": QUINTIC,
    "eight": QUINTIC | {"schedule": "eight"},
    "cayley": {"kind": "cayley", "alpha": 0.1, "steps": 0},
    "permutations": {"kind": "permutations"},
    "kronecker": {"kind": "kronecker"},
    "spectral_sphere": {"kind": "spectral_sphere"},
    "circulant": {"kind": "circulant", "gamma": 0.5},
    "newton": {"kind": "newton", "iters": 30},
    "identity": {"kind": "identity"},
}
CASES = GOLDEN["projections"]["cases"]
LOGITS = torch.tensor(GOLDEN["projections"]["L"], dtype=torch.float64)
# What the sums of rows and columns are, and up to what.
EXACT, SMALL, LOOSE = 1e-12, 1e-5, 0.1
SUMS = {
    "sinkhorn": (EXACT, LOOSE),
    "sinkhorn_implicit": (EXACT, LOOSE),
    "sinkhorn_rows_then_columns": (LOOSE, EXACT),
    "sinkhorn_exp": (LOOSE, 1e-7),
    "clamped_sinkhorn": (LOOSE, EXACT),
    "deepseek_sinkhorn": (SMALL, LOOSE),
    "eight": (EXACT, LOOSE),
    "permutations": (EXACT, EXACT),
    "kronecker": (EXACT, EXACT),
    "spectral_sphere": (EXACT, EXACT),
    "circulant": (EXACT, EXACT),
    "newton": (EXACT, 1e-9),
    "identity": (0.0, 0.0),
}


def project(name, streams):
    return build_projection(as_record(CONFIGS[name]), streams)


def random_logits(shape, std=1.0, batch=(5,)):
    return std * torch.randn(*batch, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CASES)
def test_op_replays_the_golden_matrix(name):
    case = CASES[name]
    logits = LOGITS if case["logits"] == "L" else fill(**case["logits"])
    logits = logits.mT if case["transposed"] else logits
    op = getattr(ops, case["op"], None) or getattr(sinkhorn, case["op"])
    h = op(*(logits.split(3) if case["op"] == "spectral_sphere" else [logits]), **case["arguments"])
    expected = torch.tensor(case["value"], dtype=torch.float64)
    torch.testing.assert_close(h.mT if case["transposed"] else h, expected, atol=6e-9, rtol=0)


def test_orthostochastic_constants_and_the_exact_polar_factor():
    assert tuple(map(tuple, CASES["ortho_quintic_5"]["arguments"]["coefficients"])) == ops.QUINTIC
    assert tuple(map(tuple, CASES["ortho_schedule_8"]["arguments"]["coefficients"])) == ops.SCHEDULE
    exact = torch.tensor(GOLDEN["projections"]["ortho_exact_polar"], dtype=torch.float64)
    # The schedule amplifies small singular values, then needs steps that converge.
    steps = ops.SCHEDULE + ((1.875, -1.25, 0.375),) * 6
    torch.testing.assert_close(ops.orthostochastic(LOGITS, coefficients=steps), exact, atol=6e-9, rtol=0)
    rows = ops.orthostochastic(LOGITS, coefficients=ops.QUINTIC, normalise=True).sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


@pytest.mark.parametrize("streams", [1, 2, 4])
@pytest.mark.parametrize("name", SUMS)
def test_rows_and_columns_sum_to_one(name, streams):
    rule = project(name, streams)
    h = rule(random_logits(rule.shape))
    assert h.shape == (5, streams, streams)
    rows, columns = SUMS[name]
    assert (h.sum(-1) - 1).abs().max() <= rows
    assert (h.sum(-2) - 1).abs().max() <= columns
    assert name == "spectral_sphere" or (h >= 0).all()
    assert torch.linalg.matrix_norm(h, 2).max() <= 1 + LOOSE


@pytest.mark.parametrize("name", CONFIGS)
def test_near_identity_and_each_matrix_by_itself(name):
    rule = project(name, 4)
    h = rule(rule.near_identity(8.0).double())
    torch.testing.assert_close(h, torch.eye(4).double(), atol=0.01, rtol=0)
    logits = random_logits(rule.shape, batch=(2, 3))
    # 1e-9: Newton steps together until the slowest matrix has converged.
    torch.testing.assert_close(rule(logits)[1, 2], rule(logits[1, 2]), atol=1e-9, rtol=1e-9)


def test_permutations_start_with_the_diagonal_of_sinkhorn():
    diagonal = [project(name, 4) for name in ("permutations", "sinkhorn")]
    mixture, sink = (rule(rule.near_identity(4.0).double())[0, 0].item() for rule in diagonal)
    assert mixture == pytest.approx(sink, abs=0.015)


def test_orthogonal_maps():
    eye = torch.eye(4).double()
    h = ops.cayley(random_logits((4, 4), 3.0), steps=0)
    torch.testing.assert_close(h @ h.mT, eye.expand(5, 4, 4))
    torch.testing.assert_close(ops.cayley(LOGITS, steps=60), ops.cayley(LOGITS, steps=0))
    two_steps = ops.cayley(LOGITS)
    assert (two_steps @ two_steps.mT - eye).abs().max().item() == pytest.approx(0.0016337983254420818)
    u, v, s = fill((9,), 5, 1.5).split(3)
    values = torch.linalg.svdvals(ops.spectral_sphere(u, v, s, streams=4))
    torch.testing.assert_close(values[1:], s.tanh().abs().sort(descending=True).values)


def test_forms_of_sinkhorn_agree_where_they_should():
    logits = random_logits((4, 4))
    columns_first = sinkhorn.log_sinkhorn_columns_then_rows(logits, iters=7)
    torch.testing.assert_close(sinkhorn.sinkhorn_deepseek(logits, iters=7, eps=0.0), columns_first)
    rows_first = sinkhorn.log_sinkhorn(logits, iters=7)
    torch.testing.assert_close(sinkhorn.sinkhorn_clamped(logits, iters=7), rows_first)
    assert not torch.allclose(rows_first, columns_first)
    assert torch.equal(sinkhorn.sinkhorn_clamped(logits, iters=0), logits)


@pytest.mark.parametrize("std", [1.0, 4.0, 10.0, 30.0])
def test_newton_is_exact_and_the_limit_of_sinkhorn(std):
    logits = random_logits((6, 6), std, batch=(20,))
    h = ops.newton_birkhoff(logits)
    assert (h.sum(-2) - 1).abs().max() < 1e-9
    assert (ops.newton_birkhoff(logits.float()).sum(-2) - 1).abs().max() < 1e-5
    if std <= 4:
        torch.testing.assert_close(h, sinkhorn.log_sinkhorn(logits, iters=4000), atol=1e-8, rtol=0)


@pytest.mark.parametrize("std", [1.0, 2.0])
@pytest.mark.parametrize("name", ["implicit", "newton"])
def test_implicit_gradient_is_that_of_many_iterations(name, std):
    logits = random_logits((4, 4), std).requires_grad_()
    weight = random_logits((4, 4), batch=(5,)).flip(0)
    many = sinkhorn.log_sinkhorn_columns_then_rows(logits, iters=2000, temperature=0.5)
    if name == "implicit":
        ours = sinkhorn.implicit_sinkhorn(logits, iters=2000, temperature=0.5)
    else:
        ours = ops.newton_birkhoff(logits / 0.5)
    (expected,) = torch.autograd.grad((weight * many).sum(), logits)
    (gradient,) = torch.autograd.grad((weight * ours).sum(), logits)
    torch.testing.assert_close(gradient, expected, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("gap", [20.0, 200.0])
def test_implicit_gradient_next_to_permutations(gap):
    # Two pairs of streams that mix among themselves and, up to exp(-gap), not with each other; then none that mix.
    pairs = -gap * (1 - torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).double())
    for logits in (pairs + LOGITS, gap * torch.eye(4).double()):
        z = logits.clone().requires_grad_()
        (sinkhorn.implicit_sinkhorn(z, iters=500) * LOGITS).sum().backward()
        exact = logits.clone().requires_grad_()
        (sinkhorn.log_sinkhorn_columns_then_rows(exact, iters=500) * LOGITS).sum().backward()
        torch.testing.assert_close(z.grad, exact.grad, atol=1e-8, rtol=0)  # 500 iterations stop this far from the limit


def test_refuses_what_is_impossible():
    def build(streams=4, **changes):
        return build_projection(as_record(changes), streams)

    with pytest.raises(ValueError, match="7 streams have 5040 permutations"):
        build(7, kind="permutations")
    with pytest.raises(ValueError, match="4 streams have 24 permutations, got 4 logits"):
        ops.permutation_mixture(torch.zeros(4), streams=4)
    with pytest.raises(ValueError, match="power of two, got 3"):
        build(3, kind="kronecker")
    with pytest.raises(ValueError, match="streams must be at least 1, got 0"):
        build(0, **SINKHORN)
    with pytest.raises(ValueError, match="unknown sinkhorn form 'exp columns_then_rows'"):
        build(**SINKHORN | {"domain": "exp"})
    with pytest.raises(ValueError, match="the implicit gradient needs"):
        build(**SINKHORN | {"order": "rows_then_columns", "gradient": "implicit"})
    for name in ("sinkhorn", "deepseek_sinkhorn", "newton"):
        with pytest.raises(ValueError, match="iters must be at least 1, got 0"):
            build(**CONFIGS[name] | {"iters": 0})
    with pytest.raises(ValueError, match="unknown projection kind 'rotation'"):
        build(kind="rotation")


@pytest.mark.parametrize("std", [100.0, 1e3, 1e30])
def test_newton_is_exact_where_the_softmax_is_saturated(std):
    torch.manual_seed(0)
    h = ops.newton_birkhoff(std * torch.randn(50, 4, 4))
    assert (h.sum(-1) - 1).abs().max() < 1e-6
    assert (h.sum(-2) - 1).abs().max() < 2e-6
    hard = torch.tensor([[-100.0, -100, 0], [100, -200, -100], [100, -200, 200]])
    assert (ops.newton_birkhoff(hard).sum(-2) - 1).abs().max() < 1e-6
