"""Power of paired comparisons; the unit is a seed, and effects are in standard deviations of the differences."""

from bisect import bisect_left

import numpy as np
from scipy import optimize, stats

from lrkd.errors import ConfigError, check_inside


def power(d_z: float, n: int, alpha: float = 0.05) -> float:
    """Compute the power of the two-sided paired t test, by scipy's noncentral t.

    Args:
        d_z: The true mean difference over the differences' standard deviation; nan, unknown, has power nan.
        n: Seeds, 2 or more.
        alpha: The level.

    Raises:
        ConfigError: `n` is below 2, or `alpha` outside (0,.5).
    """
    check_inside("alpha", alpha, 0, 0.5)
    if not n > 1:
        raise ConfigError(f"n: expected a whole number of at least 2, got {n}")
    limit, shift = stats.t.ppf(1 - alpha / 2, n - 1), abs(d_z) * np.sqrt(n)
    if not np.isfinite(shift):
        return 1.0 if np.isinf(shift) else np.nan
    # The far tail is below 3e-7 beyond 5, where scipy's may be nan, and so statsmodels' TTestPower, which adds it.
    wrong = stats.nct.cdf(-limit, n - 1, shift) if shift < 5 else 0.0
    return float(stats.nct.sf(limit, n - 1, shift) + wrong)


def seeds_needed(d_z: float, target: float = 0.8, alpha: float = 0.05, most: int = 100_000) -> float:
    """Find the least number of seeds that detects a true d_z with power `target`.

    Returns:
        2 or more; inf beyond `most`, nan for a d_z of nan.

    Raises:
        ConfigError: `target` is outside (0,1); also as `power`.
    """
    check_inside("target", target, 0, 1)
    if np.isnan(d_z):
        return np.nan
    counts = range(2, most + 1)
    place = bisect_left(counts, target, key=lambda n: power(d_z, n, alpha))
    return float(counts[place]) if place < len(counts) else np.inf


def detectable(n: int, target: float = 0.8, alpha: float = 0.05) -> float:
    """Find the least true d_z that n seeds detect with power `target`; times the differences' sd it is an effect.

    Raises:
        ConfigError: `target` is outside (alpha,1), where alpha is what no effect at all reaches; also as `power`.
    """
    check_inside("target", target, alpha, 1)
    return float(optimize.brentq(lambda d: power(d, n, alpha) - target, 1e-6, 1e3, xtol=1e-9))
