"""Stream-specialised adapters: a wrapper of a residual topology that adapts each stream before reads and writes."""

import dataclasses
from typing import Any

import jax

from mhc_jax.config import Config
from mhc_jax.nn.init import Init, normal, ones, zeros
from mhc_jax.nn.layers import Dense, dropout
from mhc_jax.nn.norms import Norm
from mhc_jax.nn.residual.base import Residual, streams_of, with_streams
from mhc_jax.ops.adapter import stream_adapter
from mhc_jax.ops.streams import Streams
from mhc_jax.precision import Policy


@dataclasses.dataclass(frozen=True)
class StreamAdaptersConfig(Config):
    """Bottleneck adapters around every site (mHC-SSM, section 1.5).

    Attributes:
        rank: width of the bottleneck.
        dropout: rate on the adapter's output, before it is added.
        zero_init: start ``up`` at zero and spread the gains, so that the adapters begin as the identity
            and differ between streams; the original starts them random with equal gains.
    """

    rank: int = 64
    dropout: float = 0.0
    zero_init: bool = True

    def validate(self):
        super().validate()
        self.require(self.rank >= 1, f"adapter rank must be at least 1, got {self.rank}")
        self.require(0 <= self.dropout < 1, f"adapter dropout must lie in [0, 1), got {self.dropout}")


class StreamAdapters(Residual):
    """``X_i += A(norm(X_i); gamma_pre[i])`` before a read, ``Y_i = y + A(norm(y); gamma_post[i])`` before a write.

    Both directions share ``down``, ``up`` and ``norm``; only the gains differ.
    """

    def __init__(
        self,
        inner: Residual,
        config: StreamAdaptersConfig,
        width: int,
        stream_count: int,
        norm: Norm,
        policy: Policy,
        init: Init,
    ):
        self.inner, self.config, self.policy = inner, config, policy
        self.views, self.normalised = inner.views, inner.normalised
        gains = normal(0.5, mean=1.0) if config.zero_init else ones
        up = zeros if config.zero_init else None
        self.norm = norm
        # Before a read both run for every stream; before a write ``down`` runs once and ``up`` for every stream.
        self.down = Dense(width, config.rank, init / "down", ("embed", "rank"), uses=stream_count + 1)
        self.up = Dense(config.rank, width, init / "up", ("rank", "embed"), kernel=up, bias=up, uses=2 * stream_count)
        self.gamma_pre, self.gamma_post = (
            init(name, gains, stream_count, config.rank, role="vector", axes=("stream", "rank"))
            for name in ("gamma_pre", "gamma_post")
        )

    def _adapt(self, x, gamma, key):
        """The adapter's addition to every stream, from x, which is one array for all of them, or streams."""
        leaves: tuple[Any, ...] = (gamma, self.down.kernel, self.down.bias, self.up.kernel, self.up.bias)
        gamma, down, down_bias, up, up_bias = (leaf[...].astype(self.policy.compute) for leaf in leaves)

        def normalise(x_BTD):
            return self.norm(x_BTD.astype(self.policy.accumulate)).astype(self.policy.compute)

        adapted = stream_adapter(jax.tree.map(normalise, x), gamma, down, down_bias, up, up_bias)
        keys = [None] * len(adapted) if key is None else jax.random.split(key, len(adapted))
        return adapted.each(lambda x, key: dropout(x, self.config.dropout, key), keys)

    def pre(self, state, scope):
        h = streams_of(state)
        adapted = self._adapt(h, self.gamma_pre, scope.key_of("adapter")).astype(self.policy.accumulate)
        state = with_streams(state, scope.tap("adapted", (h + adapted).astype(h.dtype)))
        u_BTD, ctx = self.inner.pre(state, scope.keyed("inner"))
        return u_BTD, (state, ctx)

    def post(self, state, y, ctx, scope):
        state, ctx = ctx
        adapted = self._adapt(y, self.gamma_post, scope.key_of("adapter"))
        y = Streams.copies(y.astype(self.policy.accumulate), len(adapted))
        y = scope.tap("y_streams", y + adapted)
        return self.inner.post(state, y, ctx, scope.keyed("inner"))
