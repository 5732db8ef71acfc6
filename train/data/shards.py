"""Token shards, the files of nanoGPT speed runs: a header and the ids of GPT-2's tokens.

A file holds 256 int32, which are MAGIC, VERSION, the number of tokens and zeros, and then that many uint16, all
little-endian.
"""

from pathlib import Path

import numpy as np

from train.data.errors import DataError
from train.data.files import replacing

MAGIC = 20240520
VERSION = 1
HEADER = np.dtype(("<i4", 256))
TOKEN = np.dtype("<u2")


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Writes a shard, which appears under its name only when it is complete.

    Args:
        path: path of the file.
        tokens: 1-D array of uint16; at least one and fewer than 2^31.

    Raises:
        ValueError: other tokens.
    """
    if tokens.ndim != 1 or tokens.dtype != np.uint16 or not 0 < len(tokens) < 2**31:
        raise ValueError(f"a shard holds 1 to 2^31 - 1 uint16, not {tokens.dtype} of shape {tokens.shape}")
    header = np.zeros(HEADER.shape, HEADER.base)
    header[:3] = MAGIC, VERSION, len(tokens)
    with replacing(path) as file:
        file.write(header.tobytes())
        file.write(np.ascontiguousarray(tokens, TOKEN).data)


def read_shard(path: Path) -> np.ndarray:
    """The tokens of a shard: uint16, a read-only memory map. Only the header is read, so ids are not checked.

    Raises:
        DataError: it is missing or no shard, of another version, empty, cut short, or longer than its header says.
    """
    try:
        size = path.stat().st_size
        header = np.fromfile(path, HEADER.base, HEADER.shape[0])
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None
    if size < HEADER.itemsize:
        raise DataError(f"{path} is no token shard: its {size} bytes are not even a header of {HEADER.itemsize}")
    magic, version, count = header[:3].tolist()
    if magic != MAGIC:
        raise DataError(f"{path} is no token shard: it starts with {magic}, not {MAGIC}")
    if version != VERSION:
        raise DataError(f"{path} is a token shard of version {version}; only version {VERSION} can be read")
    payload = size - HEADER.itemsize
    if payload != count * TOKEN.itemsize:
        fault = "is cut short" if payload < count * TOKEN.itemsize else "is too long"
        raise DataError(
            f"{path} {fault}: its header says {count} tokens, which take {count * TOKEN.itemsize} bytes, "
            f"and {payload} follow; prepare or download it again"
        )
    if count == 0:
        raise DataError(f"{path} holds no tokens; prepare or download it again")
    return np.memmap(path, TOKEN, mode="r", offset=HEADER.itemsize, shape=(count,))
