"""Runs the PyTorch side of a benchmark, ``torch_ref``; see :mod:`train.benchmark.worker`.

Denormals are flushed to zero: some models start with many of them, which slows PyTorch's CPU matrix
products tenfold and would make the comparison one of floating-point modes. Without a GPU, all cores are used.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

import torch_ref
from torch_ref.ops.diag_scan import original_loop
from torch_ref.ops.diag_ssm import diag_ssm, pole
from torch_ref.train import compile_model, make_optimizer, train_step
from train.benchmark.worker import Spec, Step, cores, serve

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronise() -> None:
    """Waits for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def load(spec: Spec) -> torch_ref.LM:
    """The exported model."""
    folder = Path(spec["weights"])
    model = torch_ref.build(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.to(DEVICE)


def autocast(spec: Spec) -> torch.autocast:
    """Mixed precision where the JAX side computes in bfloat16."""
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=spec["policy"].startswith("bfloat16"))


def train(spec: Spec) -> Step:
    """Whole optimizer steps on one fixed random batch, with the fused AdamW."""
    config, model = spec["config"], load(spec)
    optimizer = make_optimizer(model, config["optim"])
    for group in optimizer.param_groups:
        group.update(foreach=False, fused=True)
    shape = (config["data"]["batch_size"], config["data"]["seq_len"] + 1)
    tokens = torch.randint(config["model"]["vocab_size"], shape, device=DEVICE)
    if spec["compile"]:
        compile_model(model)

    def step():
        with autocast(spec):
            train_step(model, optimizer, tokens[:, :-1], tokens[:, 1:], clip=config["optim"]["clip"])
        synchronise()

    return step


def decode(spec: Spec) -> Step:
    """Greedy decoding of ``spec["tokens"]`` new tokens after a prompt, the prompt included."""
    model = load(spec).eval()
    prompt = torch.randint(len(model.embed.tokens), (spec["batch"], spec["prompt"]), device=DEVICE)
    advance = torch.compile(model.extend) if spec["compile"] else model.extend

    @torch.inference_mode()
    def step():
        with autocast(spec):
            logits, cache = model.extend(prompt, model.init_cache(len(prompt), spec["prompt"] + spec["tokens"]))
            token_B1 = logits[:, -1:].argmax(-1)
            for _ in range(spec["tokens"] - 1):
                logits, cache = advance(token_B1, cache)
                token_B1 = logits.argmax(-1)
        synchronise()

    return step


def scan(spec: Spec) -> Step:
    """The diagonal recurrence, value and all gradients for a given cotangent."""
    shape, width = (spec["batch"], spec["time"], spec["width"]), spec["width"]
    u, logit_a, b, c, d = leaves = [torch.randn(s, device=DEVICE, requires_grad=True) for s in (shape, *[(width,)] * 4)]
    cotangent = torch.randn(shape, device=DEVICE)
    forward = _recurrence(spec)

    def step():
        torch.autograd.grad(forward(u, logit_a, b, c, d), leaves, cotangent)
        synchronise()

    return step


def _recurrence(spec: Spec) -> Callable[..., torch.Tensor]:
    if spec["form"] == "original loop":
        return lambda u, logit_a, b, c, d: original_loop(u, pole(logit_a), b, c, d)

    def forward(u, logit_a, b, c, d):
        return diag_ssm(u, logit_a, b, c, d, form=spec["form"], chunk=spec["chunk"])[0]

    return torch.compile(forward) if spec["compile"] else forward


KINDS = {"train": train, "decode": decode, "scan": scan}


def build(spec: Spec) -> Step:
    """The step of ``spec["kind"]``."""
    torch.set_num_threads(cores())
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    return KINDS[spec["kind"]](spec)


def peak() -> int | None:
    """Bytes of device memory at their highest; None on the CPU."""
    return torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else None


if __name__ == "__main__":
    serve(build, peak)
