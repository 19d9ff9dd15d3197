"""Refuses weights with NaN or infinity while they are read, by name and place."""

from collections.abc import Sequence

import numpy as np

from lvr_jax.checkpoints.errors import CheckpointError

_VALUES = 2**17         # looked at in one go: they stay in the processor's cache


def finite(x: np.ndarray, where: str, start: Sequence[int] = ()) -> np.ndarray:
    """x as it is. Raises CheckpointError naming `where` if a value is NaN or infinite.

    start: place of x's first value in the whole array. A value is not finite if all bits of its exponent are set: as an
    integer without its sign it is then at least infinity, which is looked for many times faster than by isfinite.
    """
    bits = np.dtype(f"u{x.dtype.itemsize}")
    limit = 2 * int(np.array(np.inf, x.dtype).view(bits)) & (2 ** (8 * bits.itemsize) - 1)
    rows = x.reshape(len(x), -1) if x.ndim and x.size else x.reshape(-1, 1)
    step = max(_VALUES // max(rows.shape[1], 1), 1)
    for first in range(0, len(rows), step):
        block = rows[first : first + step]
        if block.size and int(np.left_shift(block.view(bits), 1).max()) >= limit:
            with np.errstate(invalid="ignore"):
                here = np.unravel_index(np.flatnonzero(~np.isfinite(x))[0], x.shape)
            place = [int(a + b) for a, b in zip(here, start or [0] * x.ndim)]
            raise CheckpointError(f"{where} holds {x[here]} at {place}, expected finite numbers")
    return x
