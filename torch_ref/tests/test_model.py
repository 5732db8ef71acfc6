"""Whole models: initialisation, segments, dropout, dtypes, taps, errors."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

import torch_ref
from torch_ref.tests.golden import config

torch.set_num_threads(1)
VARIANTS = ("baseline", "mhc", "adapters")
VOCAB = 97


def perturbed(settings, std=0.3):
    """A model whose every parameter differs from its initial value, so that nothing is the identity."""
    torch.manual_seed(1)
    model = torch_ref.build(settings).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p += std * torch.randn_like(p)
    return model


def tokens(T=12, batch=2):
    return torch.randint(0, VOCAB, (batch, T), generator=torch.Generator().manual_seed(0))


def as_object(settings):
    return json.loads(json.dumps(settings), object_hook=lambda fields: SimpleNamespace(**fields))


@pytest.mark.parametrize("form", ["default", "original"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_builds_alike_from_a_dict_and_from_an_object(variant, form):
    settings = config(variant, form)
    states = []
    for source in (settings, as_object(settings)):
        torch.manual_seed(0)
        states.append(torch_ref.build(source).state_dict())
    assert all(value.dtype == torch.float32 for value in states[0].values())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_default_form_starts_at_a_uniform_guess(variant):
    torch.manual_seed(0)
    model = torch_ref.build(config(variant, "default"))
    assert model.loss(tokens(batch=8), tokens(batch=8).roll(1, 1)).item() == pytest.approx(math.log(VOCAB), abs=0.1)


def test_original_form_starts_far_from_it():
    torch.manual_seed(0)
    wide = {"width": 256, "max_len": 32}
    batch, targets = tokens(32, 8), tokens(32, 8).roll(5, 1)
    baseline = torch_ref.build(config("baseline", **wide))
    assert (baseline(batch).argmax(-1) == batch).all()  # its own input, through the tied embedding
    assert baseline.loss(batch, targets).item() > 100
    mhc = torch_ref.build(config("mhc", **wide))
    assert mhc(batch).std().item() == pytest.approx(math.sqrt(256), rel=0.2)
    assert 20 < mhc.loss(batch, targets).item() < 100


def test_default_initial_values():
    torch.manual_seed(0)
    model = torch_ref.build(config("adapters", "default", layers=5))
    x = torch.randn(2, 3, 16)
    assert torch.equal(model.ends.expand(x), x[:, :, None].expand(2, 3, 4, 16))
    for layer, block in enumerate(model.blocks):
        residual, ssm = block.mixer.residual, block.mixer.branch.ssm
        pre_N, post_N, res_NN = residual.inner.coefficients(None)
        assert pre_N.argmax() == layer % 4
        torch.testing.assert_close(post_N, torch.ones(4))
        torch.testing.assert_close(res_NN.diagonal(), torch.full((4,), 0.95), atol=0.01, rtol=0)
        assert not residual.up.weight.any()
        assert not residual.up.bias.any()
        memory = 1 / (1 - ssm.logit_a.double().sigmoid())
        torch.testing.assert_close(memory[[0, -1]], torch.tensor([2.0, 1000.0]).double(), rtol=1e-4, atol=0)
        torch.testing.assert_close(memory[1:] / memory[:-1], (memory[1] / memory[0]).expand(15), rtol=1e-3, atol=0)
        torch.testing.assert_close(ssm.b.square() + ssm.logit_a.sigmoid().square(), torch.ones(16))
        assert torch.equal(ssm.c, torch.ones(16))
        assert torch.equal(ssm.d, torch.ones(16))
    gains = torch.cat([block.mixer.residual.gamma_pre.flatten() for block in model.blocks])
    assert gains.mean().item() == pytest.approx(1.0, abs=0.15)
    assert gains.std().item() == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("mixer_form", ["sequential", "associative", "chunked"])
def test_segments_are_kept_apart(mixer_form):
    model = perturbed(config("adapters", "default", mixer={"form": mixer_form, "chunk": 4}))
    batch = tokens()
    segments = torch.tensor([[0] * 5 + [1] * 7]).expand(2, 12)
    packed = model(batch, segment_ids=segments)
    torch.testing.assert_close(packed[:, :5], model(batch[:, :5]))
    alone = model(batch[:, 5:], positions=torch.arange(5, 12).expand(2, 7))
    torch.testing.assert_close(packed[:, 5:], alone)
    assert not torch.allclose(packed, model(batch))


def test_causal():
    model = perturbed(config("adapters", "default", mixer={"form": "sequential"}))
    batch = tokens()
    changed = batch.clone()
    changed[:, 7] = (changed[:, 7] + 1) % VOCAB
    before, after = model(batch), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any(-1).all()


@pytest.mark.parametrize("rates", [{"dropout": 0.5}, {"adapters": {"dropout": 0.5}}])
def test_dropout_acts_in_training_alone(rates):
    model, plain = perturbed(config("adapters", **rates)), perturbed(config("adapters"))
    batch = tokens()
    assert torch.equal(model(batch), plain(batch))
    model.train()
    torch.manual_seed(0)
    first = model(batch)
    assert not torch.equal(first, model(batch))
    torch.manual_seed(0)
    assert torch.equal(first, model(batch))


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_is_a_rounding_of_float64(variant):
    truth = perturbed(config(variant, "default"))
    single = torch_ref.build(config(variant, "default"))
    single.load_state_dict(truth.state_dict())
    taps, exact = {}, {}
    single(tokens(), taps=taps)
    truth(tokens(), taps=exact)
    for name, value in taps.items():
        assert value.dtype == torch.float32, name
        assert exact[name].dtype == torch.float64, name
        torch.testing.assert_close(value.double(), exact[name], rtol=1e-4, atol=1e-4)


def test_taps_name_every_activation_and_keep_cotangents():
    model = perturbed(config("adapters", "default"))
    taps = {}
    logits = model(tokens(), taps=taps)
    torch.testing.assert_close(logits, model(tokens()))
    inside = ["residual.adapted", "residual.h_pre", "residual.h_post", "residual.h_res", "u", "branch.conv"]
    inside += ["branch.ssm", "y", "residual.y_streams", "state"]
    blocks = [f"blocks.{layer}.mixer.{name}" for layer in range(2) for name in inside]
    assert list(taps) == ["embed", "expand", *blocks, "collapse", "hidden", "logits"]
    logits.square().sum().backward()
    assert all(value.grad is not None and value.grad.any() for value in taps.values())
    torch.testing.assert_close(taps["logits"].grad, 2 * logits)


def test_a_tap_sees_its_own_path_alone():
    model = perturbed(config("baseline", "default"))
    taps = {}
    model(tokens(), taps=taps).square().sum().backward()
    # The plain state reaches the next layer directly as well as through the branch that "u" feeds.
    assert torch.equal(taps["blocks.1.mixer.u"], taps["blocks.0.mixer.state"])
    through_state, through_branch = taps["blocks.0.mixer.state"].grad, taps["blocks.1.mixer.u"].grad
    torch.testing.assert_close(through_state, through_branch + taps["blocks.1.mixer.state"].grad)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (config(norm="nosuch"), "unknown norm kind 'nosuch'; known: .*ln"),
        (config(norm={"kind": "rms", "eps": -1.0}), "rms: eps must not be negative"),
        (config() | {"kind": "tree"}, "unknown model kind 'tree'; known: .*lm"),
        (config(residual={"kind": "mesh"}), "unknown residual kind 'mesh'; known: .*plain"),
        (config(mixer={"kind": "rnn"}), "unknown mixer kind 'rnn'; known: .*attention"),
        (config(mixer={"form": "fft"}), "unknown scan form 'fft'"),
        (config(projection={"kind": "softmax"}), "unknown projection kind 'softmax'; known: .*cayley"),
        (config(projection={"temperature": 0.0}), "temperature must be positive"),
        (config("mhc", "default", projection={"iters": 0}), "iters must be at least 1"),
        (config() | {"ends": {"kind": "identity"}}, "needs ends that expand"),
        (config("baseline") | {"ends": {"kind": "dense", "init": "repeat"}}, "no streams to expand to"),
        (config("adapters") | {"residual": {"kind": "plain"}}, "adapters need a residual with streams"),
        (config() | {"residual": {"kind": "static_mhc"}}, "static_mhc: field 'streams' is missing"),
        ({"width": 4}, "unknown model kind None; known: .*lm"),
        (config(layers=0), "layers must be at least 1"),
        (config(vocab_size=None), "vocab_size must be at least 1, got None"),
    ],
)
def test_a_bad_configuration_is_one_clear_error(settings, message):
    with pytest.raises(ValueError, match=message):
        torch_ref.build(settings)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (tokens(13), "13 tokens is longer than max_len 12"),
        (tokens()[0], r"must be a \(batch, time\) tensor"),
        (tokens().float(), "int32 or int64"),
        (tokens()[:, :0], "tokens are empty"),
    ],
)
def test_bad_tokens_are_one_clear_error(bad, message):
    with pytest.raises(ValueError, match=message):
        torch_ref.build(config())(bad)


def test_loss_of_ignored_targets_is_nan_and_diversity_needs_streams():
    model = torch_ref.build(config("baseline"))
    assert model.loss(tokens(), torch.full((2, 12), -100)).isnan()
    with pytest.raises(ValueError, match="stream_diversity needs a residual with streams"):
        torch_ref.build(config("baseline", stream_diversity=0.1))


def test_norms_of_older_configurations_are_read():
    """Their norm was a name, with its fields beside it; that of adapters has a bias in any case."""
    for older, norm in (
        ({"norm": "rms", "norm_bias": True}, {"kind": "rms", "eps": 1e-6}),
        ({"norm": "ln", "norm_bias": False, "norm_eps": 0.5}, {"kind": "ln", "eps": 0.5, "bias": False}),
    ):
        model = perturbed(config("adapters") | older)
        same = torch_ref.build(config("adapters", norm=norm)).double()
        same.load_state_dict(model.state_dict())
        assert torch.equal(same(tokens()), model(tokens()))
        biased = {name for name in model.state_dict() if name.endswith("norm.bias")}
        assert biased == ({f"blocks.{i}.mixer.residual.norm.bias" for i in range(2)} if norm["kind"] == "ln" else set())
