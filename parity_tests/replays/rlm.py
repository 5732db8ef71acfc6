"""Replays the original RLM-mHC's own numbers in JAX; works without PyTorch.

Parameters come from a deterministic fill of the original's names and enter through ``interop.from_original``.
"""

import dataclasses
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import mhc_jax
from mhc_jax import interop
from mhc_jax.functional import param_info
from mhc_jax.nn.channel import LinearMHCConfig
from mhc_jax.nn.init import Init
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.scope import Scope
from mhc_jax.nn.taps import Taps
from mhc_jax.ops.loss import cross_entropy
from mhc_jax.ops.norm import rms_norm
from mhc_jax.ops.rotary import rotate
from mhc_jax.ops.sinkhorn import sinkhorn_clipped
from mhc_jax.precision import policy
from parity_tests.compare import Row
from parity_tests.replays import base
from parity_tests.replays.base import row, summary
from train.config import OptimConfig
from train.update.optimizer import make_optimizer

SYSTEM, VOCAB, LONGEST = "rlm", 61, 24
# Rate, decay and clipping of the four golden training steps; all matrices decay, the logits of Sinkhorn included.
OPTIM = OptimConfig(lr=1e-3, beta2=0.95, warmup_steps=0, schedule="constant")


@dataclasses.dataclass(frozen=True)
class Golden:
    """One case of the original: the settings that its tensors do not show, and its batch.

    Attributes:
        offset: position of the first token.
        time: tokens given; the original keeps the last 24.
        padded: the last tokens of the second row that the original's mask hides as keys. Here causality hides them
            from all others, so that only their own outputs differ.
        ignored: which labels do not count.
    """

    name: str
    hints: dict[str, Any] = dataclasses.field(default_factory=dict)
    offset: int = 0
    time: int = 12
    padded: int = 0
    ignored: tuple[tuple[int, slice], ...] = ()


CASES = {
    case.name: case
    for case in (
        Golden("R1_mhc"),
        Golden("R2_nomhc"),
        Golden("R3_flows3_it3_heads2", {"num_heads": 2, "mhc_sinkhorn_iters": 3}),
        Golden("R4_offset5", offset=5),
        Golden("R5_rightpad", padded=4),
        Golden("R6_trunc30", time=30),
        Golden("R7_ignore", ignored=((0, slice(3)), (1, slice(-2, None)))),
        Golden("R8_theta100", {"rope_theta": 100.0}),
        Golden("R9_flows1"),
    )
}


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The deterministic float32 value of a parameter of the original."""
    parent, leaf = ("", *name.split("."))[-2:]
    mean, scale = 0.0, 0.1
    if "norm" in parent:
        mean = 1.0
    elif leaf == "connection_weights":
        scale = 1.0
    elif parent == "embedding":
        scale = 0.3
    noise = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF).standard_normal(int(np.prod(shape)))
    return (mean + scale * noise.reshape(shape)).astype(np.float32)


def replay(case: Golden) -> list[Row]:
    """Logits, loss, every gradient, statistics of activations, and four training steps of one case, in float32."""
    told, arrays = summary(SYSTEM)[case.name], base.arrays(SYSTEM, case.name)
    gradients = base.gradients(arrays)
    config, params = model({name: x.shape for name, x in gradients.items()}, case.hints)
    tokens = np.random.RandomState(0).randint(0, VOCAB, (2, case.time))[:, -LONGEST:]
    labels = tokens.copy()
    for index, which in case.ignored:
        labels[index, which] = -100

    def objective(params):
        positions = jnp.broadcast_to(case.offset + jnp.arange(tokens.shape[1]), tokens.shape)
        output = mhc_jax.apply(config, params, jnp.asarray(tokens), positions=positions, taps=True)
        total, count = cross_entropy(output.logits_BTV[:, :-1], jnp.asarray(labels[:, 1:]))
        return total / count, output

    run = base.compiled(jax.value_and_grad(objective, has_aux=True))
    (loss, output), found = run(params)
    rows = [row(case.name, "parameters", sum(x.size for x in gradients.values()), told["params"])]
    if case.padded:
        seen = np.ones(tokens.shape, bool)
        seen[1, -case.padded :] = False
        return [*rows, row(case.name, "logits", output.logits_BTV[seen], arrays["logits"][seen])]
    rows += [row(case.name, "logits", output.logits_BTV, arrays["logits"]), row(case.name, "loss", loss, told["loss"])]
    found = interop.to_original(SYSTEM, config, found)
    rows += [row(case.name, f"gradient {name}", found[name], gradients[name]) for name in gradients]
    rows += _statistics(case.name, output.taps, told)
    losses = _train(config, params, run, told["train_losses"])
    return [*rows, row(case.name, "losses of training steps", losses, told["train_losses"])]


def model(shapes: dict[str, tuple[int, ...]], hints: dict[str, Any]) -> tuple[LMConfig, dict[str, Any]]:
    """The tiny model of the original in its deterministic fill."""
    weights = {name: fill(name, shape) for name, shape in shapes.items()}
    return interop.from_original(SYSTEM, weights, **{"num_heads": 4, "max_seq_len": LONGEST, **hints})


def _statistics(name: str, taps: dict[str, jax.Array], told: dict[str, Any]) -> Iterator[Row]:
    """Root mean squares of what enters and leaves the layers, and the largest entries of the mixing matrices."""
    if "hidden_rms" in told:
        states = [taps["embed"][None], taps["blocks.mlp.state"]]
        rms = [float(jnp.sqrt(jnp.mean(jnp.square(x)))) for state in states for x in state]
        yield row(name, "root mean squares", rms, told["hidden_rms"])
    if told["mhc_metrics"]:
        sites = [taps[f"blocks.{site}.branch.mixing"] for site in ("before_mixer", "before_mlp")]
        largest = np.stack([np.max(np.abs(x), axis=(-2, -1)) for x in sites], axis=1)
        yield row(name, "largest mixing weights", largest, told["mhc_metrics"])


def _train(config: LMConfig, params: Any, run: Any, told: list[float]) -> list[float]:
    """The loss before each training step."""
    optimizer = make_optimizer(OPTIM, len(told), param_info(config))

    @base.compiled
    def update(gradient, state, params):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    losses, state = [], optimizer.init(params)
    for _ in told:
        (loss, _), gradient = run(params)
        losses.append(float(loss))
        params, state = update(gradient, state, params)
    return losses


def replay_units() -> Iterator[Row]:
    """Rotary positions, attention, one mHC layer, Sinkhorn's iterations and RMSNorm on their own."""
    told = summary(SYSTEM)
    x_BTHK = np.asarray(told["rope_in"], np.float32)[None, :, None]
    y_BTHK = rotate(jnp.asarray(x_BTHK), 2 + jnp.arange(3)[None], layout="interleaved")
    yield row("units", "rotary positions", y_BTHK[0, :, 0], told["rope_out_offset2"])
    u_BTD = np.random.RandomState(5).standard_normal((2, 7, 32)).astype(np.float32)
    for causal in (True, False):
        y_BTD, _ = _branch(
            AttentionConfig(heads=4, rotary="interleaved", bias=False, causal=causal),
            _split(fill("qkv_proj.weight", (96, 32)), "q_proj", "k_proj", "v_proj")
            | {"out_proj": {"kernel": fill("out_proj.weight", (32, 32)).T}},
            u_BTD,
        )
        yield row("units", f"attention, causal {causal}", y_BTD[0, 0, :4], told[f"mha_causal{causal}"])
    params = {
        "logits": fill("connection_weights", (4, 4)),
        "expand": {"kernel": fill("expand_proj.weight", (128, 32)).T},
        "contract": {"kernel": fill("contract_proj.weight", (32, 128)).T},
    }
    for form in ("flows", "folded"):
        y_BTD, taps = _branch(LinearMHCConfig(form=form), params, u_BTD)
        yield row("units", f"mHC layer, {form}", y_BTD[0, 0, :4], told["mhc_layer"]["y[0,0,:4]"])
        yield row("units", f"its mixing matrix, {form}", taps["mixing"], told["mhc_layer"]["P"])
    logits_NN = jnp.asarray(np.random.RandomState(7).standard_normal((3, 3)), jnp.float32)
    for iters in (1, 5, 20):
        yield row("units", f"Sinkhorn, {iters}", sinkhorn_clipped(logits_NN, iters=iters), told[f"sk{iters}"])
    normalised = rms_norm(jnp.arange(8.0), jnp.ones(8), eps=1e-6)
    yield row("units", "RMSNorm", normalised[-1], 1.673320, least=1.0)


def _split(fused_MD: np.ndarray, *names: str) -> dict[str, Any]:
    return {name: {"kernel": part.T} for name, part in zip(names, np.split(fused_MD, len(names)), strict=True)}


def _branch(config: Any, params: dict[str, Any], u_BTD: np.ndarray) -> tuple[Any, dict[str, Any]]:
    """What a mixer or channel mixer of width 32 gives for these parameters, and its taps."""
    module = config.build(32, policy("float32"), Init(jax.random.key(0)))
    nnx.update(module, jax.tree.map(jnp.asarray, params))
    scope = Scope.over(u_BTD.shape[1], taps=(taps := Taps()))
    arguments = (None,) if isinstance(config, AttentionConfig) else ()
    y = module(jnp.asarray(u_BTD), *arguments, scope)
    return y[0] if arguments else y, taps.values


def replay_generation() -> Iterator[Row]:
    """Greedy continuations: of a short prompt with a cache, and past the longest sequence, where tokens fall out."""
    told = summary(SYSTEM)
    shapes = {name: x.shape for name, x in base.gradients(base.arrays(SYSTEM, "R1_mhc")).items()}
    config, params = model(shapes, {})
    for name, length, kept in (("gen_greedy", 5, 15), ("gen_greedy_long", 20, LONGEST + 1)):
        prompt_BT = np.random.RandomState(4).randint(0, VOCAB, (2, length))
        tokens_BT = mhc_jax.generate(config, params, prompt_BT, max_new_tokens=10, temperature=0.0)
        yield row("generation", name, tokens_BT[:, -kept:], told[name])


def rows() -> list[Row]:
    """All golden cases."""
    found = [row for case in CASES.values() for row in replay(case)]
    return found + list(replay_units()) + list(replay_generation())
