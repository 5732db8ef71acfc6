"""Ends of the residual streams, one kind a file."""

from torch_ref.nn.ends.base import StreamEnds
from torch_ref.nn.ends.copy_ends import CopyEnds
from torch_ref.nn.ends.dense_ends import DenseEnds
from torch_ref.nn.ends.identity_ends import IdentityEnds

__all__ = ["CopyEnds", "DenseEnds", "IdentityEnds", "StreamEnds"]
