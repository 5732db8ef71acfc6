"""Replays the numbers of SHC's student, a selective state-space model, in JAX; works without PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np

import mhc_jax
from mhc_jax import interop
from mhc_jax.functional import bind, param_shapes
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import SelectiveSSMConfig
from mhc_jax.nn.norms import LayerNormConfig
from mhc_jax.nn.scope import Scope
from mhc_jax.nn.stack import layer_of
from mhc_jax.ops.loss import cross_entropy
from parity_tests.compare import Row
from parity_tests.replays import base
from parity_tests.replays.base import row, summary
from parity_tests.replays.shc import fill, filled, ids

SYSTEM, VOCAB = "shc_student", 29
UNIT = "layers.0.ssm."


def student(width: int, layers: int) -> LMConfig:
    """The student with four states a channel."""
    mixer = SelectiveSSMConfig(state=4, init="original")
    sizes = {"vocab_size": VOCAB, "max_len": 2048, "width": width, "layers": layers}
    return LMConfig(**sizes, positions="none", embed_std=0.02, norm=LayerNormConfig(), mixer=mixer, mlp=None)


def published(config: LMConfig) -> dict[str, tuple[int, ...]]:
    """The parameters of the original by name; its head is the token table."""
    hollow = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), param_shapes(config))
    shapes = {name: x.shape for name, x in interop.to_original(SYSTEM, config, hollow).items()}
    return {name: shape for name, shape in shapes.items() if name != "lm_head.weight"}


def weights(config: LMConfig, prefix: str = "") -> dict[str, np.ndarray]:
    """The fill of what begins with ``prefix``, and the rates of decay that every layer starts with."""
    shapes = {name.removeprefix(prefix): x for name, x in published(config).items() if name.startswith(prefix)}
    rates = np.log(np.arange(1, config.mixer.state + 1, dtype=np.float32))
    found = filled(shapes)
    return {prefix + n: np.broadcast_to(rates, x.shape) if n.endswith("A_log") else x for n, x in found.items()}


def replay_layer() -> list[Row]:
    """The unit on a whole sequence, and token by token with its states."""
    told, config = summary("shc")["ssm_layer"], student(8, 1)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in published(config).items()}
    config, params = interop.from_original(SYSTEM, zeros | weights(config, UNIT), dropout=0.0)
    x_BTD = jnp.asarray(fill((2, 7, 8), 70), jnp.float32)

    def run(params):
        unit = layer_of(bind(config, params).blocks, 0).mixer.branch
        whole, _ = unit(x_BTD, None, Scope.over(7))
        state = unit.init_state(2, 7)
        for t in range(7):
            out, state = unit(x_BTD[:, t : t + 1], state, Scope(jnp.full((1, 1), t), column=t))
        return whole, out[:, 0], state

    whole, last, state = base.compiled(run)(params)
    # The original keeps the current input of its filter, too, and a channel's taps side by side.
    return [
        row("ssm_layer", "rank of the time steps", config.mixer.rank(8), told["dt_rank"]),
        row("ssm_layer", "first row", whole[0], told["out[0]"]),
        row("ssm_layer", "last token, stepped", last, told["last_step_out"]),
        row("ssm_layer", "state", state["ssm"][0], told["h[0]"]),
        row("ssm_layer", "inputs of the filter", state["inputs"][0].T, np.asarray(told["conv_state[0]"])[:, 1:]),
        row("ssm_layer", "names", sorted(n.removeprefix(UNIT) for n in weights(config, UNIT)) == told["sorted"], True),
    ]


def replay_model() -> list[Row]:
    """Logits, loss, and the norm of every gradient."""
    told, config = summary("shc")["ssm_lm"], student(16, 2)
    config, params = interop.from_original(SYSTEM, weights(config), dropout=0.0)
    tokens = ids((2, 6), 7, VOCAB)

    def objective(params):
        logits_BTV = mhc_jax.apply(config, params, jnp.asarray(tokens)).logits_BTV
        total, count = cross_entropy(logits_BTV[:, :-1], jnp.asarray(tokens[:, 1:]))
        return total / count, logits_BTV

    (loss, logits), found = base.compiled(jax.value_and_grad(objective, has_aux=True))(params)
    found = interop.to_original(SYSTEM, config, found)
    rows = [
        row("ssm_lm", "logits of the first row", logits[0], told["logits[0]"]),
        row("ssm_lm", "loss", loss, told["loss"]),
    ]
    for tensor, norm in told["grad_norms"].items():
        rows.append(row("ssm_lm", f"gradient {tensor}", np.linalg.norm(found[tensor]), norm, least=0.01))
    return rows


def rows() -> list[Row]:
    """All golden numbers of the student."""
    return replay_layer() + replay_model()
