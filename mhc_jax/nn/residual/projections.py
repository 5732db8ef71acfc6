"""How free logits become the mixing matrix of a site: one configuration for each projection of :mod:`mhc_jax.ops`."""

import dataclasses
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from mhc_jax.config import Config
from mhc_jax.ops import projections, sinkhorn
from mhc_jax.registry import register


@dataclasses.dataclass(frozen=True)
class ProjectionConfig(Config):
    """Base of all projections. Unless a subclass says otherwise there is one logit for each entry of the matrix."""

    axis: ClassVar[str] = "projection"

    def check(self, streams: int) -> None:
        """Raises ConfigError if there is no such projection for that many streams."""

    def shape(self, streams: int) -> tuple[int, ...]:
        """Shape of the logits, without leading axes; some dimension is 0 when there are none."""
        return streams, streams

    def size(self, streams: int) -> int:
        """Number of logits."""
        return math.prod(self.shape(streams))

    def is_identity(self, streams: int) -> bool:
        """Whether the matrix is the identity whatever the logits. Here: one stream alone, as rows sum to one."""
        return streams == 1

    def near_identity(self, streams: int, strength: float) -> jax.Array:
        """Logits whose matrix is near the identity, the nearer the greater ``strength``."""
        return strength * jnp.eye(streams)

    def project(self, logits: jax.Array, streams: int) -> jax.Array:
        """The matrices (..., N, N): row i weighs the sources of stream i."""
        raise NotImplementedError


@register("projection", "sinkhorn")
@dataclasses.dataclass(frozen=True)
class SinkhornConfig(ProjectionConfig):
    """Sinkhorn's iterations (mHC, 2512.24880): nearly doubly stochastic.

    Attributes:
        iters: pairs of half-steps.
        temperature: divides the logits.
        order: which half-step comes first; the sums of the second are exact. ``"columns_then_rows"``, the paper's,
            keeps equal streams equal; ``"rows_then_columns"`` is mHC-SSM's.
        domain: ``"log"`` is finite, and its gradient too, at any finite logits; ``"exp"`` is mHC-SSM's own form, in its
            order only (there 0 iterations are allowed, and leave the exponentials as they are): where the logits of a
            column lie about 90 below their rows' largest, its gradient becomes NaN.
        gradient: ``"unrolled"`` keeps every iteration for the backward pass; ``"recompute"`` repeats them there, to the
            same gradient; ``"implicit"`` differentiates the exact projection, which the iterations approach.
    """

    iters: int = 20
    temperature: float = 1.0
    order: Literal["columns_then_rows", "rows_then_columns"] = "columns_then_rows"
    domain: Literal["log", "exp"] = "log"
    gradient: Literal["unrolled", "recompute", "implicit"] = "recompute"

    def validate(self):
        super().validate()
        papers = self.order == "columns_then_rows"
        self.require(self.temperature > 0, f"temperature must be positive, got {self.temperature}")
        self.require(
            self.domain == "log" or not papers, "domain 'exp' has the order 'rows_then_columns' only; use domain 'log'"
        )
        self.require(
            self.gradient != "implicit" or papers,
            "gradient 'implicit' has the order 'columns_then_rows' only; use gradient 'recompute'",
        )
        least = 1 if self.domain == "log" else 0
        self.require(
            self.iters >= least, f"iters must be at least {least} in the domain {self.domain!r}, got {self.iters}"
        )

    def is_identity(self, streams):
        return super().is_identity(streams) and self.domain == "log"

    def project(self, logits, streams):
        def project(logits):
            return self._form()(logits, iters=self.iters, temperature=self.temperature)

        return (jax.checkpoint(project) if self.gradient == "recompute" else project)(logits)

    def _form(self):
        if self.gradient == "implicit":
            return sinkhorn.implicit_sinkhorn
        if self.order == "columns_then_rows":
            return sinkhorn.log_sinkhorn_columns_then_rows
        return sinkhorn.log_sinkhorn if self.domain == "log" else sinkhorn.sinkhorn_rows_then_columns


@register("projection", "clamped_sinkhorn")
@dataclasses.dataclass(frozen=True)
class ClampedSinkhornConfig(ProjectionConfig):
    """Sinkhorn's iterations as lucidrains' ``hyper-connections`` runs them; 0 leaves the logits as they are.

    Where the logits of a column lie about 90 below their rows' largest, its gradient becomes NaN, as the original's.
    """

    iters: int = 20

    def validate(self):
        super().validate()
        self.require(self.iters >= 0, f"iters must not be negative, got {self.iters}")

    def is_identity(self, streams):
        return super().is_identity(streams) and self.iters > 0

    def project(self, logits, streams):
        return sinkhorn.sinkhorn_clamped(logits, iters=self.iters)


@register("projection", "deepseek_sinkhorn")
@dataclasses.dataclass(frozen=True)
class DeepseekSinkhornConfig(ProjectionConfig):
    """Sinkhorn's iterations as DeepSeek-V4 runs them, ``eps`` added to every sum."""

    iters: int = 20
    eps: float = 1e-6

    def validate(self):
        super().validate()
        self.require(self.iters >= 1, f"iters must be at least 1, got {self.iters}")
        self.require(self.eps >= 0, f"eps must not be negative, got {self.eps}")

    def is_identity(self, streams):
        return super().is_identity(streams) and self.eps == 0

    def project(self, logits, streams):
        return sinkhorn.sinkhorn_deepseek(logits, iters=self.iters, eps=self.eps)


@register("projection", "newton")
@dataclasses.dataclass(frozen=True)
class NewtonConfig(ProjectionConfig):
    """What Sinkhorn's iterations approach, by at most ``iters`` Newton steps a temperature: doubly stochastic."""

    iters: int = 64

    def validate(self):
        super().validate()
        self.require(self.iters >= 1, f"iters must be at least 1, got {self.iters}")

    def project(self, logits, streams):
        return projections.newton_birkhoff(logits, iters=self.iters)


@register("projection", "orthostochastic")
@dataclasses.dataclass(frozen=True)
class OrthostochasticConfig(ProjectionConfig):
    """The squared entries of an orthogonal matrix (tokenbender's mHC), by Newton-Schulz steps.

    Attributes:
        schedule: ``"eight"`` steps with coefficients of their own, or ``steps`` times the same ``"quintic"``, which
            leaves sums of rows off by about 1%.
        steps: of the quintic; 0 squares the logits as they are, divided by their norm.
        coefficients: (a, b, c) of the quintic.
        eps: added to the norm of the logits.
        normalise: make the sums of rows exact; the original does not, and of zero logits makes a matrix of zeros.
        start: near the identity, ``"rotation"`` keeps the entries off the diagonal away from zero, where a square has
            no gradient and the matrix could never leave; ``"diagonal"`` is the multiple of the identity from which the
            original starts (with ``res_offset``, which turns it into something else).
    """

    schedule: Literal["quintic", "eight"] = "eight"
    steps: int = 5
    coefficients: tuple[float, ...] = (3.0, -3.2, 1.2)
    eps: float = 1e-7
    normalise: bool = True
    start: Literal["rotation", "diagonal"] = "rotation"

    def validate(self):
        super().validate()
        self.require(self.steps >= 0, f"steps must not be negative, got {self.steps}")
        self.require(len(self.coefficients) == 3, f"coefficients must be three numbers, got {self.coefficients}")
        self.require(self.eps > 0, f"eps must be positive, got {self.eps}")

    def is_identity(self, streams):
        return super().is_identity(streams) and self.normalise

    def near_identity(self, streams, strength):
        """For ``"rotation"`` an entry off the diagonal is about ``exp(-strength)`` of one on it."""
        if self.start == "diagonal":
            return super().near_identity(streams, strength)
        upper = jnp.triu(jnp.ones((streams, streams)), 1)
        return math.exp(strength / 2) * jnp.eye(streams) + upper - upper.T

    def project(self, logits, streams):
        quintic = (self.coefficients,) * self.steps
        coefficients = quintic if self.schedule == "quintic" else projections.SCHEDULE
        return projections.orthostochastic(logits, coefficients=coefficients, eps=self.eps, normalise=self.normalise)


@register("projection", "cayley")
@dataclasses.dataclass(frozen=True)
class CayleyConfig(ProjectionConfig):
    """Orthogonal, with entries of both signs (JPmHC). Rows sum to one at the identity only.

    Attributes:
        alpha: step length.
        steps: fixed-point steps; 0 is the exact transform, the paper takes 2.
    """

    alpha: float = 0.1
    steps: int = 0

    def validate(self):
        super().validate()
        self.require(self.alpha > 0, f"alpha must be positive, got {self.alpha}")
        self.require(self.steps >= 0, f"steps must not be negative, got {self.steps}")

    def near_identity(self, streams, strength):
        """Zero: the identity itself, whatever the strength."""
        return jnp.zeros(self.shape(streams))

    def project(self, logits, streams):
        return projections.cayley(logits, alpha=self.alpha, steps=self.steps)


@register("projection", "permutations")
@dataclasses.dataclass(frozen=True)
class PermutationsConfig(ProjectionConfig):
    """A mixture of all n! permutations (mHC-lite): exactly doubly stochastic, no iterations."""

    def check(self, streams):
        count = math.factorial(streams)
        self.require(streams <= 6, f"{streams} streams have {count} permutations; at most 6 streams can be mixed so")

    def shape(self, streams):
        return (math.factorial(streams),)

    def near_identity(self, streams, strength):
        """``strength + log(n! / n)`` on the identity.

        Against n! - 1 others it then has about the weight that ``strength`` gives the diagonal against the n - 1
        other entries of a row.
        """
        margin = strength + math.log(math.factorial(streams) / streams)
        return jnp.zeros(self.shape(streams)).at[0].set(margin)

    def project(self, logits, streams):
        return projections.permutation_mixture(logits, streams=streams)


@register("projection", "kronecker")
@dataclasses.dataclass(frozen=True)
class KroneckerConfig(ProjectionConfig):
    """A Kronecker product of 2 by 2 mixtures (KromHC): exactly doubly stochastic, two logits for each doubling."""

    def check(self, streams):
        self.require(
            streams & (streams - 1) == 0, f"streams must be a power of two for a product of pairs, got {streams}"
        )

    def shape(self, streams):
        return streams.bit_length() - 1, 2

    def near_identity(self, streams, strength):
        """The same margin for every factor."""
        return jnp.broadcast_to(jnp.array([strength, 0.0]), self.shape(streams))

    def project(self, logits, streams):
        return projections.kronecker_mixture(logits)


@register("projection", "spectral_sphere")
@dataclasses.dataclass(frozen=True)
class SpectralSphereConfig(ProjectionConfig):
    """Rows and columns sum to one, spectral norm at most one, entries of both signs (sHC)."""

    def shape(self, streams):
        return ((streams - 1) * (streams - 2) + streams - 1,)

    def near_identity(self, streams, strength):
        """No rotation; singular values ``tanh(strength)``."""
        angles = (streams - 1) * (streams - 2)
        return jnp.zeros(self.shape(streams)).at[angles:].set(strength)

    def project(self, logits, streams):
        half = (streams - 1) * (streams - 2) // 2
        u_K, v_K, s_M = logits[..., :half], logits[..., half : 2 * half], logits[..., 2 * half :]
        return projections.spectral_sphere(u_K, v_K, s_M, streams=streams)


@register("projection", "circulant")
@dataclasses.dataclass(frozen=True)
class CirculantConfig(ProjectionConfig):
    """A mixture of the n cyclic shifts (C-mHC): exactly doubly stochastic.

    Attributes:
        gamma: share of the mixture; the rest is the identity.
    """

    gamma: float = 0.5

    def validate(self):
        super().validate()
        self.require(0 < self.gamma <= 1, f"gamma must lie in (0, 1], got {self.gamma}")

    def shape(self, streams):
        return (streams,)

    def near_identity(self, streams, strength):
        return jnp.zeros(streams).at[0].set(strength)

    def project(self, logits, streams):
        return projections.circulant(logits, gamma=self.gamma)


@register("projection", "identity")
@dataclasses.dataclass(frozen=True)
class IdentityProjectionConfig(ProjectionConfig):
    """The identity, without logits: streams meet in reads and writes alone (iHC)."""

    def shape(self, streams):
        return (0,)

    def is_identity(self, streams):
        return True

    def near_identity(self, streams, strength):
        return jnp.zeros(0)

    def project(self, logits, streams):
        return jnp.eye(streams, dtype=logits.dtype)
