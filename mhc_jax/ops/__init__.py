"""Pure functions of arrays: no modules, no configuration objects. The unit of parity.

Names carry shapes: B batch, T time, N streams, D width, R adapter rank, K kernel taps or head dim,
V vocabulary, L layers, C chunks.
"""
