"""Programs on several virtual devices, which take a process of their own."""

import os
import subprocess
import sys
from pathlib import Path


def run_on_devices(program: str, devices: int) -> None:
    """Runs Python code where JAX sees that many CPU devices; its failure is one of the test."""
    flags = f"--xla_force_host_platform_device_count={devices} {os.environ.get('XLA_FLAGS', '')}"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
