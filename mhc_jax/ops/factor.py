"""Codes of parallel streams on fixed matrices of rank one, as in the published factorised cache of SHC."""

from jaxtyping import Array, Float

from mhc_jax.ops.streams import Streams


def compress(h: Streams, u_NR: Float[Array, "N R"], v_DR: Float[Array, "D R"]) -> Float[Array, "*B R"]:
    """``code_r = sum_{i, d} U[i, r] h[i, d] V[d, r]``: inner products with the matrices ``U_r V_r^T``."""
    return h.each(lambda x, u_R: u_R * (x @ v_DR), u_NR).total()


def decompress(code_BTR: Float[Array, "*B R"], u_NR: Float[Array, "N R"], v_DR: Float[Array, "D R"]) -> Streams:
    """``h[i] = sum_r code_r U[i, r] V_r``: undoes :func:`compress` for streams in the span of orthonormal matrices."""
    return Streams(tuple((code_BTR * u_R) @ v_DR.T for u_R in u_NR))
