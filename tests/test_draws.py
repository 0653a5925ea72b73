"""What is random in batches: draws of rows, and the order of examples."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from data import draws
from data.draws import Draws, shuffled

SIZES = [*range(1, 20), 31, 32, 33, 97, 127, 128, 129, 1009, 1023, 1024, 1025, 10_007]


def rows_of(count, seed=0):
    return Draws(draws.starts_of(draws.VISITS, seed, rows=np.arange(count)))


def order(size, epoch, seed=0):
    return shuffled(np.arange(size), np.full(size, epoch), size, seed)


def test_numbers_are_those_of_splitmix64():
    """The first of the seeds 0 and 1234567, as in the authors' C code."""
    starts = np.array([[0], [1234567]], np.uint64)
    found = draws.numbers(starts, np.arange(2, dtype=np.uint64))
    assert [[hex(number) for number in row] for row in found.tolist()] == [
        ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4"],
        ["0x599ed017fb08fc85", "0x2c73f08458540fa5"],
    ]


# Draws of a row


def test_draws_do_not_depend_on_the_rows_beside():
    together, alone = rows_of(5), Draws(rows_of(5).starts[3:4])
    for call in (
        lambda made, rows: made.uniform(7),
        lambda made, rows: made.heads(np.array([3, 900, 0, 70, 5])[rows]),
        lambda made, rows: made.below(np.array([3, 10**6, 0, 70, 5])[rows]),
    ):
        np.testing.assert_array_equal(
            call(together, slice(None))[3:4], call(alone, [3])
        )


def test_draws_are_new_in_each_call_row_and_for_each_seed():
    one, other = rows_of(50, 0), rows_of(50, 1)
    drawn = [made.uniform(40) for made in (one, one, other)]
    assert len(np.unique(drawn)) == 3 * 50 * 40


def test_draws_are_uniform():
    drawn = rows_of(2000)
    assert stats.kstest(drawn.uniform(50).ravel(), "uniform").pvalue > 1e-3
    below = drawn.below(np.full(2000, 6))
    assert stats.chisquare(np.bincount(below, minlength=6)).pvalue > 1e-3
    assert not drawn.below(np.zeros(2000, int)).any()


@pytest.mark.parametrize("tosses", [0, 1, 5, 63, 64, 65, 128, 300])
def test_heads_are_binomial(tosses):
    found = rows_of(20_000).heads(np.full(20_000, tosses))
    assert found.min() >= 0 and found.max() <= tosses
    expected = 20_000 * stats.binom.pmf(np.arange(tosses + 1), tosses, 0.5)
    counts = np.bincount(found, minlength=tosses + 1)
    common = expected > 20
    assert (np.abs(counts - expected) < 4.5 * np.sqrt(expected))[common].all()


# Order


@pytest.mark.parametrize("size", SIZES)
def test_each_example_once_an_epoch(size):
    for epoch in range(4):
        np.testing.assert_array_equal(np.sort(order(size, epoch)), np.arange(size))


def test_any_place_of_any_epoch_can_be_had_alone():
    size = 10**12  # no array of its places would fit
    places, epochs = np.array([0, 5, size - 1, 5]), np.array([0, 10**6, 3, 2])
    found = shuffled(places, epochs, size, 7)
    assert ((found >= 0) & (found < size)).all() and len({*found.tolist()}) == 4
    for row in range(4):
        alone = shuffled(places[row : row + 1], epochs[row : row + 1], size, 7)
        assert alone == found[row]


def test_orders_differ_by_epoch_and_seed():
    orders = [order(200, epoch, seed) for epoch in range(3) for seed in range(3)]
    for one, other in itertools.combinations(orders, 2):
        assert np.mean(one == other) < 0.1


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_all_orders_of_a_few_are_equally_likely(size):
    epochs = 100 * math.factorial(size)
    places, epoch = np.tile(np.arange(size), epochs), np.repeat(np.arange(epochs), size)
    found = shuffled(places, epoch, size, 1).reshape(epochs, size)
    _, counts = np.unique(found, axis=0, return_counts=True)
    assert len(counts) == math.factorial(size)
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("size", [7, 50, 1023, 1030])
def test_places_and_examples_are_independent_and_neighbours_part(size):
    epochs = 400_000 // size
    places, epoch = np.tile(np.arange(size), epochs), np.repeat(np.arange(epochs), size)
    found = shuffled(places, epoch, size, 1)
    parts = min(size, 20)
    counts = np.zeros((parts, parts))
    np.add.at(counts, (parts * places // size, parts * found // size), 1)
    width = np.bincount(parts * np.arange(size) // size)
    expected = epochs * np.outer(width, width) / size
    assert stats.chisquare(counts.ravel(), expected.ravel()).pvalue > 1e-3
    steps = np.diff(found.reshape(epochs, size)) % size
    counts = np.bincount(steps.ravel(), minlength=size)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > 1e-3
