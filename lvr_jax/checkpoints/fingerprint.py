"""Computes a fingerprint of all weights, by which results of one checkpoint are told from another's.

Every value of every parameter counts, with a weight of its own by its place. Sums of integers do not depend on order,
so the number is the same however the parameters are cut over devices and hosts.
"""

from __future__ import annotations

import hashlib
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lvr_jax.checkpoints.orbax_io import flat

_ROWS = 2**20        # values that the host sums at a time


def fingerprint(params: dict) -> int:
    """48 bits of the parameters' values as they are held (bfloat16 counts as the fp32 of the same value)."""
    arrays = flat(params)
    on_host = {path: x for path, x in arrays.items() if not isinstance(x, jax.Array) or _on_cpu(x)}
    sums = {path: int(_host_sum(np.asarray(x))) for path, x in on_host.items()}
    if on_device := {path: x for path, x in arrays.items() if path not in on_host}:
        sums |= {path: int(np.asarray(x)) for path, x in _device_sums(on_device).items()}
    text = json.dumps([{path: list(np.shape(x)) for path, x in arrays.items()}, sums], sort_keys=True)
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)


def _on_cpu(x: jax.Array) -> bool:
    """Whether the host can read it as it lies, which needs no program."""
    return x.is_fully_addressable and next(iter(x.devices())).platform == "cpu"


# A tensor's sum: the values' bits, mixed, times an odd number for each index of the last axis, summed modulo 2^32; what
# that leaves in the same way over the axis before, and so on.

def _odd(xp, axis: int, size: int):
    place = (xp.arange(size, dtype=xp.uint32) + xp.uint32(axis + 1)) * xp.uint32(0x9E3779B1)
    return (place ^ (place >> 15)) | xp.uint32(1)


def _summed(xp, bits, axis: int):
    return xp.sum((bits ^ (bits >> 15)) * _odd(xp, axis, bits.shape[axis]), axis=axis, dtype=xp.uint32)


@jax.jit
def _device_sums(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    def one(x):
        sums = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
        for axis in reversed(range(x.ndim)):
            sums = _summed(jnp, sums, axis)
        return sums

    return {path: one(x) for path, x in params.items()}


def _host_sum(x: np.ndarray) -> np.uint32:
    width = x.shape[-1] if x.ndim else 1
    rows = x.reshape(-1, width)
    step = max(_ROWS // max(width, 1), 1)
    weights = _odd(np, max(x.ndim - 1, 0), width)
    sums: np.ndarray = np.empty(len(rows), np.uint32)
    for start in range(0, len(rows), step):
        bits = _bits(rows[start : start + step])
        bits ^= bits >> 15
        bits *= weights
        sums[start : start + step] = bits.sum(1, dtype=np.uint32)
    sums = sums.reshape(x.shape[:-1])
    for axis in reversed(range(x.ndim - 1)):
        sums = _summed(np, sums, axis)
    return np.uint32(sums)


def _bits(x: np.ndarray) -> np.ndarray:
    """A new array: a bfloat16 is the first half of the fp32 of its value."""
    if x.dtype == ml_dtypes.bfloat16:
        return np.left_shift(np.ascontiguousarray(x).view(np.uint16), 16, dtype=np.uint32)
    return np.array(x, np.float32, order="C").view(np.uint32)
