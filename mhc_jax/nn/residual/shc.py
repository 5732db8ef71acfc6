"""SHC: tokens read, mix and write streams by sparse mixtures of orthogonal matrices."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy.linalg import block_diag

from mhc_jax.nn.deferred import projected
from mhc_jax.nn.init import Init, constant, normal, ones, zeros
from mhc_jax.nn.projections.base import EXACT, Promise
from mhc_jax.nn.residual.mhc import DIAGONAL_BIAS, MHC, READ_LEAN, MHCConfig, own_stream, reading_weights
from mhc_jax.nn.scope import Scope
from mhc_jax.nn.stack import Prepared, Preparing
from mhc_jax.ops import hyper, projections, routing
from mhc_jax.ops.norm import RMS_EPS
from mhc_jax.ops.streams import Streams
from mhc_jax.precision import Policy
from mhc_jax.registry import register

# Reads, mixing, writes: each has its own orthogonal matrices and its own weights of them.
NAMES = ("pre", "res", "post")
ROUTES = len(NAMES)
# Logits over a temperature far below it are no longer finite in float32.
LEAST_TEMPERATURE = 1e-6


@register("residual", "shc")
@dataclasses.dataclass(frozen=True)
class SHCConfig(MHCConfig):
    """Sparse selective hyper-connections as their documents describe them. The default starts as the plain residual.

    ``alpha_t = softmax(phi rmsnorm(mean stream of token t) + b)`` weighs orthogonal matrices Q_c, of which only the
    ``top_k`` heaviest take part. ``H_pre = read H(alpha^1)``, ``H_post = H(alpha^3) write`` and
    ``H_res = (1 + f) / 2 I + (1 - f) / 2 H(alpha^2)`` with ``H(alpha) = sum_c alpha_c Q_c``.

    Singular values of H_res lie in [f, 1] whatever the parameters are: a convex combination of orthogonal matrices
    never lengthens a vector, and what the identity keeps, (1 + f) / 2, is more by f than all others can take away.
    With ``f = floor ** (1 / number of sites)`` those of the product of all H_res of the model lie in [floor, 1]. Reads
    and writes are never longer than the vectors ``read`` and ``write``.

    With ``adaptive`` a token keeps its first n_eff streams: the others are neither read nor written nor mixed, and the
    bounds above still hold, as those streams keep their length and a block of H_res around the same identity is left.
    n_eff is drawn in training (straight-through Gumbel) and is the likeliest number in evaluation.

    Attributes:
        streams: number of parallel streams n. With one stream the site is the plain residual with two gains.
        components: number C of orthogonal matrices of each route.
        top_k: number of them that a token uses; None for all.
        balance: weight of the auxiliary loss on components that are used unequally, where a token does not use all.
        floor: the least singular value that the mixing of all sites together can have.
        identity_bias: initial logit of the first component, which starts as the identity; the others start as shifts.
        read_lean: initial reading weight of stream (site mod n), before the shifts.
        adaptive: whether tokens choose their number of streams. All streams are computed either way, and the choice
            makes learning slower, see ``docs/shc.md``.
        rank_penalty: weight of the auxiliary loss ``mean(n_eff) / n``.
        temperature, final_temperature: of the choice's gradient, at the start of training and at its end.
    """

    components: int = 4
    top_k: int | None = 2
    balance: float = 0.01
    floor: float = 0.1
    identity_bias: float = 2.0
    read_lean: float = READ_LEAN
    adaptive: bool = False
    rank_penalty: float = 0.01
    temperature: float = 1.0
    final_temperature: float = 0.1

    def validate(self):
        super().validate()
        self.require_counts(1, "components")
        most = f"the {self.components} components"
        self.require(
            1 <= self.used <= self.components, f"top_k must be at least 1 and at most {most}, got {self.top_k}"
        )
        self.require_not_negative("balance", "rank_penalty")
        self.require(0 <= self.floor < 1, f"floor must lie in [0, 1), got {self.floor}")
        self.require(self.read_lean <= 1, f"read_lean must be at most 1, got {self.read_lean}")
        for name in ("temperature", "final_temperature"):
            self.require(
                getattr(self, name) >= LEAST_TEMPERATURE,
                f"{name} must be at least {LEAST_TEMPERATURE}, got {getattr(self, name)}",
            )

    @property
    def used(self) -> int:
        """Number of components that a token uses."""
        return self.components if self.top_k is None else self.top_k

    def factor(self, sites: int) -> float:
        """f, of each of so many sites."""
        return self.floor ** (1 / sites)

    def promise(self, sites: int) -> Promise:
        """What holds of every H_res in a model of so many sites."""
        return Promise(norm=EXACT, shrinking=1 - self.factor(sites) + EXACT)

    def build(self, width, policy, init):
        return SHC(self, width, policy, init)


class SHC(MHC, Preparing):
    """See :class:`SHCConfig`. Rows of ``phi`` and ``bias``: C for each of the three routes, then n for n_eff."""

    defers = True
    mixtures_KM: Prepared | None = None

    def __init__(self, config: SHCConfig, width: int, policy: Policy, init: Init):
        n, C = config.streams, config.components
        self.config, self.policy = config, policy
        self.factor = config.factor(init.sites)
        read_N = reading_weights(own_stream(init, n), config.read_lean)
        self.read = init("read", constant(read_N), n, axes=("stream",))
        self.write = init("write", ones, n, axes=("stream",))
        if n == 1:
            return
        shape = ROUTES, C, n * (n - 1) // 2
        self.skew = init("skew", zeros, *shape, role="vector", axes=("coefficient",) * 3)
        start = jnp.tile(jnp.zeros(C).at[0].set(config.identity_bias), ROUTES)
        if config.adaptive:
            start = jnp.concatenate([start, jnp.zeros(n).at[-1].set(DIAGONAL_BIAS)])
        self.phi = init("phi", normal(0.02), len(start), width, role="mixing", axes=("coefficient", "features"))
        self.bias = init("bias", constant(start), len(start), axes=("coefficient",))

    def prepare(self):
        return {} if self.config.streams == 1 else {"mixtures_KM": self._mixtures()}

    def _mixtures(self):
        """What each component adds to a token's H_pre, H_res and H_post, which are the columns, M = N + N N + N.

        K is the components of all three routes; each adds to the columns of its own.
        """
        dtype, n = self.policy.accumulate, self.config.streams
        read_N, write_N = (leaf[...].astype(dtype) for leaf in (self.read, self.write))
        reads, mixings, writes = projections.spread_rotations(self.skew[...].astype(dtype), size=n)
        # Where only a product with a vector is needed, vectors are mixed instead of matrices.
        return block_diag(read_N @ reads, (1 - self.factor) / 2 * mixings.reshape(-1, n * n), writes @ write_N)

    def coefficients(self, h, scope):
        config, dtype, n = self.config, self.policy.accumulate, self.config.streams
        if n == 1:
            return h, (self.read[...].astype(dtype), self.write[...].astype(dtype), None)
        h, logits_BTK = projected(h, _of_mean, self.phi[...].astype(dtype))
        logits_BTK, rank_BTN = jnp.split(
            logits_BTK + self.bias[...].astype(dtype), [ROUTES * config.components], axis=-1
        )
        logits_BTRC = logits_BTK.reshape(*logits_BTK.shape[:-1], ROUTES, config.components)
        weights_BTRC = routing.top_k_softmax(logits_BTRC, k=config.used)
        weights = [
            scope.tap(f"alpha_{name}", weight_BTC)
            for name, weight_BTC in zip(NAMES, jnp.unstack(weights_BTRC, axis=-2), strict=True)
        ]
        if config.used < config.components:
            balance_R = jax.vmap(routing.load_balance, in_axes=-2)(logits_BTRC, weights_BTRC)
            scope.penalise("routing_balance", config.balance * jnp.mean(balance_R))
        mixtures_KM = self._mixtures() if self.mixtures_KM is None else self.mixtures_KM[...]
        mixed_BTM = jnp.matmul(jnp.concatenate(weights, axis=-1), mixtures_KM, precision="highest")
        pre_BTN, entries, post_BTN = jnp.split(mixed_BTM, [n, n + n * n], axis=-1)
        res_BTNN = (1 + self.factor) / 2 * jnp.eye(n, dtype=dtype) + entries.reshape(*entries.shape[:-1], n, n)
        if not config.adaptive:
            return h, (pre_BTN, post_BTN, res_BTNN)
        mask_BTN = self._mask(rank_BTN, scope)
        return h, (mask_BTN * pre_BTN, mask_BTN * post_BTN, projections.masked_mixing(res_BTNN, mask_BTN))

    def _mask(self, logits_BTN: jax.Array, scope: Scope) -> jax.Array:
        """1 for the streams that a token keeps."""
        config, key = self.config, scope.key_of("rank")
        progress = 1.0 if scope.progress is None else scope.progress
        temperature = config.temperature * (config.final_temperature / config.temperature) ** progress
        noise_BTN = None if key is None else jax.random.gumbel(key, logits_BTN.shape, logits_BTN.dtype)
        mask_BTN = routing.prefix_mask(routing.straight_through(logits_BTN, temperature, noise_BTN))
        rank_BT = scope.tap("rank", jnp.sum(mask_BTN, axis=-1))
        scope.penalise("rank", config.rank_penalty * jnp.mean(rank_BT) / config.streams)
        return mask_BTN


def _of_mean(h: Streams, phi_KD: jax.Array) -> jax.Array:
    """``phi rmsnorm(mean stream)``, (B, T, K)."""
    mean_BTD = h.astype(phi_KD.dtype).total() / len(h)
    return hyper.flat_weights(Streams((mean_BTD,)), phi_KD, eps=RMS_EPS)
