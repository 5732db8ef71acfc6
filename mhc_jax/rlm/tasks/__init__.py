"""Tasks with known truth, for contexts of any length: generated offline from a seed, or read from disk."""

import random
from collections.abc import Callable
from pathlib import Path

from mhc_jax.config import ConfigError
from mhc_jax.registry import unknown
from mhc_jax.rlm.tasks import aggregate, codebase, haystack
from mhc_jax.rlm.tasks.files import read
from mhc_jax.rlm.tasks.task import Task

__all__ = ["KINDS", "Task", "generate", "read"]

KINDS: dict[str, Callable[[random.Random, int], Task]] = {
    make.__name__: make
    for make in (
        haystack.needle,
        haystack.needles,
        haystack.occurrence,
        aggregate.count,
        aggregate.most_common,
        aggregate.compare,
        aggregate.per_user,
        aggregate.by_date,
        aggregate.pairs,
        codebase.code,
    )
}


def generate(kind: str, length: int, seed: int = 0, source: Path | None = None) -> Task:
    """A task of about ``length`` characters, the same for the same seed.

    Args:
        kind: of :data:`KINDS`.
        length: characters of the context; short ones become as long as the question needs.
        source: folder of Python files that ``code`` asks about; this library if None.

    Raises:
        ConfigError: an unknown kind, a length below 1, or a folder without such files.
    """
    if kind not in KINDS:
        raise ConfigError(unknown("task", kind, KINDS))
    if length < 1:
        raise ConfigError(f"a context must have at least 1 character, got {length}")
    draw = random.Random(f"{kind} {length} {seed}")
    return codebase.code(draw, length, source) if kind == "code" and source else KINDS[kind](draw, length)
