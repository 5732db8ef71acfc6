"""Training: what decays, the schedule, accumulation, clipping, and that it learns."""

import math

import pytest
import torch

import torch_ref
from torch_ref.tests.golden import config
from torch_ref.train import compile_model, decayed, learning_rate, make_optimizer, train_step

torch.set_num_threads(1)
OPTIM = {
    "lr": 1e-2,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.1,
    "decay": "matrices",
    "clip": 1.0,
    "schedule": "cosine",
    "warmup_steps": 4,
    "warmup_end": "last",
    "decay_steps": 0,
    "final_lr": 0.1,
    "value_lr": 0.0,
    "residual_lr": 0.0,
}


def model_and_batch(variant="adapters", form="default", **changes):
    torch.manual_seed(0)
    model = torch_ref.build(config(variant, form, **changes)).double()
    batch = torch.randint(0, 97, (4, 13))
    return model, batch[:, :-1], batch[:, 1:].clone()


def test_matrices_are_the_dense_kernels():
    model, *_ = model_and_batch(layers=1)
    site = "blocks.0.mixer"
    dense = {f"{site}.residual.down", f"{site}.residual.up", f"{site}.branch.in_proj", f"{site}.branch.out_proj"}
    assert decayed(model, "matrices") == {f"{name}.weight" for name in dense | {"ends.proj"}}
    assert decayed(model, "all") == set(dict(model.named_parameters()))
    with pytest.raises(ValueError, match="unknown decay 'some'"):
        decayed(model, "some")


@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_weight_decay_acts_where_it_belongs(decay):
    model, *_ = model_and_batch()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, OPTIM | {"decay": decay})
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    chosen = decayed(model, decay)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (1 - 1e-3 if name in chosen else 1))


def test_weights_of_the_value_residual_have_a_rate_of_their_own():
    model, *_ = model_and_batch("baseline", value_residual={"constrained": False})
    optimizer = make_optimizer(model, OPTIM | {"value_lr": 1e-3})
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    found = {name for name, p in model.named_parameters() if scales[id(p)] == pytest.approx(0.1)}
    assert found == {f"blocks.{layer}.values.lambdas" for layer in range(2)}


def test_residual_topologies_have_a_rate_of_their_own():
    model, *_ = model_and_batch("adapters")
    optimizer = make_optimizer(model, OPTIM | {"residual_lr": 1e-3})
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    found = {name for name, p in model.named_parameters() if scales[id(p)] == pytest.approx(0.1)}
    assert "blocks.0.mixer.residual.inner.res_logits" in found
    assert found == {name for name, _ in model.named_parameters() if ".mixer.residual." in name}


def test_schedule():
    rates = [learning_rate(OPTIM, step, 24) for step in range(25)]
    assert rates[:5] == pytest.approx([2.5e-3, 5e-3, 7.5e-3, 1e-2, 1e-2])
    assert rates[14] == pytest.approx(1e-2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2))))
    assert rates[24] == pytest.approx(1e-3)
    assert learning_rate(OPTIM, 100, 24) == pytest.approx(1e-3)
    assert learning_rate(OPTIM | {"decay_steps": 24}, 14, 100) == rates[14]
    constant = OPTIM | {"schedule": "constant", "warmup_steps": 0}
    assert {learning_rate(constant, step, 24) for step in range(25)} == {1e-2}


@pytest.mark.parametrize("diversity", [0.0, 0.1])
def test_accumulation_weights_micro_batches_by_their_targets(diversity):
    gradients, losses = [], []
    for accumulate in (1, 2):
        model, tokens, targets = model_and_batch(form="original", stream_diversity=diversity)
        targets[:2, 1:] = -100
        tokens[2:], targets[2:, 1:] = tokens[:2], targets[:2, :1]  # equal states, so equal diversity terms
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        step = train_step(model, optimizer, tokens, targets, accumulate=accumulate)
        losses.append(step)
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])
    model, tokens, targets = model_and_batch()
    with pytest.raises(ValueError, match="a batch of 4 is not a multiple of accumulate 3"):
        train_step(model, torch.optim.SGD(model.parameters(), lr=0.0), tokens, targets, accumulate=3)


def test_clipping_bounds_the_global_norm():
    model, tokens, targets = model_and_batch(form="original")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def norm(clip):
        train_step(model, optimizer, tokens, targets, clip=clip)
        return math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))

    whole = norm(0.0)
    assert norm(0.5) == pytest.approx(0.5 * whole / (whole + 1e-6), rel=1e-9)
    assert norm(2 * whole) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(
    "variant",
    [pytest.param("baseline", marks=pytest.mark.slow), "mhc", pytest.param("adapters", marks=pytest.mark.slow)],
)
def test_learns_a_batch_by_heart(variant):
    model, tokens, targets = model_and_batch(variant)
    optimizer = make_optimizer(model, OPTIM)
    losses = [
        train_step(model, optimizer, tokens, targets, lr=learning_rate(OPTIM, step, 60), clip=1.0, accumulate=2).item()
        for step in range(60)
    ]
    assert losses[0] == pytest.approx(math.log(97), abs=0.2)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_compiling_changes_neither_values_nor_names():
    model, tokens, targets = model_and_batch("mhc", layers=1, stream_diversity=0.1)
    names, logits, loss = list(model.state_dict()), model(tokens), model.loss(tokens, targets)
    compile_model(model, backend="aot_eager")
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(tokens), logits)
    torch.testing.assert_close(model.loss(tokens, targets), loss)
    optimizer = make_optimizer(model, OPTIM)
    assert [train_step(model, optimizer, tokens, targets).item() for _ in range(3)][-1] < loss.item()
