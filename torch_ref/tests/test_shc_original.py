"""The original SHC's own numbers in the mirror, in float64, and where its network breaks."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import torch_ref
from torch_ref.config import as_record
from torch_ref.models.shc_original import FactorizedCode, RankSelector, SequenceMixture
from torch_ref.nn.channel import MoE, SwiGLU
from torch_ref.nn.mixers import Attention
from torch_ref.nn.scope import Scope
from torch_ref.ops import projections
from torch_ref.ops.norm import rms_norm
from torch_ref.ops.streams import mix

torch.set_num_threads(1)
GOLDEN = json.loads((Path(__file__).parents[2] / "parity_tests" / "golden" / "shc.json").read_text())
# Nine digits are printed, and the original rounds its table of rotary positions to float32.
CLOSE = {"atol": 1e-7, "rtol": 1e-7}

# Published names of the mirror's, by parts of them.
NAMES = (
    ("embed.tokens", "token_embed.embedding.weight"), ("head.weight", "lm_head.weight"), ("blocks.", "layers."),
    ("norm_streams", "ln_stream"), ("norm_1", "ln_1"), ("norm_2", "ln_2"), ("attention.out_proj", "attention.o_proj"),
    ("mlp.", "ffn."), ("gate_proj", "w_gate"), ("up_proj", "w_up"), ("down_proj", "w_down"),
    ("selector.in_proj", "rank_selector.rank_proj.0"), ("selector.out_proj", "rank_selector.rank_proj.2"),
    ("expand.", "stream_expander.expand_proj."), ("merge.", "stream_merge."), ("code.", "kv_compressor."),
    ("routing.", "routing.H_"), (".skew", ".cayley.params"), (".proj.", ".mixing_proj."),
)  # fmt: skip
SMALL = {
    "kind": "shc_original", "vocab_size": 29, "max_len": 16, "width": 16, "layers": 2, "heads": 4, "hidden": 24,
    "streams": 4, "components": 2, "rank": 1, "adaptive_rank": False, "rotary": True, "tied": True, "dropout": 0.0,
}  # fmt: skip


def fill(shape, j, scale=1.0):
    def number(i):
        h = (i + 1 + 1000003 * j) % 2**32
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
            h = (h ^ (h >> shift)) * factor % 2**32
        return scale * (2 * h / 2**32 - 1)

    return torch.tensor([number(i) for i in range(math.prod(shape))], dtype=torch.float64).reshape(shape)


def published(name):
    for ours, theirs in NAMES:
        name = name.replace(ours, theirs)
    return name


def filled(module, scale=0.3, prefix="", named=published):
    """The module with the deterministic parameters of the original, in the order of its names."""
    module = module.double().eval()
    found = {named(f"{prefix}{name}").removeprefix(prefix): x for name, x in module.named_parameters()}
    with torch.no_grad():
        for index, name in enumerate(sorted(found), start=1):
            owner = ("", *name.split("."))[-2]
            value = fill(found[name].shape, index, scale)
            gain = name.endswith("weight") and (owner.startswith("ln_") or owner in ("norm", "final_norm"))
            found[name].copy_(1 + value * 0.1 / scale if gain else value)
    return module


def close(ours, theirs):
    torch.testing.assert_close(ours.detach(), torch.tensor(theirs, dtype=torch.float64), **CLOSE)


@pytest.mark.parametrize(
    ("name", "change"), [("lm_n4", {}), ("lm_bypass", {"streams": 1}), ("lm_untied", {"tied": False})]
)
def test_models(name, change):
    golden, model = GOLDEN[name], filled(torch_ref.build(SMALL | change))
    assert sorted(published(n) for n, _ in model.named_parameters()) == golden["sorted_param_names"]
    tokens = torch.tensor(golden["ids"])
    logits = model(tokens)
    close(logits[0], golden["logits[0]"])
    close(logits[1, -1], golden["logits[1,-1]"])
    labels = tokens.clone()
    labels[0, 2] = -100
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-7)
    loss.backward()
    slopes = {published(name): x.grad for name, x in model.named_parameters()}
    assert {name for name, x in slopes.items() if x is None} == {
        n for n, x in golden["grad_norms"].items() if x is None
    }
    norms = {name: x.norm().item() for name, x in slopes.items() if x is not None}
    assert norms == pytest.approx({n: x for n, x in golden["grad_norms"].items() if x is not None}, rel=1e-6)
    prompt = tokens[:, :3]
    assert continued(model, prompt, 8, whole=True) == golden["full_recompute_greedy_8"]
    assert continued(model, prompt, 8, whole=False) == golden["generate_greedy_8"]


@torch.no_grad()
def continued(model, tokens, count, *, whole):
    """Greedy; the published code shows a new token nothing but itself."""
    for step in range(count):
        logits = model(tokens if whole or step == 0 else tokens[:, -1:])[:, -1]
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
    return tokens.tolist()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("block_n4", {}),
        ("block_n2k1r2", {"streams": 2, "components": 1, "rank": 2}),
        ("block_bypass", {"streams": 1}),
        ("block_norope_manual", {"rotary": False}),
    ],
)
def test_blocks(name, change):
    golden, model = GOLDEN[name], torch_ref.build(SMALL | change)
    block, taps = filled(model.blocks[0], prefix="blocks.0."), {}
    close(block(fill((2, 5, 16), 60), scope(taps=taps)), golden["out"])
    if golden["compressed"] is not None:
        close(taps["code"], golden["compressed"])


def scope(**facts):
    return Scope(torch.arange(5).expand(2, 5), **facts)


@pytest.mark.parametrize("size", range(1, 6))
def test_cayley(size):
    entries = fill((size * (size - 1) // 2,), 1, 1.5)
    close(projections.cayley_transform(entries, size=size), GOLDEN[f"cayley_n{size}"]["Q"])


def test_norm():
    close(rms_norm(fill((2, 6), 90), fill((6,), 1, 0.3)), GOLDEN["rms"])


def test_many_cayley():
    close(projections.cayley_transform(fill((3, 6), 2, 1.5), size=4), GOLDEN["batched_cayley"]["Q"])


def test_mixture():
    golden, x = GOLDEN["mixture"], fill((2, 5, 8), 50)
    module = filled(
        SequenceMixture(4, 3, 8), 1.0, named=lambda n: n.replace("proj", "mixing_proj").replace("skew", "c")
    )
    close(module.weights(x.mean(1)), golden["alpha"])
    close(module.weights(x[:, 0], 0.25), golden["alpha_T0.25_x[:,0]"])
    h = module(x.mean(1))
    close(h, golden["H"])
    close(torch.linalg.matrix_norm(h, 2), golden["sigma_max"])
    close(mix(fill((2, 4, 8), 51), h), golden["apply x_bar=fill((2,4,8),51,1)"])


@pytest.mark.parametrize("rank", [1, 2])
def test_code(rank):
    golden, x = GOLDEN[f"fkv_r{rank}"], fill((2, 4, 6), 52)
    module = filled(FactorizedCode(4, 6, rank), 0.5)
    close(module(x), golden["u"])
    again = module.decode(module(x))
    close(again, golden["xhat"])
    assert ((x - again).norm() / x.norm()).item() == pytest.approx(golden["err"], rel=1e-7)


def test_selector():
    golden, x = GOLDEN["rank_selector"], fill((3, 5, 8), 53)
    named = {
        "layer_bias": "a",
        "in_proj.bias": "b",
        "in_proj.weight": "c",
        "out_proj.bias": "d",
        "out_proj.weight": "e",
    }
    module = filled(RankSelector(8, 4), 1.0, named=named.get)
    close(module.logits(x), golden["logits"])
    assert [module(row[None]).item() for row in x] == golden["n_eff_eval"]


def test_attention():
    for name, kv_heads in (("mha", 4), ("gqa", 2)):
        config = {"heads": 4, "kv_heads": kv_heads, "rotary": "half", "bias": False, "views": 1, "init_std": 0.02}
        for causal, key in ((True, "out"), (False, "noncausal")):
            if key in GOLDEN[name]:
                attention = Attention(as_record(config | {"dropout": 0.0, "causal": causal}), 16, 1)
                module = filled(attention, named=lambda n: n.replace("out_proj", "o_proj"))
                close(module(fill((2, 5, 16), 60), None, scope())[0], GOLDEN[name][key])


def test_perceptrons():
    x, ffn = fill((2, 5, 16), 60), {"hidden": 24, "init_std": 0.02, "scale_output": True}
    close(filled(SwiGLU(as_record(ffn), 16, 1))(x, scope())[0, 0], GOLDEN["ffn"]["out0"])
    gate = torch.nn.Sequential(torch.nn.Linear(16, 4), torch.nn.GELU(), torch.nn.Linear(4, 1), torch.nn.Sigmoid())
    parts = filled(torch.nn.ModuleDict({"gate": gate, "ffn": SwiGLU(as_record(ffn), 16, 1)}))
    close((parts["gate"](x) * parts["ffn"](x, scope()))[0, 0], GOLDEN["gated_ffn"]["out0"])
    moe = MoE(as_record(ffn | {"experts": 4, "top_k": 2, "balance": 0.01}), 16, 1).double()
    matrices = (("down_proj", (16, 24)), ("gate_proj", (24, 16)), ("up_proj", (24, 16)))
    with torch.no_grad():
        for expert in range(4):
            for index, (name, shape) in enumerate(matrices, start=1):
                getattr(moe, name)[expert] = fill(shape, 3 * expert + index, 0.3).T
        moe.router.weight.copy_(fill((4, 16), 13, 0.3))
    close(moe(x, scope())[0], GOLDEN["moe"]["out0"])


def test_two_or_three_of_four_streams_are_an_error_as_in_the_original():
    model = torch_ref.build(SMALL | {"adaptive_rank": True}).eval()
    tokens, bias = torch.arange(6)[None], 1e3 * torch.eye(4)
    for rank in range(1, 5):
        for block in model.blocks:
            block.selector.layer_bias.data = bias[rank - 1]
        if rank in (1, 4):
            assert model(tokens).isfinite().all()
        else:
            with pytest.raises(ValueError, match=f"{rank} streams meet mixing matrices of 4"):
                model(tokens)
