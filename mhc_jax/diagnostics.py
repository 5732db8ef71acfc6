"""Statistics of a model's residual streams, from the taps of one forward pass.

Sites are counted through depth: the mixer of layer 0, its channel mixer if blocks have one, the mixer of layer 1, and
so on. S is the number of sites. Coefficients are those of every token, (S, B, T, ...), or, where all tokens of a row
or of all rows share them, (S, B, 1, ...) or (S, 1, 1, ...).
"""

import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mhc_jax.nn.backbone import SITES, BackboneConfig
from mhc_jax.ops.streams import split_streams

COEFFICIENTS = ("h_pre", "h_post", "h_res")
# What a site of the published SHC mixes with is tapped here; its reads and writes are matrices, too, and left out.
PUBLISHED = "blocks.routing."
# Weights of the components that a route mixes.
ROUTES = ("pre", "res", "post")
# Tokens whose matrices are decomposed, and rotations of every pair of columns in doing so.
SAMPLE, SWEEPS = 256, 8


def site_names(config: BackboneConfig) -> list[str]:
    """``["0 mixer", "0 mlp", "1 mixer", ...]``."""
    return [f"{layer} {kind}" for layer in range(config.layers) for kind in config.sites]


def statistics(
    taps: Mapping[str, jax.Array], mask_BT: Bool[Array, "B T"] | None = None, *, under: str = ""
) -> dict[str, jax.Array]:
    """Every quantity by name, site by site: (S,) unless noted.

    - ``h_pre``, ``h_post`` (S, ...) and ``h_res`` (S, N, N) as they act, averaged over tokens;
    - those of :func:`mixing`, :func:`composite_gains`, :func:`singular_values` and, where streams last from site to
      site, of :func:`stream_geometry`;
    - those of :func:`routing` where sites tap the weights ``alpha_...`` of the components that they mix, and of
      :func:`ranks` where they tap the number ``rank`` of streams that a token keeps.

    A site that reads or writes without tapping ``h_pre`` or ``h_post`` lacks that entry; one that does not tap
    ``h_res`` keeps every stream as it is, and counts as the identity.

    Args:
        taps: the taps that :func:`mhc_jax.apply` returns with ``taps=True``.
        mask_BT: true for tokens that count, :meth:`mhc_jax.nn.model.ModelConfig.layer_mask` of them where layers run
            over other rows than the model; all if omitted.
        under: prefix of the names, ``layers_under`` of the model's configuration.

    Returns:
        An empty dict for a plain residual, which has no streams.
    """
    taps = {name.removeprefix(under): x for name, x in taps.items() if name.startswith(under)}
    coefficients = _coefficients(taps)
    if not coefficients:
        return {}
    states = [_streams(taps[f"blocks.{kind}.state"], coefficients) for kind in _kinds(taps)]
    geometry = [stream_geometry(state, mask_BT) for state in states]
    if "h_res" not in coefficients:
        sites, n = len(states) * len(states[0]), states[0].shape[-2]
        coefficients["h_res"] = jnp.broadcast_to(jnp.eye(n, dtype=states[0].dtype), (sites, 1, 1, n, n))
    h_res, alphas, rank = coefficients["h_res"], _alphas(taps), _rank(taps)
    return {
        **{name: _mean(x, mask_BT) for name, x in coefficients.items()},
        **mixing(h_res, mask_BT),
        **composite_gains(h_res, mask_BT),
        **singular_values(h_res, mask_BT),
        **({} if alphas is None else routing(alphas, mask_BT)),
        **({} if rank is None else ranks(rank, h_res.shape[-1], mask_BT)),
        **({name: _through_depth([of_kind[name] for of_kind in geometry]) for name in geometry[0]} if geometry else {}),
    }


def mixing(h_res: Float[Array, "S B T N N"], mask_BT: Bool[Array, "B T"] | None = None) -> dict[str, jax.Array]:
    """Statistics of H_res at each site, (S,) each.

    - ``row_sum_min``, ``row_sum_max``, ``row_sum_mean``, and ``column_sum_...``: over rows and tokens;
    - ``row_sum_error``, ``column_sum_error``: the greatest distance of a sum from 1;
    - ``entropy``: of the shares ``|H_ij| / sum_j |H_ij|`` that source streams have in a destination stream, over ln N;
      mean over rows and tokens. 0 if every stream has a single source, 1 if all sources weigh the same. For
      non-negative rows that sum to one this is the entropy of the row itself; signs do not matter;
    - ``identity_distance``: ``|H - I| / |I|`` in the Frobenius norm; mean over tokens;
    - ``min_entry``: over tokens.
    """
    n = h_res.shape[-1]
    found = {}
    for name, axis in (("row_sum", -1), ("column_sum", -2)):
        sums = h_res.sum(axis)
        least, most = _extremes(sums, mask_BT)
        found |= {f"{name}_min": least, f"{name}_max": most, f"{name}_mean": _mean(sums.mean(-1), mask_BT)}
        found[f"{name}_error"] = jnp.maximum(jnp.abs(least - 1), jnp.abs(most - 1))
    size = jnp.abs(h_res)
    share = _ratio(size, size.sum(-1, keepdims=True))
    entropy = jax.scipy.special.entr(share).sum(-1).mean(-1) / jnp.log(max(n, 2))
    distance = jnp.linalg.norm(h_res - jnp.eye(n, dtype=h_res.dtype), axis=(-2, -1)) / jnp.sqrt(n)
    return {
        **found,
        "entropy": _mean(entropy, mask_BT),
        "identity_distance": _mean(distance, mask_BT),
        "min_entry": _extremes(h_res, mask_BT)[0],
    }


def composite_gains(
    h_res: Float[Array, "S B T N N"], mask_BT: Bool[Array, "B T"] | None = None
) -> dict[str, jax.Array]:
    """``forward_gain`` and ``backward_gain``, (S,), of all mixing up to and including each site.

    DeepSeek's Amax gain: the greatest absolute row sum (forward) and column sum (backward) of ``H_s ... H_1 H_0``; the
    product is taken for every token, the mean over tokens last. 1 where mixing neither amplifies nor attenuates. Sums
    are taken before the absolute value, as in the paper, so that terms of opposite sign cancel.
    """

    def deeper(product, h):
        product = jnp.matmul(h, product, precision="highest")
        gains = [jnp.abs(product.sum(axis)).max(-1) for axis in (-1, -2)]
        return product, [_mean(gain[None], mask_BT)[0] for gain in gains]

    start = jnp.broadcast_to(jnp.eye(h_res.shape[-1], dtype=h_res.dtype), h_res.shape[1:])
    _, (forward, backward) = jax.lax.scan(deeper, start, h_res)
    return {"forward_gain": forward, "backward_gain": backward}


def singular_values(
    h_res: Float[Array, "S B T N N"], mask_BT: Bool[Array, "B T"] | None = None
) -> dict[str, jax.Array]:
    """Extremes over tokens of the singular values of H_res and of all mixing so far, (S,) each.

    - ``singular_max``, ``singular_min``: of H_res at each site, by which it can lengthen or shorten a vector;
    - ``composite_max``, ``composite_min``: of the product ``H_s ... H_1 H_0`` of each token. In float32 a least value
      below about 1e-7 of the largest one is rounding.

    Matrices that differ by token are decomposed for about :data:`SAMPLE` tokens, at equal distances in each row.
    """
    step = -(-h_res.shape[1] * h_res.shape[2] // SAMPLE)
    h_res, mask_BT = h_res[:, :, ::step], None if mask_BT is None else mask_BT[:, ::step]

    def deeper(product, h):
        product = jnp.matmul(h, product, precision="highest")
        return product, product

    start = jnp.broadcast_to(jnp.eye(h_res.shape[-1], dtype=h_res.dtype), h_res.shape[1:])
    found = {}
    for name, matrices in (("singular", h_res), ("composite", jax.lax.scan(deeper, start, h_res)[1])):
        least, most = _extremes(_jacobi(matrices), mask_BT)
        found |= {f"{name}_max": most, f"{name}_min": least}
    return found


def _jacobi(x_NN: Float[Array, "*B N N"]) -> Float[Array, "*B N"]:
    """Singular values in no order, by one-sided Jacobi rotations: until all columns are orthogonal, two at a time.

    The decomposition in ``jnp.linalg`` takes minutes to compile for a TPU.
    """
    pairs = jnp.asarray([*itertools.combinations(range(x_NN.shape[-1]), 2)] or [(0, 0)])

    def rotate(step, x_NN):
        i, j = pairs[step % len(pairs)]
        a, b = (jax.lax.dynamic_index_in_dim(x_NN, k, -1, keepdims=False) for k in (i, j))
        overlap, excess = (a * b).sum(-1), (b * b).sum(-1) - (a * a).sum(-1)
        sign = jnp.where(excess * overlap < 0, -1, 1)
        tangent = _ratio(2 * sign * jnp.abs(overlap), jnp.abs(excess) + jnp.hypot(excess, 2 * overlap))
        cosine = jax.lax.rsqrt(1 + tangent * tangent)[..., None]
        sine = tangent[..., None] * cosine
        for k, column in ((i, cosine * a - sine * b), (j, sine * a + cosine * b)):
            x_NN = jax.lax.dynamic_update_index_in_dim(x_NN, column, k, -1)
        return x_NN

    steps = SWEEPS * len(pairs) if x_NN.shape[-1] > 1 else 0
    return jnp.linalg.norm(jax.lax.fori_loop(0, steps, rotate, x_NN), axis=-2)


def routing(alpha: Float[Array, "S B T R C"], mask_BT: Bool[Array, "B T"] | None = None) -> dict[str, jax.Array]:
    """How R routes of a site weigh their C components.

    - ``component_share`` (S, R, C): mean weight of every component over tokens;
    - ``routing_entropy`` (S,): of a token's weights over ln C; mean over tokens and routes. 0 where a token takes one
      component, 1 where it takes all of them alike;
    - ``components_used`` (S,): the exponential of the entropy of ``component_share``, mean over routes: 1 if all tokens
      take the same component, C if all components serve equally.
    """
    components = alpha.shape[-1]
    entropy = jax.scipy.special.entr(alpha).sum(-1).mean(-1) / jnp.log(max(components, 2))
    share = _mean(alpha, mask_BT)
    return {
        "component_share": share,
        "routing_entropy": _mean(entropy, mask_BT),
        "components_used": jnp.exp(jax.scipy.special.entr(share).sum(-1)).mean(-1),
    }


def ranks(rank: Float[Array, "S B T"], streams: int, mask_BT: Bool[Array, "B T"] | None = None) -> dict[str, jax.Array]:
    """The number of streams that tokens keep: its mean ``rank`` (S,), and ``rank_share`` (S, N), the share of tokens
    that keep 1, 2, ... N of them."""
    kept = jnp.round(rank)[..., None] == jnp.arange(1, streams + 1)
    return {"rank": _mean(rank, mask_BT), "rank_share": _mean(kept.astype(rank.dtype), mask_BT)}


def stream_geometry(
    state: Float[Array, "S B T N D"], mask_BT: Bool[Array, "B T"] | None = None
) -> dict[str, jax.Array]:
    """Measures of how much the streams of a token differ, (S,) each, mean over tokens.

    - ``stream_cosine``: mean cosine between two different streams; 1 with one stream;
    - ``effective_streams``: participation ratio ``(sum l)^2 / sum l^2`` of the squared singular values l of the N
      streams: 1 if all are multiples of one vector, N if they are orthogonal and of equal length.
    """
    n = state.shape[-2]
    gram = jnp.einsum("...nd,...md->...nm", state, state, precision="highest")
    norm = jnp.sqrt(jnp.diagonal(gram, axis1=-2, axis2=-1))
    cosine = _ratio(gram, norm[..., :, None] * norm[..., None, :])
    pairs = (
        jnp.sum(jnp.where(jnp.eye(n), 0, cosine), (-2, -1)) / (n * (n - 1)) if n > 1 else jnp.ones_like(norm[..., 0])
    )
    # (sum l)^2 / sum l^2 without eigenvalues, from the Gram matrix of trace 1; its square norm is at least 1/n.
    unit = _ratio(gram, jnp.square(norm).sum(-1)[..., None, None])
    effective = 1 / jnp.maximum(jnp.square(unit).sum((-2, -1)), 1 / n)
    return {"stream_cosine": _mean(pairs, mask_BT), "effective_streams": _mean(effective, mask_BT)}


def _kinds(taps: Mapping[str, jax.Array]) -> list[str]:
    """Kinds of sites in a block, in the order in which they run."""
    return [kind for kind in SITES if f"blocks.{kind}.state" in taps]


def _through_depth(of_kinds: Sequence[jax.Array]) -> jax.Array:
    """(S, ...) from (L, ...) for each kind of site."""
    return jnp.stack(of_kinds, axis=1).reshape(-1, *of_kinds[0].shape[1:])


def _coefficients(taps: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The tapped coefficients, (S, B, T, ...), (S, B, 1, ...) or (S, 1, 1, ...)."""
    if f"{PUBLISHED}h_res" in taps:
        return {"h_res": taps[f"{PUBLISHED}h_res"][:, :, None]}
    found = {}
    for name in COEFFICIENTS:
        x = _of_sites(taps, name)
        if x is not None:
            tokens = taps[f"blocks.{_kinds(taps)[0]}.state"].shape[1:3]
            # H_res is a matrix in every topology; the others are told apart by their shapes.
            dynamic = x.ndim == 5 if name == "h_res" else x.ndim > 3 and x.shape[1:3] == tokens
            found[name] = x if dynamic else x[:, None, None]
    return found


def _alphas(taps: Mapping[str, jax.Array]) -> jax.Array | None:
    """Weights of the components of all routes, (S, B, T, R, C) or (S, B, 1, R, C)."""
    if f"{PUBLISHED}alpha_res" in taps:
        return jnp.stack([taps[f"{PUBLISHED}alpha_{route}"] for route in ROUTES], axis=-2)[:, :, None]
    found = [_of_sites(taps, f"alpha_{route}") for route in ROUTES]
    return None if found[0] is None else jnp.stack(found, axis=-2)


def _rank(taps: Mapping[str, jax.Array]) -> jax.Array | None:
    """The number of streams, (S, B, T) or (S, 1, 1)."""
    if "blocks.rank" in taps:
        return taps["blocks.rank"][:, None, None]
    return _of_sites(taps, "rank")


def _of_sites(taps: Mapping[str, jax.Array], name: str) -> jax.Array | None:
    """What the topology of every site taps under that name, (S, ...); None if it does not."""
    of_kinds = [taps.get(f"blocks.{kind}.residual.{name}") for kind in _kinds(taps)]
    return _through_depth(of_kinds) if of_kinds and of_kinds[0] is not None else None


def _streams(state: jax.Array, coefficients: Mapping[str, jax.Array]) -> jax.Array:
    """(L, B, T, N, D), at least float32; streams of a state without them are the fractions of its width that H_res
    mixes."""
    state = state.astype(jnp.promote_types(state.dtype, jnp.float32))
    if state.ndim == 5:
        return state
    return split_streams(state, coefficients["h_res"].shape[-1] if "h_res" in coefficients else 1).stack()


def _ratio(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x / y``, 0 where y is 0."""
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), 0)


def _mean(x: jax.Array, mask_BT: jax.Array | None) -> jax.Array:
    """Mean of (S, B, T, ...) over the tokens that count, (S, ...)."""
    if mask_BT is None or x.shape[1:3] == (1, 1):
        return x.mean((1, 2))
    mask = mask_BT.reshape(mask_BT.shape + (1,) * (x.ndim - 3))
    return jnp.where(mask, x, 0).sum((1, 2)) / mask.sum()


def _extremes(x: jax.Array, mask_BT: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Least and greatest value of each site over all axes, among tokens that count."""
    mask = True if mask_BT is None or x.shape[1:3] == (1, 1) else mask_BT.reshape(mask_BT.shape + (1,) * (x.ndim - 3))
    axes = tuple(range(1, x.ndim))
    return jnp.where(mask, x, jnp.inf).min(axes), jnp.where(mask, x, -jnp.inf).max(axes)
