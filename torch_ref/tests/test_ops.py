"""Ops: equal forms, and properties that their definitions promise."""

import itertools

import pytest
import torch

from torch_ref.ops.conv import causal_depthwise_conv
from torch_ref.ops.diag_scan import diagonal_scan, original_loop
from torch_ref.ops.loss import cross_entropy
from torch_ref.ops.sinkhorn import log_sinkhorn, sinkhorn_rows_then_columns
from torch_ref.ops.streams import diversity, mix, read, split_streams, write

torch.set_num_threads(1)
FORMS = ("sequential", "associative", "chunked")


def scan_inputs(T, varying):
    torch.manual_seed(T)
    shape = (2, T, 3) if varying else (3,)
    inputs = torch.rand(shape), torch.randn(2, T, 3), torch.randn(2, 3)
    return [x.double().requires_grad_() for x in inputs]


def plain_scan(a, x, s):
    states = []
    for t in range(x.shape[1]):
        s = (a if a.ndim == 1 else a[:, t]) * s + x[:, t]
        states.append(s)
    return torch.stack(states, 1)


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("T", [1, 2, 7, 33])
@pytest.mark.parametrize("form", FORMS)
def test_scan_forms_equal_a_plain_loop_in_value_and_gradient(form, T, varying):
    inputs = scan_inputs(T, varying)
    truth = plain_scan(*inputs)
    ours = diagonal_scan(*inputs, form=form, chunk=4)
    weight = torch.randn_like(truth)
    torch.testing.assert_close(ours, truth)
    expected = torch.autograd.grad((weight * truth).sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad((weight * ours).sum(), inputs), expected)


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_scan_forms_differentiate_twice(form, varying):
    inputs = scan_inputs(5, varying)
    assert torch.autograd.gradgradcheck(lambda *xs: diagonal_scan(*xs, form=form, chunk=2), inputs)


def test_scan_refuses_bad_arguments():
    a, x, _ = scan_inputs(3, False)
    with pytest.raises(ValueError, match="unknown scan form 'fast'; known: associative, chunked, sequential"):
        diagonal_scan(a, x, form="fast")
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        diagonal_scan(a, x, form="chunked", chunk=0)


def test_original_loop_is_the_same_recurrence():
    torch.manual_seed(0)
    u = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    a, b, c, d = (torch.rand(3, dtype=torch.float64) for _ in range(4))
    loop = original_loop(u, a, b, c, d)
    scan = c * diagonal_scan(a, b * u) + d * u
    torch.testing.assert_close(loop, scan)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), u) for y in (loop, scan)))


@pytest.mark.parametrize("taps", [1, 2, 4])
def test_conv_equals_torch_conv1d_and_continues_from_its_history(taps):
    torch.manual_seed(0)
    u, weight, bias = torch.randn(2, 9, 3), torch.randn(3, 1, taps), torch.randn(3)
    padded = torch.nn.functional.conv1d(u.mT, weight, bias, padding=taps - 1, groups=3).mT[:, :9]
    whole = causal_depthwise_conv(u, weight[:, 0].T, bias)
    torch.testing.assert_close(whole, padded)
    history = u[:, 5 - (taps - 1) : 5]
    torch.testing.assert_close(causal_depthwise_conv(u[:, 5:], weight[:, 0].T, bias, history), whole[:, 5:])


def test_log_sinkhorn_is_the_limit_of_the_original_without_its_epsilon():
    torch.manual_seed(0)
    logits = torch.randn(4, 4, dtype=torch.float64)
    original = sinkhorn_rows_then_columns(logits, iters=3, temperature=0.5, eps=0.0)
    torch.testing.assert_close(log_sinkhorn(logits, iters=3, temperature=0.5), original)


def test_log_sinkhorn_survives_extreme_logits():
    logits = torch.tensor([[-1e4, 0.0, 1e4], [3.0, 1e4, -1e4], [0.0, 0.0, 0.0]], requires_grad=True)
    h = log_sinkhorn(logits, iters=8)
    torch.testing.assert_close(h.sum(0), torch.ones(3))
    h.square().sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("project", [log_sinkhorn, sinkhorn_rows_then_columns])
def test_sinkhorn_refuses_bad_arguments(project):
    with pytest.raises(ValueError, match="temperature must be positive"):
        project(torch.zeros(2, 2), iters=2, temperature=0.0)
    with pytest.raises(ValueError, match="iters must be at least"):
        project(torch.zeros(2, 2), iters=-1)


def test_stream_mixes_against_explicit_sums():
    torch.manual_seed(0)
    h, matrix, weight = torch.randn(2, 5, 3, 4), torch.randn(3, 3), torch.randn(3)
    mixed = mix(h, matrix)
    for i in range(3):
        torch.testing.assert_close(mixed[:, :, i], sum(matrix[i, j] * h[:, :, j] for j in range(3)))
    torch.testing.assert_close(read(h, weight), sum(weight[i] * h[:, :, i] for i in range(3)))
    torch.testing.assert_close(write(h, weight, per_stream=True)[:, :, 1], weight[1] * h[:, :, 1])
    torch.testing.assert_close(write(h[:, :, 0], weight, per_stream=False)[:, :, 2], weight[2] * h[:, :, 0])
    per_token = matrix.expand(2, 5, 3, 3)
    torch.testing.assert_close(mix(h, per_token), mixed)
    assert torch.equal(split_streams(h.flatten(2), 3), h)


def test_diversity_at_its_ends():
    equal = torch.randn(2, 5, 1, 8).expand(2, 5, 4, 8)
    assert diversity(equal).item() == pytest.approx(0.75, abs=1e-6)
    assert diversity(torch.eye(4).expand(2, 5, 4, 4)).item() == pytest.approx(0.0, abs=1e-6)


def test_cross_entropy_ignores_and_counts():
    logits = torch.randn(2, 3, 7)
    targets = torch.tensor([[1, -100, 2], [-100, -100, 6]])
    total, count = cross_entropy(logits, targets)
    log_p = logits.log_softmax(-1)
    kept = [(i, t) for i, t in itertools.product(range(2), range(3)) if targets[i, t] >= 0]
    expected = -sum(log_p[i, t, targets[i, t]] for i, t in kept)
    torch.testing.assert_close(total, expected)
    assert count == 3
    total, count = cross_entropy(logits, torch.full((2, 3), -100))
    assert (total / count).isnan()
