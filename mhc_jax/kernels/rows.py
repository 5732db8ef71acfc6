"""What a site does to the rows of a token: lists of arrays (tokens, D), weighed by columns (tokens, 1)."""

from collections.abc import Sequence
from typing import Any


def dot(weights: Sequence[Any], rows: Sequence[Any]) -> Any:
    """``sum_i weights[i] rows[i]``."""
    return sum(weight * x for weight, x in zip(weights, rows, strict=True))


def mix(matrix: Sequence[Sequence[Any]] | None, rows: Sequence[Any]) -> list[Any]:
    """Row i is :func:`dot` of ``matrix[i]``; without a matrix all rows stay."""
    return [dot(weights, rows) for weights in matrix] if matrix else list(rows)


def written(mixed: Sequence[Any], ys: Sequence[Any], post: Sequence[Any]) -> Sequence[Any]:
    """``mixed[i] + post[i] y_i``, of one y for all rows, one for each, or none."""
    if not ys:
        return mixed
    return [x + weight * y for x, weight, y in zip(mixed, post, list(ys) * (len(mixed) // len(ys)), strict=True)]


def matrix(entries: Sequence[Any], size: int) -> list[list[Any]]:
    """``size`` rows of the entries of a square matrix."""
    return [list(entries[i * size : (i + 1) * size]) for i in range(size)]
