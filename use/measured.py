"""Numbers with what chance leaves open of them."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

RESAMPLES = 500
NORMAL = 1.96  # standard errors to either side, between which 95 % lie


class Measured(NamedTuple):
    """A number that was measured.

    Attributes:
        error: its standard error, and NaN where one thing alone was measured.
        low, high: 95 % interval.
        count: of what it is the mean, or over which it was measured.
    """

    value: float
    error: float
    low: float
    high: float
    count: int


def measured(value: float, error: float, count: int) -> Measured:
    """With the interval of a normal distribution."""
    half = NORMAL * error
    return Measured(value, error, value - half, value + half, count)


def mean(values: Float64[np.ndarray, " N"]) -> Measured:
    """Of independent ones."""
    size = len(values)
    error = values.std(ddof=1) / math.sqrt(size) if size > 1 else math.nan
    return measured(float(values.mean()), float(error), size)


def mean_of(parts: Sequence[Measured]) -> Measured:
    """Each counts the same; the error is that of what was measured in each of them."""
    error = math.sqrt(sum(part.error**2 for part in parts)) / len(parts)
    value = sum(part.value for part in parts) / len(parts)
    return measured(value, error, sum(part.count for part in parts))


def ratio(sums: Float64[np.ndarray, " N"], sizes: Int64[np.ndarray, " N"]) -> Measured:
    """sum(sums) / sum(sizes), over independent stretches (Cochran 1977, 6.3)."""
    count, total = len(sums), sizes.sum()
    value = sums.sum() / total
    error = math.nan
    if count > 1:
        spread = ((sums - value * sizes) ** 2).sum() * count / (count - 1)
        error = math.sqrt(spread) / total
    return measured(float(value), float(error), int(total))


def bootstrap(
    measure: Callable[[Int64[np.ndarray, " N"]], dict[str, float]],
    size: int,
) -> dict[str, Measured]:
    """Metrics over `size` records, with percentile intervals (Efron 1979).

    Args:
        measure: (numbers of records, some twice) -> value by name.
    """
    draw = np.random.default_rng(0)
    again = [measure(draw.integers(size, size=size)) for _ in range(RESAMPLES)]
    found = {}
    for name, value in measure(np.arange(size)).items():
        drawn = np.array([metrics[name] for metrics in again])
        low, high = np.nanquantile(drawn, [0.025, 0.975]).tolist()
        error = float(np.nanstd(drawn, ddof=1))
        found[name] = Measured(value, error, low, high, size)
    return found
