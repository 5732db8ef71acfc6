"""Contenders of one process, timed in turns."""

import time
from collections.abc import Callable, Mapping

import numpy as np

Step = Callable[[], object]
Rounds = list[list[float]]


def take_turns(
    steps: Mapping[str, Step], *, rounds: int, calls: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Rounds]:
    """Seconds of every call, by contender and round.

    Every other round runs backwards, so that what changes steadily on the machine favours nobody.

    Args:
        steps: each returns when its result is ready; they have run before, so that nothing is done for the first time.
        rounds: turns of every contender.
        calls: timed calls in a turn.
        clock: gives seconds.
    """
    seconds: dict[str, Rounds] = {name: [] for name in steps}
    for index in range(rounds):
        for name in list(steps)[:: -1 if index % 2 else 1]:
            seconds[name].append([_timed(steps[name], clock) for _ in range(calls)])
    return seconds


def _timed(step: Step, clock: Callable[[], float]) -> float:
    start = clock()
    step()
    return clock() - start


def compare(rounds: Rounds, baseline: Rounds) -> dict[str, float]:
    """One contender relative to another that took turns with it.

    Returns:
        ``ms`` and ``plain ms``, medians of all calls; ``ratio``, that of the medians; ``ratio 25%`` and ``ratio
        75%``, quartiles of the ratios of single rounds; ``least ratio``, that of the quickest calls.
    """
    median, plain = (float(np.median(np.concatenate(x))) for x in (rounds, baseline))
    by_round = [np.median(mine) / np.median(theirs) for mine, theirs in zip(rounds, baseline)]
    return {
        "ms": 1e3 * median,
        "plain ms": 1e3 * plain,
        "ratio": median / plain,
        "ratio 25%": float(np.percentile(by_round, 25)),
        "ratio 75%": float(np.percentile(by_round, 75)),
        "least ratio": min(map(min, rounds)) / min(map(min, baseline)),
    }
