"""The timed side of a benchmark: one contender in a separate process, which runs on request.

A worker prints one JSON line when its first call is done, ``{"first_s": seconds}``; then, for every
number n it reads, the seconds of n calls; and at the end of its input ``{"peak_bytes": bytes}``. It
imports no framework itself, so that JAX and PyTorch never share a process or a thread pool.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Spec = dict[str, Any]
Step = Callable[[], Any]


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_rss() -> int:
    """Largest resident memory of this process so far, bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def current_rss() -> int:
    """Resident memory of this process in bytes; its peak where the system does not report the current value."""
    statm = Path("/proc/self/statm")
    return (
        int(statm.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else peak_rss()
    )


def serve(build: Callable[[Spec], Step], peak: Callable[[], int | None]) -> None:
    """Answers the driver; see the module.

    Args:
        build: makes the step of a specification; the step returns when its result is ready.
        peak: bytes of accelerator memory at their highest; None on the CPU, where the growth of the
            process since before ``build`` counts instead.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # output of libraries must not look like an answer
    before = current_rss()
    step = build(json.loads(sys.argv[1]))

    def timed() -> float:
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    print(json.dumps({"first_s": timed()}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps([timed() for _ in range(int(line))]), file=answers, flush=True)
    accelerator = peak()
    used = peak_rss() - before if accelerator is None else accelerator
    print(json.dumps({"peak_bytes": used}), file=answers, flush=True)
