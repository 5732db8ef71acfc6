"""The linear map of RLM-mHC's mHC layer, in two forms of the same mathematics."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def flows(
    x_BTD: Float[Array, "B T D"],
    expand_DM: Float[Array, "D M"],
    contract_MD: Float[Array, "M D"],
    mixing_NN: Float[Array, "N N"],
) -> Float[Array, "B T D"]:
    """``y = sum_i (sum_j P[i, j] x E_j) C_i``, where E_j and C_i are the n parts of both matrices (M = n D).

    Products are those of the dtype of ``x_BTD``; the flows are mixed in that of ``mixing_NN`` or wider.
    """
    B, T, D = x_BTD.shape
    flow_BTND = (x_BTD @ expand_DM.astype(x_BTD.dtype)).reshape(B, T, -1, D)
    mixed_BTND = jnp.einsum("ij,btjd->btid", mixing_NN, flow_BTND, preferred_element_type=mixing_NN.dtype)
    return mixed_BTND.astype(x_BTD.dtype).reshape(B, T, -1) @ contract_MD.astype(x_BTD.dtype)


def folded(
    x_BTD: Float[Array, "B T D"],
    expand_DM: Float[Array, "D M"],
    contract_MD: Float[Array, "M D"],
    mixing_NN: Float[Array, "N N"],
) -> Float[Array, "B T D"]:
    """:func:`flows` with its matrices multiplied first."""
    map_DD = fold(expand_DM.astype(x_BTD.dtype), contract_MD.astype(x_BTD.dtype), mixing_NN)
    return x_BTD @ map_DD.astype(x_BTD.dtype)


def fold(
    expand_DM: Float[Array, "D M"], contract_MD: Float[Array, "M D"], mixing_NN: Float[Array, "N N"]
) -> Float[Array, "D D"]:
    """``sum_ij P[i, j] E_j C_i``, in the dtype of ``mixing_NN``: the map by which :func:`flows` multiplies rows."""
    D, dtype = len(expand_DM), mixing_NN.dtype
    mixed = jnp.einsum("ij,djk->dik", mixing_NN, expand_DM.reshape(D, -1, D), preferred_element_type=dtype)
    return jnp.matmul(mixed.reshape(D, -1).astype(expand_DM.dtype), contract_MD, preferred_element_type=dtype)
