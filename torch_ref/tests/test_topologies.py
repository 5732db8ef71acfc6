"""Residual topologies and stream ends: the published modules' own numbers, initial values and promised properties."""

import pytest
import torch

from torch_ref.config import as_record, implementation
from torch_ref.tests.hyper_golden import EXPRESSED, digest, fill, our_parameters, to_packed, to_streams

torch.set_num_threads(1)
WIDTH = 8


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
    read, ctx = module.pre(state, tap=lambda name, value: taps.setdefault(name, value))
    y = fill(case["y"], 60)
    out = module.post(state, y.unflatten(0, (module.branches, -1)) if module.branches > 1 else y, ctx)
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
