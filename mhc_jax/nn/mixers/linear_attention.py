"""What mixers share whose heads carry a matrix from token to token: projections, short convolution, gated output."""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from mhc_jax.backend import stated_backend, target_backend
from mhc_jax.config import ConfigError
from mhc_jax.nn.init import Init, normal
from mhc_jax.nn.layers import Dense, DepthwiseFilter, dropout
from mhc_jax.nn.mixers.base import Mixer, MixerConfig
from mhc_jax.nn.norms import RMSNormConfig
from mhc_jax.nn.scope import Scope
from mhc_jax.ops.chunks import Form, Implementation
from mhc_jax.ops.conv import causal_depthwise_conv
from mhc_jax.precision import Policy
from mhc_jax.registry import required


class Heads(NamedTuple):
    """Numbers of heads of queries, keys and values, and the widths of a head of keys and of values."""

    queries: int
    keys: int
    values: int
    K: int
    V: int

    @property
    def out(self) -> int:
        """Heads of the output: each of the fewer serves several of the more, in succession."""
        return max(self.queries, self.values)


@dataclasses.dataclass(frozen=True)
class LinearAttentionConfig(MixerConfig):
    """Base of these mixers' configurations.

    Attributes:
        conv_kernel: taps of a causal depth-wise convolution of queries, keys and values, with a SiLU after it; None for
            no convolution.
        output_gate: activation of the gate of the output; None for no gate.
        norm_eps: epsilon of the RMSNorm of every head's output, before the gate.
        dropout: dropout rate of queries, keys and values, before the convolution.
        init_std: standard deviation of the projections and the convolutions.
        scale_output: divide that of the output by the square root of the number of sites, as in GPT-2.
        form: algorithm of the recurrence, see :mod:`mhc_jax.ops.chunks`.
        chunk: tokens of a chunk; by the kernel of GPUs always 64.
        implementation: of the chunked form: ``"xla"``, or ``"pallas"`` for a kernel of TPUs or GPUs, see
            :mod:`mhc_jax.kernels.chunks`; single tokens are always one step of the recurrence.
    """

    # Whether every channel of a key has a decay of its own.
    decays_by_key: ClassVar[bool] = False

    conv_kernel: int | None = None
    output_gate: Literal["silu", "sigmoid"] | None = "silu"
    norm_eps: float = 1e-6
    dropout: float = 0.0
    init_std: float = 0.02
    scale_output: bool = True
    form: Form = "chunked"
    chunk: int = 64
    implementation: Implementation = "xla"

    def validate(self):
        super().validate()
        self.require_counts(1, "chunk")
        if self.conv_kernel is not None:
            self.require_counts(1, "conv_kernel")
        self.require_not_negative("norm_eps")
        self.require(0 <= self.dropout < 1, f"dropout must lie in [0, 1), got {self.dropout}")
        self.require(self.init_std > 0, f"init_std must be positive, got {self.init_std}")
        matches = self.implementation == "xla" or self.form == "chunked"
        self.require(matches, f"implementation 'pallas' has no form {self.form!r}; use form 'chunked', or 'xla'")

    def check_kernels(self, width, policy):
        if self.implementation == "pallas":
            from mhc_jax.kernels import chunks  # Pallas takes long to import

            heads, target, wide = self.shape(width), stated_backend(), 4 if self.decays_by_key else 3
            found = chunks.fault(heads.out, heads.K, heads.V, self.chunk, policy.accumulate, wide, target)
            self.require(not found, f"implementation 'pallas': {found}")
            self.check_rounding(policy, target)

    def check_rounding(self, policy: Policy, target: str | None) -> None:
        """Raises ConfigError if the kernel of that platform would round more than the policy does."""
        if target == "gpu" and policy.compute != jnp.bfloat16:
            from mhc_jax.kernels.chunks_gpu import ROUNDS

            raise ConfigError(f"implementation 'pallas': {ROUNDS}")

    @required
    def shape(self, width: int) -> Heads:
        """The heads in a model of that width."""

    @property
    def activates(self) -> bool:
        """Whether queries, keys and values pass through a SiLU."""
        return self.conv_kernel is not None

    def value_width(self, width):
        heads = self.shape(width)
        return heads.values * heads.V


class LinearAttention(Mixer):
    """``out(gate(g) * norm(recurrence(q, k, v)))``, with a norm over every head.

    The state is ``{"matrix": (B, H, K, V)}``, and with a convolution ``"inputs"`` (B, taps - 1, E), what it has to
    remember of all queries, keys and values: memory and time per token do not depend on the length.

    Attributes:
        heads: see :class:`Heads`.
    """

    def __init__(self, config: Any, width: int, policy: Policy, init: Init):
        self.config, self.policy = config, policy
        self.heads = heads = config.shape(width)
        self.widths = (heads.queries * heads.K, heads.keys * heads.K, heads.values * heads.V)
        std, out = normal(config.init_std), heads.out * heads.V
        self.q_proj, self.k_proj, self.v_proj = (
            Dense(width, channels, init / f"{name}_proj", ("embed", "heads"), kernel=std, bias=False)
            for name, channels in zip("qkv", self.widths, strict=True)
        )
        self.q_conv, self.k_conv, self.v_conv = (
            None
            if config.conv_kernel is None
            else DepthwiseFilter(config.conv_kernel, channels, init / f"{name}_conv", filter=std, bias=False)
            for name, channels in zip("qkv", self.widths, strict=True)
        )
        self.g_proj = (
            None
            if config.output_gate is None
            else Dense(width, out, init / "g_proj", ("embed", "heads"), kernel=std, bias=False)
        )
        self.o_norm = RMSNormConfig(config.norm_eps).build(heads.V, init / "o_norm", channels="head")
        last = normal(config.init_std * (init.sites**-0.5 if config.scale_output else 1))
        self.out_proj = Dense(out, width, init / "out_proj", ("heads", "embed"), kernel=last, bias=False)

    @required
    def recur(
        self, u_BTD: jax.Array, qkv: tuple[jax.Array, jax.Array, jax.Array], matrix_BHKV: jax.Array, scope: Scope
    ) -> tuple[jax.Array, jax.Array]:
        """The recurrence over the tokens after the state, which it resets at ``scope.starts_BT``, and the last state.

        Args:
            u_BTD: the mixer's input, for gates.
            qkv: (B, T, heads, K) twice and (B, T, heads, V), in ``policy.accumulate``; all of :attr:`Heads.out`.
            matrix_BHKV: the state.
            scope: of the call.
        """

    def init_state(self, batch, max_len):
        heads, taps = self.heads, self.config.conv_kernel
        state = {"matrix": jnp.zeros((batch, heads.out, heads.K, heads.V), self.policy.accumulate)}
        if taps is not None:
            state["inputs"] = jnp.zeros((batch, taps - 1, sum(self.widths)), self.policy.compute)
        return state

    def __call__(self, u_BTD, state, scope):
        if self.config.implementation == "pallas":
            self.config.check_rounding(self.policy, target_backend())
        u_BTD = u_BTD.astype(self.policy.compute)
        B, T, _ = u_BTD.shape
        before = self.init_state(B, 0) if state is None else state
        parts = self.q_proj(u_BTD), self.k_proj(u_BTD), scope.values(self.v_proj(u_BTD))
        x_BTE = dropout(jnp.concatenate(parts, axis=-1), self.config.dropout, scope.key_of("qkv"))
        if (padding_BT := scope.padding_BT(T)) is not None:
            x_BTE = jnp.where(padding_BT[..., None], 0, x_BTE)  # writes nothing, and leaves an empty past
        after, wide_BTE = {}, x_BTE.astype(self.policy.accumulate)  # rounded once, after the activation
        if self.q_conv is not None:
            after["inputs"] = jnp.concatenate([before["inputs"], x_BTE], axis=1)[:, T:]
            wide_BTE = self._convolved(wide_BTE, before["inputs"].astype(wide_BTE.dtype), scope)
        if self.config.activates:
            wide_BTE = jax.nn.silu(wide_BTE)
        qkv = self._split(scope.tap("qkv", wide_BTE.astype(self.policy.compute)))
        y_BTHV, after["matrix"] = self.recur(u_BTD, qkv, before["matrix"], scope)
        y_BTHV = self.o_norm(scope.tap("read", y_BTHV))
        if self.g_proj is not None:
            gate = jax.nn.silu if self.config.output_gate == "silu" else jax.nn.sigmoid
            y_BTHV *= gate(self.g_proj(u_BTD).astype(y_BTHV.dtype)).reshape(y_BTHV.shape)
        y_BTD = self.out_proj(y_BTHV.reshape(B, T, -1).astype(self.policy.compute))
        return y_BTD, None if state is None else after

    def _convolved(self, x_BTE: jax.Array, inputs_BJE: jax.Array, scope: Scope) -> jax.Array:
        """All of the three at once."""
        convs = [conv for conv in (self.q_conv, self.k_conv, self.v_conv) if conv is not None]
        filters, biases = zip(*(conv.taps(x_BTE.dtype) for conv in convs))
        filter_KE, bias_E = jnp.concatenate(filters, axis=-1), jnp.concatenate(biases)
        return causal_depthwise_conv(x_BTE, filter_KE, bias_E, inputs_BJE, segment_ids=scope.segments_BT)

    def _split(self, x_BTE: jax.Array) -> tuple[jax.Array, ...]:
        """Queries, keys and values by heads, as many of each as the output has."""
        heads, (queries, keys, _) = self.heads, self.widths
        parts = jnp.split(x_BTE.astype(self.policy.accumulate), [queries, queries + keys], axis=-1)
        sizes = (heads.queries, heads.K), (heads.keys, heads.K), (heads.values, heads.V)
        return tuple(
            repeated(x_BTM.reshape(*x_BTM.shape[:2], *size), heads.out)
            for x_BTM, size in zip(parts, sizes, strict=True)
        )


def repeated(x_BTGM: jax.Array, heads: int) -> jax.Array:
    """(B, T, H, ...): each of the G heads H / G times in succession."""
    groups = x_BTGM.shape[2]
    return x_BTGM if groups == heads else jnp.repeat(x_BTGM, heads // groups, axis=2)
