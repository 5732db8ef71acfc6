"""Gated linear attention and the gated delta rule: chunks beside the recurrence, extreme gates, precision, refusals."""

import math

import pytest
import torch

from torch_ref.config import as_record, implementation
from torch_ref.nn.scope import Scope
from torch_ref.ops import delta_rule, gla
from torch_ref.ops.chunks import sums_after, sums_between
from torch_ref.ops.delta_rule import gated_delta_rule
from torch_ref.ops.gla import gated_linear_attention

torch.set_num_threads(1)
OPS = {"gla": gated_linear_attention, "delta": gated_delta_rule}


def inputs(op, T, gates=None, B=2, H=2, K=3, V=4):
    """Float64 by name; keys of length 1 and strengths from 0 to 2 for the delta rule."""
    draw = torch.Generator().manual_seed(T)
    q, k, log_decay = (torch.randn(B, T, H, K, generator=draw) for _ in range(3))
    v, s0 = torch.randn(B, T, H, V, generator=draw), torch.randn(B, H, K, V, generator=draw)
    log_decay = -log_decay.abs()
    if gates is not None:  # but for every seventh token, whose gate stays moderate
        log_decay[:, torch.arange(T) % 7 != 3] = gates
    found = {"q_BTHK": q, "k_BTHK": k, "v_BTHV": v, "s0_BHKV": s0}
    if op == "gla":
        found["log_decay_BTHK"] = log_decay
    else:
        found["k_BTHK"] = k / k.norm(dim=-1, keepdim=True)
        found["log_decay_BTH"] = log_decay[..., 0]
        found["beta_BTH"] = 2 * torch.rand(B, T, H, generator=draw)
    return {name: x.double().requires_grad_() for name, x in found.items()}


def derived(op, arguments, **options):
    """Outputs, states, and gradients of a function of both."""
    y, s = OPS[op](**arguments, **options)
    loss = y.sin().sum() + s.square().sum()
    return [y, s, *torch.autograd.grad(loss, list(arguments.values()))]


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize(("T", "chunk"), [(1, 4), (5, 4), (7, 3), (16, 8), (70, 64), (9, 1)])
@pytest.mark.parametrize("op", OPS)
def test_chunks_give_the_recurrence_and_its_gradients(op, T, chunk, resets):
    arguments = inputs(op, T)
    options = {"reset_BT": torch.arange(T) % 5 == torch.tensor([[2], [4]])} if resets else {}
    ours = derived(op, arguments, form="chunked", chunk=chunk, **options)
    torch.testing.assert_close(ours, derived(op, arguments, form="recurrent", **options))


@pytest.mark.parametrize("gate", [0.0, -5.0, -1000.0, -math.inf])
@pytest.mark.parametrize("op", OPS)
def test_extreme_gates_neither_overflow_nor_lose_digits(op, gate):
    arguments = inputs(op, 256, gate)
    truth = derived(op, arguments, form="recurrent")
    torch.testing.assert_close(derived(op, arguments), truth)
    low = {name: x.detach().float().requires_grad_() for name, x in arguments.items()}
    for ours, exact in zip(derived(op, low), truth, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-5 * exact.abs().max().item())


@pytest.mark.parametrize("op", OPS)
def test_halves_continue_from_the_state(op):
    arguments = inputs(op, 11)
    whole, last = OPS[op](**arguments, chunk=4)
    state, parts = arguments.pop("s0_BHKV"), []
    for piece in (slice(0, 6), slice(6, 7), slice(7, 11)):
        y, state = OPS[op](**{name: x[:, piece] for name, x in arguments.items()}, s0_BHKV=state, chunk=4)
        parts.append(y)
    torch.testing.assert_close((torch.cat(parts, 1), state), (whole, last))


@pytest.mark.parametrize("form", ["chunked", "recurrent"])
@pytest.mark.parametrize("op", OPS)
def test_sums_are_in_float32_under_autocast(op, form):
    arguments = {name: x.detach().bfloat16() for name, x in inputs(op, 21).items()}
    with torch.autocast("cpu", torch.bfloat16):
        y, s = OPS[op](**arguments, form=form, chunk=8)
    assert (y.dtype, s.dtype) == (torch.bfloat16, torch.float32)
    exact, state = OPS[op](**{name: x.float() for name, x in arguments.items()}, form="recurrent")
    torch.testing.assert_close(s, state)
    torch.testing.assert_close(y, exact.bfloat16())


def test_sums_of_rows():
    x = torch.tensor([-1e3, -1e-3, -math.inf, -2e-3, -3e-3])[:, None]
    assert sums_after(x).squeeze().tolist()[2:] == pytest.approx([-5e-3, -3e-3, 0])
    between = sums_between(x)[..., 0]
    assert between[4, 2] == x[3] + x[4]
    assert between[1, 0] == x[1]
    assert (between[2:, :2] == -math.inf).all()
    assert (between.triu() == 0).all()


def test_unknown_forms_and_sizes_are_refused():
    for op, rule in OPS.items():
        with pytest.raises(ValueError, match="unknown form 'chunkd'; known: chunked, recurrent"):
            rule(**inputs(op, 3), form="chunkd")
        with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
            rule(**inputs(op, 3), chunk=0)


SHARED = {"heads": 2, "conv_kernel": 3, "output_gate": "silu", "norm_eps": 1e-6, "dropout": 0.0, "init_std": 0.5}
SHARED |= {"scale_output": True, "chunk": 4}
MIXERS = {
    gla: {"kind": "gla", "kv_heads": None, "expand_k": 0.5, "expand_v": 1.0, "gate_rank": 3, "gate_normalizer": 16.0}
    | {"gate_floor": None, "feature_map": "none"},
    delta_rule: {"kind": "gated_delta", "value_heads": 4, "head_width": 3, "expand_v": 2.0, "allow_neg_eigval": True},
}


@pytest.mark.parametrize("module", MIXERS)
def test_mixers_run_the_form_of_their_configuration(module, monkeypatch):
    ran = []
    for form, rule in dict(module._FORMS).items():
        monkeypatch.setitem(module._FORMS, form, lambda *x, form=form, rule=rule: ran.append((form, x[2])) or rule(*x))
    outputs = []
    for form in ("recurrent", "chunked"):
        config = as_record(SHARED | MIXERS[module] | {"form": form})
        torch.manual_seed(0)
        mixer = implementation("mixer", config)(config, 8, 2)
        outputs.append(mixer(torch.randn(2, 6, 8), None, Scope(torch.arange(6).expand(2, 6)))[0])
    assert ran == [("recurrent", 4), ("chunked", 4)]
    torch.testing.assert_close(*outputs)
