"""Projections of residual logits onto mixing matrices, one class for each kind."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torch_ref.config import implementation, one_of, register
from torch_ref.ops import projections, sinkhorn

MOST_STREAMS_PERMUTED = 6
_SINKHORN_FORMS = {
    "log columns_then_rows": sinkhorn.log_sinkhorn_columns_then_rows,
    "log rows_then_columns": sinkhorn.log_sinkhorn,
    "exp rows_then_columns": sinkhorn.sinkhorn_rows_then_columns,
}


class Projection:
    """Logits of ``shape`` to matrices (N, N), built as ``Projection(config, streams)``.

    Attributes:
        shape: of the logits of one matrix; an empty shape such as (0,) means that there are none.
    """

    shape: tuple[int, ...]

    def __init__(self, config: Any, streams: int):
        self.streams, self.shape = streams, (streams, streams)

    def near_identity(self, strength: float) -> Tensor:
        """Logits whose projection is near the identity; ``strength`` is how far a diagonal logit leads the others."""
        return strength * torch.eye(self.streams)

    def __call__(self, logits: Tensor) -> Tensor:
        """Matrices (..., N, N) of logits (..., *shape)."""
        raise NotImplementedError


def build_projection(config: Any, streams: int) -> Projection:
    """The projection that ``config`` describes.

    Raises:
        ValueError: an unknown kind or impossible settings.
    """
    if streams < 1:
        raise ValueError(f"streams must be at least 1, got {streams}")
    project = implementation("projection", config)(config, streams)
    project(project.near_identity(0.0))  # refuses impossible settings now rather than at the first batch
    return project


@register("projection", "sinkhorn")
class Sinkhorn(Projection):
    """The gradient ``recompute`` saves memory alone, so it is ``unrolled`` here."""

    def __init__(self, config, streams: int):
        super().__init__(config, streams)
        op = _SINKHORN_FORMS[one_of("sinkhorn form", f"{config.domain} {config.order}", _SINKHORN_FORMS)]
        if one_of("sinkhorn gradient", config.gradient, ("unrolled", "recompute", "implicit")) == "implicit":
            if op is not sinkhorn.log_sinkhorn_columns_then_rows:
                raise ValueError("sinkhorn: the implicit gradient needs domain 'log' and order 'columns_then_rows'")
            op = sinkhorn.implicit_sinkhorn
        self.op = partial(op, iters=config.iters, temperature=config.temperature)

    def __call__(self, logits):
        return self.op(logits)


@register("projection", "clamped_sinkhorn")
class ClampedSinkhorn(Projection):
    def __init__(self, config, streams: int):
        super().__init__(config, streams)
        self.iters = config.iters

    def __call__(self, logits):
        return sinkhorn.sinkhorn_clamped(logits, iters=self.iters)


@register("projection", "deepseek_sinkhorn")
class DeepSeekSinkhorn(Projection):
    def __init__(self, config, streams: int):
        super().__init__(config, streams)
        self.iters, self.eps = config.iters, config.eps

    def __call__(self, logits):
        return sinkhorn.sinkhorn_deepseek(logits, iters=self.iters, eps=self.eps)


@register("projection", "orthostochastic")
class Orthostochastic(Projection):
    def __init__(self, config, streams: int):
        super().__init__(config, streams)
        if one_of("orthostochastic schedule", config.schedule, ("quintic", "eight")) == "quintic":
            if config.steps < 0:
                raise ValueError(f"orthostochastic: steps must not be negative, got {config.steps}")
            self.coefficients = (tuple(config.coefficients),) * config.steps
        else:
            self.coefficients = projections.SCHEDULE
        self.eps, self.normalise = config.eps, config.normalise
        self.start = one_of("orthostochastic start", config.start, ("rotation", "diagonal"))

    def near_identity(self, strength):
        """A diagonal, or what rotates: squared entries off the diagonal are about ``exp(-strength)`` of those on it."""
        eye, sign = torch.eye(self.streams), torch.ones(self.streams, self.streams).triu(1)
        return strength * eye if self.start == "diagonal" else math.exp(strength / 2) * eye + sign - sign.T

    def __call__(self, logits):
        return projections.orthostochastic(
            logits, coefficients=self.coefficients, eps=self.eps, normalise=self.normalise
        )


@register("projection", "cayley")
class Cayley(Projection):
    def __init__(self, config, streams: int):
        super().__init__(config, streams)
        if config.steps < 0:
            raise ValueError(f"cayley: steps must be at least 0, got {config.steps}")
        self.alpha, self.steps = config.alpha, config.steps

    def near_identity(self, strength):
        """Zeros: their projection is the identity whatever the strength."""
        return torch.zeros(self.shape)

    def __call__(self, logits):
        return projections.cayley(logits, alpha=self.alpha, steps=self.steps)


@register("projection", "permutations")
class Permutations(Projection):
    def __init__(self, config, streams: int):
        super().__init__(config, streams)
        count = math.factorial(streams)
        if streams > MOST_STREAMS_PERMUTED:
            raise ValueError(
                f"permutations: {streams} streams have {count} permutations; at most {MOST_STREAMS_PERMUTED} streams"
            )
        self.shape = (count,)

    def near_identity(self, strength):
        """``strength + log(n! / n)`` on the identity alone: its share is then that of a diagonal under Sinkhorn."""
        logits_K = torch.zeros(self.shape)
        logits_K[0] = strength + math.log(self.shape[0] / self.streams)
        return logits_K

    def __call__(self, logits):
        return projections.permutation_mixture(logits, streams=self.streams)


@register("projection", "kronecker")
class Kronecker(Projection):
    def __init__(self, config, streams: int):
        super().__init__(config, streams)
        factors = streams.bit_length() - 1
        if streams != 2**factors:
            raise ValueError(f"kronecker: streams must be a power of two, got {streams}")
        self.shape = (factors, 2)

    def near_identity(self, strength):
        return torch.tensor([strength, 0.0]).repeat(self.shape[0], 1)

    def __call__(self, logits):
        return projections.kronecker_mixture(logits)


@register("projection", "spectral_sphere")
class SpectralSphere(Projection):
    """Logits: the rotations' entries u and v, then the singular values s."""

    def __init__(self, config, streams: int):
        super().__init__(config, streams)
        entries = (streams - 1) * (streams - 2) // 2
        self.sizes = (entries, entries, streams - 1)
        self.shape = (sum(self.sizes),)

    def near_identity(self, strength):
        entries, _, values = self.sizes
        return torch.cat([torch.zeros(2 * entries), torch.full((values,), strength)])

    def __call__(self, logits):
        return projections.spectral_sphere(*logits.split(self.sizes, -1), streams=self.streams)


@register("projection", "circulant")
class Circulant(Projection):
    def __init__(self, config, streams: int):
        super().__init__(config, streams)
        self.gamma, self.shape = config.gamma, (streams,)

    def near_identity(self, strength):
        return strength * torch.eye(self.streams)[0]

    def __call__(self, logits):
        return projections.circulant(logits, gamma=self.gamma)


@register("projection", "newton")
class Newton(Projection):
    def __init__(self, config, streams: int):
        super().__init__(config, streams)
        if config.iters < 1:
            raise ValueError(f"newton: iters must be at least 1, got {config.iters}")
        self.iters = config.iters

    def __call__(self, logits):
        return projections.newton_birkhoff(logits, iters=self.iters)


@register("projection", "identity")
class Identity(Projection):
    """No mixing, and no logits."""

    def __init__(self, config, streams: int):
        super().__init__(config, streams)
        self.shape = (0,)

    def near_identity(self, strength):
        return torch.zeros(self.shape)

    def __call__(self, logits):
        eye_NN = torch.eye(self.streams, dtype=logits.dtype, device=logits.device)
        return eye_NN.expand(*logits.shape[:-1], -1, -1)
