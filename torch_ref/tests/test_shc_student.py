"""The numbers of SHC's student, a selective state-space model, in the mirror and in float64."""

import pytest
import torch
import torch.nn.functional as F

import torch_ref
from torch_ref.nn.scope import Scope
from torch_ref.ops.loss import IGNORE, published_distillation
from torch_ref.tests.test_shc_original import GOLDEN, close, fill, filled

torch.set_num_threads(1)
NAMES = (
    ("embed.tokens", "embed.weight"), ("blocks.", "layers."), ("mixer.norm", "norm"), ("mixer.branch", "ssm"),
    ("a_log", "A_log"), ("conv.", "conv1d."),
)  # fmt: skip
RECORD = {
    "kind": "lm", "vocab_size": 29, "max_len": 16, "width": 16, "layers": 2, "positions": "none", "head": "tied",
    "dropout": 0.0, "embed_std": 0.02, "norm": {"kind": "ln", "eps": 1e-5, "bias": True}, "mlp": None,
    "adapters": None, "value_residual": None, "stream_diversity": 0.0, "before_mixer": None, "before_mlp": None,
    "outputs": None, "norm_streams": False, "residual": {"kind": "plain"}, "ends": {"kind": "identity"},
    "mixer": {
        "kind": "selective_ssm", "state": 4, "expand": 2, "conv_kernel": 4, "dt_rank": None, "bias": False,
        "conv_bias": True, "init": "original", "form": "auto", "chunk": 32,
    },
}  # fmt: skip


def published(name):
    for ours, theirs in NAMES:
        name = name.replace(ours, theirs)
    return name[:-1] + "D" if name.split(".")[-1] == "d" else name


def student(module, prefix=""):
    """Filled, but for the rates of decay, which the original leaves as every layer starts with them."""
    filled(module, prefix=prefix, named=published)
    with torch.no_grad():
        for name, x in module.named_parameters():
            if name.endswith("a_log"):
                x.copy_(torch.arange(1, 5, dtype=torch.float64).log().expand_as(x))
    return module


def test_the_model():
    golden, model = GOLDEN["ssm_lm"], student(torch_ref.build(RECORD))
    ids = torch.tensor([[7, 3, 4, 11, 11, 27], [20, 27, 13, 22, 2, 0]])
    logits = model(ids)
    close(logits[0], golden["logits[0]"])
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-7)
    loss.backward()
    norms = {published(name): x.grad.norm().item() for name, x in model.named_parameters()}
    assert norms == pytest.approx(golden["grad_norms"], rel=1e-6)


@torch.no_grad()
def test_the_unit_at_once_and_token_by_token():
    golden = GOLDEN["ssm_layer"]
    unit = student(torch_ref.build(RECORD | {"width": 8, "layers": 1}).blocks[0].mixer.branch, prefix="ssm.")
    x_BTD = fill((2, 7, 8), 70)
    whole, _ = unit(x_BTD, None, Scope(torch.arange(7)[None]))
    close(whole[0], golden["out[0]"])
    state = unit.init_state(2, 7)
    for t in range(7):
        out, state = unit(x_BTD[:, t : t + 1], state, Scope(torch.tensor([[t]]), column=t))
    close(out[:, 0], golden["last_step_out"])
    close(state["ssm"][0], golden["h[0]"])
    close(state["inputs"][0].T, [taps[1:] for taps in golden["conv_state[0]"]])


def test_the_loss_of_its_distillation():
    golden = GOLDEN["distill_loss"]
    targets = torch.nn.functional.pad(torch.tensor(golden["labels"])[:, 1:], (0, 1), value=IGNORE)
    logits, teacher = fill((2, 4, 11), 80, 2.0), fill((2, 4, 11), 81, 2.0)
    student, goals = (torch.stack([fill((2, 4, 6), j) for j in which]) for which in ((82, 83), (84, 85)))
    found = published_distillation(logits, teacher, student, goals, targets)
    names = ("total_loss", "kl_loss", "mse_loss", "ce_loss")
    assert [x.item() for x in found] == pytest.approx([golden["parts"][name] for name in names], rel=1e-9)
