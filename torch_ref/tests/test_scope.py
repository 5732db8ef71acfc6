"""The scope of a call: names, rows, penalties, and what reaches the parts of a model."""

import pytest
import torch

import torch_ref
from torch_ref.config import register
from torch_ref.nn.channel import ChannelMixer
from torch_ref.nn.scope import Scope
from torch_ref.tests.golden import config
from torch_ref.train import make_optimizer, train_step

torch.set_num_threads(1)


def scope(**facts):
    return Scope(torch.tensor([[0, 1], [4, 5]]), **facts)


def test_taps_stand_under_their_path():
    taps, x = {}, torch.ones(2)
    inner = scope(taps=taps) / "blocks" / "0"
    seen = inner.tap("u", x)
    assert list(taps) == ["blocks.0.u"]
    assert seen is taps["blocks.0.u"]
    (3 * seen).sum().backward()
    torch.testing.assert_close(seen.grad, torch.full((2,), 3.0))
    quiet = scope() / "blocks"
    assert quiet.tap("u", x) is x


def test_repeated_rows_follow_one_another():
    told = scope(segments_BT=torch.tensor([[0, 1], [2, 2]]), start_B=torch.tensor([0, 1]), layer=3).repeated(2)
    assert told.positions_BT.tolist() == [[0, 1], [0, 1], [4, 5], [4, 5]]
    assert told.segments_BT.tolist() == [[0, 1], [0, 1], [2, 2], [2, 2]]
    assert told.start_B.tolist() == [0, 0, 1, 1]
    assert told.layer == 3


def test_padding_is_what_lies_before_the_first_token():
    assert scope().padding_BT() is None
    assert scope(column=3, start_B=torch.tensor([4, 0])).padding_BT().tolist() == [[True, False], [False, False]]


def test_a_penalty_is_a_scalar():
    told = scope(penalties={})
    told.penalise("activity", torch.ones(()))
    with pytest.raises(ValueError, match=r"penalty 'activity' has shape \(2, 3\); it must be a scalar"):
        told.penalise("activity", torch.ones(2, 3))


@register("channel", "penalised")
class Penalised(ChannelMixer):
    """Penalises its gain in proportion to the layer and to what is left of training."""

    def __init__(self, config, width, sites):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, u_BTD, scope):
        left = 1 - (1 if scope.progress is None else scope.progress)
        scope.penalise("gain", (1 + scope.layer) * self.gain.square())
        scope.penalise("rest", left * self.gain)
        return self.gain * u_BTD


def model_and_batch():
    torch.manual_seed(0)
    model = torch_ref.build(config("baseline", layers=3, mlp={"kind": "penalised"})).double()
    return model, torch.randint(0, 97, (4, 9)), torch.randint(0, 97, (4, 9))


def test_the_mean_of_a_penalty_over_its_calls_reaches_the_loss():
    model, tokens, targets = model_and_batch()
    total, count = model.loss_terms(tokens, targets)
    expected = total / count + (1 + 2 + 3) / 3 * 0.25
    torch.testing.assert_close(model.loss(tokens, targets), expected)
    torch.testing.assert_close(model.loss(tokens, targets, progress=0.25), expected + 0.75 * 0.5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_training_step_descends_the_penalty(accumulate):
    settings = {"lr": 0.1, "value_lr": 0, "residual_lr": 0, "beta1": 0.9, "beta2": 0.9, "eps": 1e-8}
    model, tokens, targets = model_and_batch()
    optimizer = make_optimizer(model, settings | {"weight_decay": 0.0, "decay": "all"})
    parameters = list(model.parameters())
    expected = torch.autograd.grad(model.loss(tokens, targets, progress=0.5), parameters)
    loss = train_step(model, optimizer, tokens, targets, accumulate=accumulate, progress=0.5)
    for p, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)
    fresh, *_ = model_and_batch()
    total, count = fresh.loss_terms(tokens, targets)
    torch.testing.assert_close(loss, (total / count).detach())  # the reported loss goes without it
