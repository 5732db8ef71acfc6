"""JAX against PyTorch, both judged by a float64 run of the same computation.

The only place that imports both frameworks. ``python -m parity_tests`` prints every comparison.
"""

from train.terminal import loading

loading.begins(__name__)
