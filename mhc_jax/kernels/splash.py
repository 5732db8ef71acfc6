"""Flash attention on TPUs: Pallas' splash attention, whose memory grows with the length and not with its square."""

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from mhc_jax.kernels.interpretation import is_interpreted
from mhc_jax.kernels.sharding import axes, by_device

# The kernel works on tiles of whole lanes; tiles of 512 tokens are the fastest that fit its memory.
LANES, TILES = 128, (512, 256, 128)
# Of the tokens that fill the last tile; no segment has it.
PADDING = jnp.iinfo(jnp.int32).min


def splash_attention(
    q_BTHK: Float[Array, "B T H K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTGV: Float[Array, "B T G V"],
    *,
    scale: float | None = None,
    causal: bool = True,
    segment_ids: Int[Array, "B T"] | None = None,
    batch_sharding: jax.sharding.Sharding | None = None,
) -> Float[Array, "B T H V"]:
    """:func:`mhc_jax.ops.attention.causal_attention` of whole sequences, scores and sums in float32.

    Sequences are padded to whole tiles. Off a TPU the kernel is interpreted, which is slow.

    Args:
        batch_sharding: sharding of arrays (B, ...) on several devices, each of which then attends to its own rows. The
            mesh's other axes slice the heads where they divide them.

    Raises:
        ValueError: another dtype than float32 and bfloat16.
    """
    if q_BTHK.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"splash attention computes in float32 or bfloat16, not {q_BTHK.dtype}; use 'xla'")
    if not q_BTHK.size:  # the kernel has no empty grid
        return jnp.zeros((*q_BTHK.shape[:3], v_BTGV.shape[-1]), q_BTHK.dtype)
    B, T = q_BTHK.shape[:2]
    scale = q_BTHK.shape[-1] ** -0.5 if scale is None else scale
    after = -T % LANES
    if segment_ids is None and after and not causal:
        segment_ids = jnp.zeros((B, T), jnp.int32)
    q, k, v = (jnp.pad(x, ((0, 0), (0, after), (0, 0), (0, 0))) for x in (q_BTHK, k_BTGK, v_BTGV))
    arguments = [q, k, v]
    if segment_ids is not None:
        arguments.append(jnp.pad(segment_ids.astype(jnp.int32), ((0, 0), (0, after)), constant_values=PADDING))

    def attend(*arguments):
        return _attend(*arguments, scale=scale, causal=causal)

    return _sliced(attend, batch_sharding, [x.shape for x in arguments])(*arguments)[:, :T]


def _attend(q_BTHK, k_BTGK, v_BTGV, segment_ids_BT=None, *, scale, causal):
    """What one device does: sequences of whole tiles."""
    T, H = q_BTHK.shape[1:3]
    tile = next(tile for tile in TILES if T % tile == 0)
    mask = masks.CausalMask((T, T)) if causal else masks.FullMask((T, T))
    attend = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * H),
        block_sizes=splash.BlockSizes(
            block_q=tile,
            block_kv=tile,
            block_kv_compute=tile,
            block_q_dkv=tile,
            block_kv_dkv=tile,
            block_kv_dkv_compute=tile,
            block_q_dq=tile,
            block_kv_dq=tile,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=is_interpreted(),
    )
    scaled = (q_BTHK.astype(jnp.float32) * scale).astype(q_BTHK.dtype)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (scaled, k_BTGK, v_BTGV))
    if segment_ids_BT is None:
        y_BHTV = jax.vmap(attend)(q, k, v)
    else:
        segments = splash.SegmentIds(segment_ids_BT, segment_ids_BT)
        y_BHTV = jax.vmap(attend)(q, k, v, segment_ids=segments)
    return jnp.swapaxes(y_BHTV, 1, 2).astype(q_BTHK.dtype)


def _sliced(attend, batch_sharding, shapes):
    """``attend`` on the rows and heads of each device."""
    rows, others = axes(batch_sharding)
    devices = math.prod(others.values())
    heads = tuple(others) if all(shape[2] % devices == 0 for shape in shapes[:3]) else None
    specs = [PartitionSpec(rows, None, heads) if len(shape) == 4 else PartitionSpec(rows) for shape in shapes]
    return by_device(attend, batch_sharding, tuple(specs), specs[0])
