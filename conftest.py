"""Shared set-up of all tests: CPU, one thread of torch, a compile cache that the workers share."""

import logging
import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Compiles four times as fast; `python -m parity_tests` runs the same comparisons fully optimised.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _quiet_log():
    """Commands that earlier tests called print the trainer's log on standard output; a test's output is its own."""
    logger = logging.getLogger("train")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_end_with_their_module():
    """Each takes memory maps, of which a process may have 65,530: a worker that keeps them all ends in a crash."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
