"""The golden cases of the original mHC-SSM: their configurations, parameter names, fill and inputs."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parents[2] / "parity_tests" / "golden"
SUMMARY = json.loads((FOLDER / "mhc_ssm.json").read_text())

RMS = {"kind": "rms", "eps": 1e-6}
LN = {"kind": "ln", "eps": 1e-5, "bias": True}


def config(variant="mhc", form="original", *, mixer=None, residual=None, projection=None, adapters=None, **changes):
    """A language-model configuration as the JSON dict that the JAX side writes, at the size of the golden cases."""
    original = form == "original"
    mhc = {
        "kind": "static_mhc",
        "streams": 4,
        "projection": {
            "kind": "sinkhorn",
            "iters": 8,
            "temperature": 1.0,
            "order": "rows_then_columns",
            "domain": "exp" if original else "log",
            "gradient": "unrolled",
        }
        | (projection or {}),
        "unit_writes": not original,
        "diagonal_bias": 0.0 if original else 4.0,
        "res_offset": 0.0,
        "read_bias": 0.0 if original else 1.0,
        "noise": 0.02,
        "identity_mix": 0.0,
    }
    mixer_kind = {"kind": "diagonal_ssm", "conv_kernel": 3, "form": "auto", "chunk": 16}
    plain = variant == "baseline"
    return {
        "kind": "lm",
        "vocab_size": 97,
        "max_len": 12,
        "width": 16,
        "layers": 2,
        "dropout": 0.0,
        "norm": RMS,
        "norm_streams": False,
        "embed_std": 1.0 if original else 0.02,
        "residual": {"kind": "plain"} if plain else mhc | (residual or {}),
        "ends": {"kind": "identity"} if plain else {"kind": "dense", "init": "uniform" if original else "repeat"},
        "adapters": {"rank": 8, "dropout": 0.0, "zero_init": not original} | (adapters or {})
        if variant == "adapters"
        else None,
        "mixer": mixer_kind | {"init": "original" if original else "time_scales"} | (mixer or {}),
        "mlp": None,
        "value_residual": None,
        "execution": {"policy": "float32", "layers": "scan", "remat": "none"},
    } | changes


# name: (configuration, T, coefficient of the diversity term, ignored targets of the first sequence)
CASES = {
    "S1_baseline_rms_k3": (config("baseline"), 12, 0.0, 0),
    "S2_baseline_ln_k4": (config("baseline", norm=LN, mixer={"conv_kernel": 4}), 12, 0.0, 0),
    "S3_static_n4": (config(), 12, 0.0, 0),
    "S4_static_n3_it2_temp0.5_ln_k1": (
        config(
            norm=LN,
            mixer={"conv_kernel": 1},
            residual={"streams": 3},
            projection={"iters": 2, "temperature": 0.5},
        ),
        12,
        0.0,
        0,
    ),
    "S5_adapters_r8": (config("adapters"), 12, 0.0, 0),
    "S6_adapters_r8_ln_div0.1": (config("adapters", norm=LN), 12, 0.1, 0),
    "S7_static_n1": (config(residual={"streams": 1}), 12, 0.0, 0),
    "S8_static_T7_of_12_ignore": (config(), 7, 0.0, 3),
    "S9_static_iters0": (config(projection={"iters": 0}), 12, 0.0, 0),
}

_RENAMES = [
    (r"^tok_emb\.emb\.weight$", "embed.tokens"),
    (r"^pos_emb\.pos\.weight$", "embed.positions"),
    (r"^norm_f\.", "final_norm."),
    (r"^expand\.proj\.", "ends.proj."),
    (r"^aggregate\.w_logits$", "ends.collapse_logits"),
    (r"^blocks\.(\d+)\.ssm\.norm\.", r"blocks.\1.mixer.norm."),
    (r"^blocks\.(\d+)\.ssm\.dwconv\.", r"blocks.\1.mixer.branch.conv."),
    (r"^blocks\.(\d+)\.ssm\.(in_proj|out_proj|ssm)\.", r"blocks.\1.mixer.branch.\2."),
    (r"^blocks\.(\d+)\.h(pre|post|res)_logits$", r"blocks.\1.mixer.residual.\2_logits"),
    (r"^blocks\.(\d+)\.ad_(down|up|norm)\.", r"blocks.\1.mixer.residual.\2."),
    (r"^blocks\.(\d+)\.gamma_", r"blocks.\1.mixer.residual.gamma_"),
]


def our_name(original: str, adapters: bool) -> str:
    """The name here of a parameter of the original."""
    for pattern, name in _RENAMES:
        renamed, found = re.subn(pattern, name, original)
        if found:
            break
    else:
        raise KeyError(original)
    return re.sub(r"residual\.(pre|post|res)_", r"residual.inner.\1_", renamed) if adapters else renamed


def golden_arrays(case: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The original's logits, and its gradients under the original's names."""
    with np.load(FOLDER / "mhc_ssm.npz") as arrays:
        prefix = f"{case}/grad/"
        grads = {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}
        return arrays[f"{case}/logits"], grads


def fill(original: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The deterministic value of a parameter of the original, in float32."""
    parent, leaf = original.split(".")[-2:]
    base, scale = 0.0, 0.2
    if parent in ("norm", "norm_f", "ad_norm"):
        base, scale = float(leaf == "weight"), 0.1
    elif leaf.startswith("gamma_"):
        base, scale = 1.0, 0.1
    elif leaf.endswith("_logits") or leaf == "logit_a":
        scale = 1.0
    elif parent in ("emb", "pos") or (parent == "ssm" and leaf in ("b", "c", "d")):
        scale = 0.5
    noise = np.random.RandomState(zlib.crc32(original.encode())).standard_normal(shape)
    return torch.from_numpy((base + scale * noise).astype(np.float32))


def filled(model: torch.nn.Module, names: dict[str, str]) -> torch.nn.Module:
    """``model`` with every parameter filled; ``names`` maps the original's names to ours."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    model.load_state_dict({ours: fill(original, tuple(shapes[ours])) for original, ours in names.items()})
    return model


def batch(T: int, ignored: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets (2, T)."""
    tokens, targets = (torch.from_numpy(np.random.RandomState(seed).randint(0, 97, (2, T))) for seed in (0, 1))
    targets[0, :ignored] = -100
    return tokens, targets
