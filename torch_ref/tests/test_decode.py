"""Decoding: in pieces and at once, rows of unequal length, past the last position, and what no cache holds."""

import pytest
import torch

from torch_ref.ops.loss import cross_entropy
from torch_ref.tests.golden import RMS, config
from torch_ref.tests.test_model import VARIANTS, VOCAB, perturbed, tokens

torch.set_num_threads(1)
ATTENTION = {"kind": "attention", "heads": 4, "bias": True, "init_std": 0.02, "dropout": 0.0, "views": 1}
MLP = {"kind": "gelu_mlp", "hidden": 0, "activation": "erf", "bias": True, "init_std": 0.02}
LENGTHS = (12, 1, 5)
START = torch.tensor([max(LENGTHS) - length for length in LENGTHS])


def attention(variant, **options):
    return config(variant, "default", mlp=MLP) | {"mixer": ATTENTION | options}


MODELS = {
    "ssm": config("baseline", "default", mixer={"form": "chunked", "chunk": 4}),
    "ssm over mhc": config("adapters", "default", mixer={"conv_kernel": 4}, value_residual={"constrained": False}),
    "attention": attention("baseline"),
    "attention over mhc": attention("mhc", kv_heads=2, rotary="half", qk_norm=RMS)
    | {"value_residual": {"constrained": False}},
    "attention over branches": attention("baseline", rotary="interleaved")
    | {
        "residual": {"kind": "multi_branch_hc", "streams": 2, "branches": 2, "write_init": "mean"},
        "ends": {"kind": "copy", "stream_embed": False, "collapse": "sum", "head_eps": 0.0, "norm_eps": 1e-6},
    },
}


def extended(model, batch, cache, sizes):
    """Logits of the batch in pieces of these sizes."""
    logits = []
    for piece in batch.split(sizes, 1):
        piece_logits, cache = model.extend(piece, cache)
        logits.append(piece_logits)
    return torch.cat(logits, 1)


@pytest.mark.parametrize("form", ["default", "original"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding_equals_the_full_forward(variant, form):
    model = perturbed(config(variant, form, mixer={"form": "chunked", "chunk": 4}))
    batch = tokens()
    torch.testing.assert_close(extended(model, batch, model.init_cache(2), [5] + [1] * 7), model(batch))


@pytest.mark.parametrize("sizes", [[12], [3, 1, 6, 1, 1]])
@pytest.mark.parametrize("name", MODELS)
def test_every_row_gives_what_it_gives_alone(name, sizes):
    model, batch = perturbed(MODELS[name]), tokens(batch=3)
    logits = extended(model, batch, model.init_cache(3, start_B=START), sizes)
    assert logits.isfinite().all()
    for row, start in enumerate(START):
        torch.testing.assert_close(logits[row, start:], model(batch[row : row + 1, start:])[0])


@pytest.mark.parametrize("name", MODELS)
def test_nothing_real_sees_padding(name):
    model, batch = perturbed(MODELS[name]), tokens(batch=3)
    padding = torch.arange(12) < START[:, None]
    other = torch.where(padding, (batch + 1) % VOCAB, batch)
    before, after = (model.extend(ids, model.init_cache(3, start_B=START))[0] for ids in (batch, other))
    assert torch.equal(before[~padding], after[~padding])
    total, _ = cross_entropy(before, torch.where(padding, -100, batch))
    total.backward()
    for parameter, p in model.named_parameters():
        assert p.grad is None or p.grad.isfinite().all(), parameter
    alone = perturbed(MODELS[name])
    for row, start in enumerate(START):
        cross_entropy(alone(batch[row : row + 1, start:]), batch[row : row + 1, start:])[0].backward()
    for (parameter, p), q in zip(model.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda text, name=parameter: f"{name}: {text}")


def test_taps_while_decoding_are_those_of_the_whole():
    model, batch = perturbed(MODELS["attention over mhc"]), tokens()
    whole, first, second = {}, {}, {}
    model(batch, taps=whole)
    with torch.inference_mode():
        _, cache = model.extend(batch[:, :7], model.init_cache(2), taps=first)
        model.extend(batch[:, 7:], cache, taps=second)
    assert list(whole) == list(first) == list(second)
    for name, x in whole.items():
        if x.shape[:2] == (2, 12):  # static coefficients have no time
            torch.testing.assert_close(torch.cat([first[name], second[name]], 1), x.detach())


def test_only_the_last_logits_are_computed_if_no_more_are_wanted():
    model, batch = perturbed(MODELS["attention over mhc"]), tokens()
    whole = model(batch)
    torch.testing.assert_close(model(batch, last=3), whole[:, -3:])
    logits, cache = model.extend(batch[:, :7], model.init_cache(2), last=1)
    torch.testing.assert_close(logits, whole[:, 6:7])
    torch.testing.assert_close(model.extend(batch[:, 7:], cache)[0], whole[:, 7:])


def test_extending_leaves_the_cache_as_it_was():
    for settings in (MODELS["ssm"], MODELS["attention"]):
        model, batch = perturbed(settings), tokens()
        _, cache = model.extend(batch[:, :4], model.init_cache(2))
        first, second = (model.extend(batch[:, 4:6], cache)[0] for _ in range(2))
        assert torch.equal(first, second)
        assert cache["column"] == 4


def test_a_state_of_fixed_size_goes_on_at_the_last_position():
    model, long = perturbed(MODELS["ssm"]), tokens(16)
    sizes = [[x.shape for x in layer.values()] for layer in model.init_cache(2)["layers"]]
    logits = extended(model, long, model.init_cache(2), [12, 3, 1])
    with torch.no_grad():
        last = model.embed.positions[-1:]
        model.embed.positions = torch.nn.Parameter(torch.cat([model.embed.positions, last.expand(4, -1)]))
    model.max_len = 16
    torch.testing.assert_close(logits, model(long))
    _, cache = model.extend(long, model.init_cache(2))
    assert sizes == [[x.shape for x in layer.values()] for layer in cache["layers"]]


def test_caches_are_as_long_as_asked():
    model, batch = perturbed(MODELS["attention"]), tokens()
    _, cache = model.extend(batch[:, :5], model.init_cache(2, 6))
    _, cache = model.extend(batch[:, 5:6], cache)
    with pytest.raises(ValueError, match="a cache of max_len 6 has no room for 7 tokens"):
        model.extend(batch[:, 6:7], cache)
    _, cache = model.extend(batch, model.init_cache(2))
    with pytest.raises(ValueError, match="max_len 12 has no room for 13"):
        model.extend(batch[:, :1], cache)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_len": 0}, "max_len of a cache must be at least 1, got 0"),
        ({"start_B": torch.tensor([1])}, "start_B must hold a column, 0 or more, for each of 2 rows"),
        ({"start_B": torch.tensor([0, -1])}, "start_B must hold a column"),
        ({"start_B": torch.zeros(2)}, "start_B must hold a column"),
    ],
)
def test_a_bad_cache_is_one_clear_error(options, message):
    with pytest.raises(ValueError, match=message):
        perturbed(MODELS["ssm"]).init_cache(2, **options)


def test_attention_that_is_not_causal_cannot_decode():
    model, batch = perturbed(attention("baseline", causal=False)), tokens()
    changed = batch.clone()
    changed[:, -1] = (changed[:, -1] + 1) % VOCAB
    assert (model(batch)[:, 0] != model(changed)[:, 0]).any()
    with pytest.raises(ValueError, match="not causal"):
        model.init_cache(2)
