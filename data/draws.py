"""What is random in batches: pure functions of whole numbers, for many rows at once.

All come from SplitMix64, whose n-th number can be had without those before. (Steele,
Lea, Flood 2014, "Fast splittable pseudorandom number generators", figure 16.)
"""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from errors import UserError

# Of the order of examples and of all that is drawn for them; a run keeps to one.
VERSION = 2
# What is drawn, so that no two draw the same.
ORDER, VISITS, LENGTHS, CUTS, MASKS, PHASES, HIDDEN, PARTS = range(8)
GAMMA = np.uint64(0x9E3779B97F4A7C15)


def check_version(made_of: dict, workdir: Path) -> None:
    """UserError where a run draws otherwise; before there were versions it had none."""
    if "draws_version" not in made_of or made_of["draws_version"] != VERSION:
        raise UserError(
            f"the run in {workdir} was begun by a version of this code that drew "
            "examples and masks otherwise, so it cannot be resumed, only used: give "
            "another --workdir, and to go on from its weights init_from"
        )


def numbers(
    starts: UInt64[np.ndarray, "*#S"], places: UInt64[np.ndarray, "*#S"]
) -> UInt64[np.ndarray, "*S"]:
    """The number at a place, 0, 1, .., of the sequence that begins at a start."""
    found = starts + (places + np.uint64(1)) * GAMMA
    found ^= found >> np.uint64(30)
    found *= np.uint64(0xBF58476D1CE4E5B9)
    found ^= found >> np.uint64(27)
    found *= np.uint64(0x94D049BB133111EB)
    found ^= found >> np.uint64(31)
    return found


def starts_of(
    *path: int, rows: Int64[np.ndarray, " B"] | UInt64[np.ndarray, " B"]
) -> UInt64[np.ndarray, " B"]:
    """Where the sequences of some rows begin: numbers of a sequence that is a number of
    another, and so on down the path."""
    start = np.zeros(1, np.uint64)
    for place in path:
        start = numbers(start, np.array([place], np.uint64))
    return numbers(start, rows.astype(np.uint64))


class Draws:
    """A generator for each of B rows; every call goes on with new numbers.

    What a row draws does not depend on the rows beside it, nor on how many numbers a
    call before has drawn.
    """

    def __init__(self, starts: UInt64[np.ndarray, " B"]):
        self.starts = starts
        self.calls = 0

    def bits(self, count: int) -> UInt64[np.ndarray, "B count"]:
        """64 fair bits each."""
        first = self.calls << 32
        self.calls += 1
        places = np.arange(first, first + count, dtype=np.uint64)
        return numbers(self.starts[:, None], places)

    def uniform(self, count: int) -> Float64[np.ndarray, "B count"]:
        """In [0, 1)."""
        return (self.bits(count) >> np.uint64(11)) * 2.0**-53

    def below(self, limits: Int64[np.ndarray, " B"]) -> Int64[np.ndarray, " B"]:
        """A whole number of 0 .. limit-1; 0 where the limit is 0."""
        return (self.uniform(1)[:, 0] * limits).astype(np.int64)

    def heads(self, tosses: Int64[np.ndarray, " B"]) -> Int64[np.ndarray, " B"]:
        """How often a fair coin shows heads in so many tosses."""
        words = -(-int(tosses.max(initial=0)) // 64)
        left = np.clip(tosses[:, None] - 64 * np.arange(words), 0, 64)
        # Of a word the highest bits; shifting by 64 is undefined.
        kept = self.bits(words) >> np.minimum(64 - left, 63).astype(np.uint64)
        return (np.bitwise_count(kept) * (left > 0)).sum(axis=1, dtype=np.int64)


def shuffled(
    places: Int64[np.ndarray, " B"],
    epochs: Int64[np.ndarray, " B"],
    size: int,
    seed: int,
) -> Int64[np.ndarray, " B"]:
    """What stands at some places of the orders of 0 .. size-1 in some epochs.

    Each order is a Feistel network over a x b pairs, the fewest that hold `size`, and
    whoever leaves the range goes on until he is back. (Black and Rogaway 2002, "Ciphers
    with arbitrary finite domains", sections 3 and 5.)
    """
    a = np.uint64(math.isqrt(size - 1) + 1)
    b = np.uint64(-(-size // int(a)))
    rounds = 8 if size >= 1024 else 16  # few pairs are well mixed later than many
    keys = starts_of(ORDER, seed, rows=epochs)
    found = places.astype(np.uint64)
    walking = np.arange(len(places))
    while len(walking):
        key = keys[walking]
        left, right = np.divmod(found[walking], b)
        for turn in range(0, rounds, 2):
            left = (left + numbers(key, right + np.uint64(turn << 32)) % a) % a
            turned = numbers(key, left + np.uint64((turn + 1) << 32)) % b
            right = (right + turned) % b
        found[walking] = left * b + right
        walking = walking[found[walking] >= size]
    return found.astype(np.int64)
