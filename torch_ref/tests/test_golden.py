"""The original mHC-SSM's own numbers: its losses, logits, gradients, training steps and unit values."""

import numpy as np
import pytest
import torch

import torch_ref
from torch_ref.ops import streams
from torch_ref.ops.diag_ssm import diag_ssm, pole
from torch_ref.ops.sinkhorn import sinkhorn_rows_then_columns
from torch_ref.tests import golden
from torch_ref.train import make_optimizer, train_step

torch.set_num_threads(1)
ORIGINAL_OPTIMIZER = {
    "lr": 3e-4,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.1,
    "decay": "all",
    "value_lr": 0.0,
    "residual_lr": 0.0,
}
# Rounding of the original's float32 numbers, relative to the largest entry. Float64 differs from them as much as
# float32 does, and most (9.5e-6) where the gradient of a softmax cancels.
ROUNDING = 2e-5


def close(ours: torch.Tensor, theirs: np.ndarray) -> bool:
    difference = np.abs(ours.detach().double().numpy() - theirs).max()
    return difference <= ROUNDING * max(np.abs(theirs).max(), 1e-3)


def prepared(case, dtype):
    config, T, coefficient, ignored = golden.CASES[case]
    logits, grads = golden.golden_arrays(case)
    names = {name: golden.our_name(name, config["adapters"] is not None) for name in grads}
    model = golden.filled(torch_ref.build(config | {"stream_diversity": coefficient}), names).to(dtype)
    tokens, targets = golden.batch(T, ignored)
    return model, tokens, targets, logits, grads, names


def stream_diversity(model, tokens):
    """Of the streams that the collapse reads."""
    taps: dict[str, torch.Tensor] = {}
    model(tokens, taps=taps)
    return streams.diversity(taps[f"blocks.{len(model.blocks) - 1}.mixer.state"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", golden.CASES)
def test_logits_loss_and_all_gradients(case, dtype):
    model, tokens, targets, logits, grads, names = prepared(case, dtype)
    summary = golden.SUMMARY[case]
    assert sum(p.numel() for p in model.parameters()) == summary["params"]
    ours = model(tokens)
    assert ours.dtype == dtype
    assert close(ours, logits)
    assert ours.mean().item() == pytest.approx(summary["logits_mean"], abs=1e-6)
    assert ours.std(correction=0).item() == pytest.approx(summary["logits_std"], rel=1e-6)
    total, count = model.loss_terms(tokens, targets)
    assert (total / count).item() == pytest.approx(summary["loss"], rel=1e-6)
    if model.stream_count is not None:
        assert stream_diversity(model, tokens).item() == pytest.approx(summary["div"], abs=1e-6)
    model.loss(tokens, targets).backward()
    parameters = dict(model.named_parameters())
    assert {names[name] for name in grads} == set(parameters)
    wrong = [name for name, grad in grads.items() if not close(parameters[names[name]].grad, grad)]
    assert not wrong
    squares = sum(float(p.grad.square().sum()) for p in parameters.values())
    assert squares**0.5 == pytest.approx(summary["grad_global"], rel=1e-5)


@pytest.mark.parametrize("case", golden.CASES)
def test_four_training_steps(case):
    model, tokens, targets, *_ = prepared(case, torch.float32)
    optimizer = make_optimizer(model, ORIGINAL_OPTIMIZER)
    losses = [float(train_step(model, optimizer, tokens, targets, clip=1.0)) for _ in range(4)]
    assert losses == pytest.approx(golden.SUMMARY[case]["train_losses"], rel=2e-6)


@pytest.mark.parametrize(
    ("name", "iters", "temperature"),
    [("sk_it0_t1.0", 0, 1.0), ("sk_it1_t1.0", 1, 1.0), ("sk_it8_t1.0", 8, 1.0), ("sk_it8_t0.1", 8, 0.1)],
)
def test_sinkhorn(name, iters, temperature):
    logits = torch.tensor(golden.SUMMARY["sk_in"])
    ours = sinkhorn_rows_then_columns(logits, iters=iters, temperature=temperature)
    np.testing.assert_allclose(ours, golden.SUMMARY[name], rtol=2e-6)


def test_sinkhorn_rescues_a_constant_row():
    ours = sinkhorn_rows_then_columns(torch.tensor(golden.SUMMARY["sk_extreme_in"]), iters=8)
    np.testing.assert_allclose(ours, golden.SUMMARY["sk_extreme"], rtol=2e-5)


@pytest.mark.parametrize("form", ["sequential", "associative", "chunked"])
def test_diagonal_ssm(form):
    logit_a = torch.tensor([-20.0, -2, 0, 2, 8, 20], requires_grad=True)
    b, c, d = (torch.full((6,), value) for value in (0.5, -0.7, 0.25))
    u = torch.from_numpy(np.random.RandomState(3).standard_normal((2, 300, 6)).astype(np.float32))
    y, _ = diag_ssm(u, logit_a, b, c, d, form=form)
    unit = golden.SUMMARY["ssm_unit"]
    np.testing.assert_allclose(pole(logit_a).detach(), unit["a"], rtol=1e-6)
    np.testing.assert_allclose(y[0, 0].detach(), unit["y[0,0]"], rtol=1e-5)
    np.testing.assert_allclose(y[1, -1].detach(), unit["y[1,-1]"], rtol=2e-5)
    assert y.abs().mean().item() == pytest.approx(unit["absmean"], rel=1e-5)
    y.sum().backward()
    assert logit_a.grad[0] == 0
    assert logit_a.grad[5] == 0
    assert (logit_a.grad[1:5] != 0).all()
