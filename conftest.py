"""Shared set-up of all tests: CPU, one thread of torch, a compile cache that the workers share."""

import ctypes
import gc
import importlib.metadata
import logging
import os
import sys
from pathlib import Path

import psutil
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def _quick_to_compile() -> str:
    """Four times as fast; `python -m parity_tests` runs the same comparisons fully optimised."""
    # One thread compiles a program: two workers keep two cores busy, and the pieces for more threads cost a sixth more.
    flags = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
    # XLA aborts on a flag that it does not know, and jaxlib 0.11 no longer knows this one.
    if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    return " ".join(flags)


os.environ.setdefault("XLA_FLAGS", _quick_to_compile())
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _quiet_log():
    """Commands that earlier tests called print the trainer's log on standard output; a test's output is its own."""
    logger = logging.getLogger("train")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


def pytest_collection_finish():
    """Modules and tests stay for good: to walk them again and again while JAX traces takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


_trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)  # glibc's


# Compiled programs take 10 MB and 90 memory maps each, of which a process may have 65,530: a worker that keeps them all
# grows to 5 GB, or ends in a crash. To forget them takes time, and so does what modules share and then compile anew.
MOST_BYTES = {"module": 1.5 * 2**30, "test": 2.5 * 2**30}


@pytest.fixture(autouse=True)
def _a_worker_stays_small():
    yield
    _forget_programs("test")


@pytest.fixture(autouse=True, scope="module")
def _a_worker_becomes_small():
    yield
    _forget_programs("module")


def _forget_programs(after: str) -> None:
    if "jax" in sys.modules and psutil.Process().memory_info().rss > MOST_BYTES[after]:
        sys.modules["jax"].clear_caches()
        _trim(0)
