"""Pure functions of tensors, with the names, arguments and orientations of ``mhc_jax.ops``.

Names carry shapes: B batch, T time, N streams, D width, R adapter rank, K kernel taps, V vocabulary.
"""
