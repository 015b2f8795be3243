"""Hashes of text that are the same on every machine and in every version: for hashed id spaces and for partitions."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa


def hashes(texts: pa.Array, seed: int = 0) -> np.ndarray:
    """64 bits of each text: the first eight bytes of md5 of ``<seed>:<text>``, little-endian. Shape: (n,) uint64.

    md5 for its stability, not for secrecy. A microsecond a text: hash distinct values, not rows.
    """
    prefix = f"{seed}:".encode()
    digests = b"".join(
        hashlib.md5(prefix + text.encode("utf-8", "surrogateescape"), usedforsecurity=False).digest()[:8]
        for text in texts.to_pylist()
    )
    return np.frombuffer(digests, "<u8")


def hashed_ids(texts: pa.Array, num_embeddings: int, seed: int) -> np.ndarray:
    """Ids 1 to num_embeddings - 1; 0 stays "unknown", which no text is. Shape: (n,) int32."""
    ids: np.ndarray = (hashes(texts, seed) % np.uint64(num_embeddings - 1)).astype(np.int32) + 1
    return ids


def partition_of(texts: pa.Array, num_partitions: int) -> np.ndarray:
    """The partition of each user (or of each row's number, where there are no users). Shape: (n,) int32."""
    # The high bits, and no seed: a hashed id space says nothing about the partition.
    return ((hashes(texts) >> np.uint64(32)) % np.uint64(num_partitions)).astype(np.int32)
