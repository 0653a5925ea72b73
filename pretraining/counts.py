"""Models that only count words: what a network must beat to have learnt more than that.

Word frequencies, n-grams to the left, and the neighbours on both sides, smoothed as by
Kneser and Ney, interpolated and with three discounts (Chen and Goodman 1999, "An
empirical study of smoothing techniques for language modeling", section 3). All counts
are sorted arrays, so that text of 8M tokens takes seconds.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer

from data.windows import ranges

MOST_TOKENS = 8 << 20  # that are counted; of a longer text stretches evenly apart
STRETCHES = 64


class Stream(NamedTuple):
    """Text to be counted.

    Attributes:
        words: ids.
        before: how many words of its document stand before each.
    """

    words: Int64[np.ndarray, " N"]
    before: Int64[np.ndarray, " N"]


def stream_of(
    tokens: Integer[np.ndarray, " N"], documents: Int64[np.ndarray, " D_plus_1"]
) -> Stream:
    """The text of a split, or a sample of it; see `MOST_TOKENS`."""
    starts, size = np.zeros(1, np.int64), len(tokens)
    if size > MOST_TOKENS:
        size = MOST_TOKENS // STRETCHES
        starts = np.arange(STRETCHES) * (len(tokens) - size) // (STRETCHES - 1)
    places = starts[:, None] + np.arange(size)
    begins = documents[np.searchsorted(documents, places, side="right") - 1]
    before = places - np.maximum(begins, starts[:, None])
    return Stream(tokens[places.reshape(-1)].astype(np.int64), before.reshape(-1))


def rows_as_stream(
    tokens: Integer[np.ndarray, "B T"], segment_ids: Integer[np.ndarray, "B T"]
) -> Stream:
    """The rows of a batch one after the other; each segment is a document."""
    is_first = np.ones(tokens.shape, bool)
    is_first[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    places = np.arange(tokens.size)
    begins = np.maximum.accumulate(np.where(is_first.reshape(-1), places, 0))
    return Stream(tokens.reshape(-1).astype(np.int64), places - begins)


class Table(NamedTuple):
    """Which words follow which contexts: entries (context, word) in order.

    Attributes:
        keys: context * V + word of each.
        shares: of the context's probability, after the discount.
        left: what the discounts leave of a context for a shorter one.
    """

    keys: Int64[np.ndarray, " E"]
    shares: Float64[np.ndarray, " E"]
    left: Float64[np.ndarray, " C"]

    def find(
        self, keys: Int64[np.ndarray, " N"]
    ) -> tuple[Int64[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
        """Where entries stand, and whether they are there."""
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return places, self.keys[places] == keys


def discounted(
    keys: Int64[np.ndarray, " E"],
    counts: Int64[np.ndarray, " E"],
    contexts: int,
    vocab_size: int,
) -> Table:
    """The table of counted entries."""
    ones, twos, threes, fours = (max(1, np.sum(counts == n)) for n in (1, 2, 3, 4))
    y = ones / (ones + 2 * twos)
    discounts = np.array(
        [
            0,
            1 - 2 * y * twos / ones,
            2 - 3 * y * threes / twos,
            3 - 4 * y * fours / threes,
        ]
    )
    taken = np.clip(discounts, [0, 0.1, 0.1, 0.1], [0, 1, 2, 3])[np.minimum(counts, 3)]
    context = keys // vocab_size
    totals = np.bincount(context, counts, contexts)
    left = np.bincount(context, taken, contexts)
    left = np.divide(left, totals, out=np.ones(contexts), where=totals > 0)
    return Table(keys, (counts - taken) / totals[context], left)


def frequencies(counts: Int64[np.ndarray, " V"]) -> Float64[np.ndarray, " V"]:
    """The probability of each word without any context."""
    size = len(counts)
    table = discounted(np.arange(size), counts, 1, size)
    return table.shares + table.left / size


class Ngrams:
    """The probability of a word after at most the `order` - 1 before it."""

    def __init__(self, text: Stream, vocab_size: int, order: int):
        self.vocab_size = vocab_size
        self.tables: list[Table] = []
        keys, contexts = np.arange(vocab_size), 1
        counts = np.bincount(text.words, minlength=vocab_size)
        ending = text.words  # the number of the entry that ends at each word
        for n in range(2, order + 1):
            is_whole = text.before >= n - 1
            entries, first, numbers, times = np.unique(
                self._keys(ending, text)[is_whole],
                return_index=True,
                return_inverse=True,
                return_counts=True,
            )
            # Of what a longer entry ends with, the different ones count; what begins a
            # document has none.
            longer = np.bincount(ending[is_whole][first], minlength=len(keys))
            begins = np.bincount(ending[text.before == n - 2], minlength=len(keys))
            self.tables.append(discounted(keys, longer + begins, contexts, vocab_size))
            contexts, keys, counts = len(keys), entries, times
            ending = np.full(len(ending), -1)
            ending[is_whole] = numbers
        self.tables.append(discounted(keys, counts, contexts, vocab_size))

    def probabilities(self, text: Stream) -> Float64[np.ndarray, " N"]:
        """Of each word of a text, after those before it in its document."""
        found = np.full(len(text.words), 1 / self.vocab_size)
        ending = np.zeros(len(text.words), np.int64)
        for order, table in enumerate(self.tables, 1):
            keys = text.words if order == 1 else self._keys(ending, text)
            context = keys // self.vocab_size
            is_known = keys >= 0
            places, is_there = table.find(keys)
            shares = np.where(is_there, table.shares[places], 0)
            found = np.where(is_known, shares + table.left[context] * found, found)
            ending = np.where(is_there, places, -1)
        return found

    def after(self, words: Int64[np.ndarray, " B"]) -> Float64[np.ndarray, "B V"]:
        """Of an order of 2: the probabilities of all words after some."""
        one, two = self.tables
        size = self.vocab_size
        found = two.left[words][:, None] * (one.shares + one.left / size)
        first = np.searchsorted(two.keys, words * size)
        counts = np.searchsorted(two.keys, (words + 1) * size) - first
        entries = ranges(first, counts)
        rows = np.repeat(np.arange(len(words)), counts)
        found[rows, two.keys[entries] % size] += two.shares[entries]
        return found

    def _keys(
        self, ending: Int64[np.ndarray, " N"], text: Stream
    ) -> Int64[np.ndarray, " N"]:
        """Each word with the entry that ends before it; below 0 where there is none."""
        context = np.full(len(ending), -1)
        context[1:] = np.where(text.before[1:] > 0, ending[:-1], -1)
        return context * self.vocab_size + np.where(context < 0, 0, text.words)


class Neighbours:
    """The probability of a word between its two neighbours, or beside one.

    What was never seen between both is as probable as after the left one times before
    the right one over its frequency. Words of frequency 0 are never meant.
    """

    def __init__(self, text: Stream, frequencies: Float64[np.ndarray, " V"]):
        self.frequencies = frequencies
        self.rareness = np.divide(
            1, frequencies, out=np.zeros_like(frequencies), where=frequencies > 0
        )
        size = len(frequencies)
        self.after_left = Ngrams(text, size, 2)
        self.before_right = Ngrams(backwards(text), size, 2)
        left, word, right = text.words[:-2], text.words[1:-1], text.words[2:]
        is_inside = (text.before[1:-1] > 0) & (text.before[2:] > 0)
        pairs = (left * size + right)[is_inside]
        self.pairs, numbers = np.unique(pairs, return_inverse=True)
        keys, counts = np.unique(numbers * size + word[is_inside], return_counts=True)
        self.between = discounted(keys, counts, len(self.pairs), size)

    def probabilities(
        self, left: Int64[np.ndarray, " B"], right: Int64[np.ndarray, " B"]
    ) -> Float64[np.ndarray, "B V"]:
        """Of all words between two; -1 for one that is not to be seen."""
        size = len(self.frequencies)
        found = np.tile(self.frequencies, (len(left), 1))
        for words, model in ((left, self.after_left), (right, self.before_right)):
            is_seen = words >= 0
            found[is_seen] *= model.after(words[is_seen]) * self.rareness
        found /= found.sum(axis=1, keepdims=True)
        pairs = np.where((left >= 0) & (right >= 0), left * size + right, -1)
        place = np.minimum(np.searchsorted(self.pairs, pairs), len(self.pairs) - 1)
        rows = np.flatnonzero(self.pairs[place] == pairs)
        place = place[rows]
        found[rows] *= self.between.left[place][:, None]
        first = np.searchsorted(self.between.keys, place * size)
        counts = np.searchsorted(self.between.keys, (place + 1) * size) - first
        entries = ranges(first, counts)
        columns = self.between.keys[entries] % size
        found[np.repeat(rows, counts), columns] += self.between.shares[entries]
        return found


def backwards(text: Stream) -> Stream:
    """The documents read from their ends."""
    starts = np.flatnonzero(text.before == 0)
    sizes = np.diff([*starts, len(text.words)])
    after = np.repeat(starts + sizes - 1, sizes) - np.arange(len(text.words))
    return Stream(text.words[::-1], after[::-1])
