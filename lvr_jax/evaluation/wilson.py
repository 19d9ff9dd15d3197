"""Wilson's score interval of a proportion.

Not statsmodels', which gives the same numbers: with pandas it takes longer to import than an evaluation's own modules.
"""

import numpy as np
from scipy.special import ndtri


def limits(successes, n, level: float = 0.95):
    """(low, high) of shares successes / n, floats or arrays of one shape (Wilson, JASA 22:209, 1927)."""
    share, z = np.asarray(successes, float) / n, -ndtri((1 - level) / 2)
    denominator = 1 + z**2 / n
    centre = (share + z**2 / (2 * n)) / denominator
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / denominator
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)
