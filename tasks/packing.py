"""Encoded examples to batches: several whole examples a row, in shapes that stay.

Rows of T tokens are filled first-fit: an example goes into the first open row that has
room for it. Sequences of a row do not see each other (`segment_ids`), so a packed batch
gives the same losses as one with an example a row.

A batch is a dict of arrays. B rows of T tokens, E slots a row for examples, R readout
positions an example:

- `tokens`, `segment_ids` (1, 2, .. number the sequences of the row, 0 is padding),
  `positions` [B, T]; of models that read them `token_types` [B, T].
- `example_ids` [B, E]: index into `Examples.encoded`, -1 for an unused slot.
- What the kind says of an example, [B, E] or [B, E, R], or of a token, [B, T]:

    classification   `readout_positions` [B, E, 1], `labels`, `weights` [B, E]
    similarity       `readout_positions` [B, E, R], `scores`, `weights` [B, E];
                     R = 2 orders for models that see left only
    choice           `readout_positions` [B, E, R], `labels`, `weights` [B, E];
                     R is the number of answers
    tagging          `labels`, `weights`, `word_ids` [B, T]
    span             `starts`, `ends`, `weights` [B, E]

- What `auxiliary_lm` adds.

Weights are 0 in unused slots and for unlabelled data. The last batch of what is read
once can end in rows without an example.
"""

import collections
import math
import threading
from dataclasses import dataclass

import grain
import numpy as np
from jaxtyping import Int, Shaped

from data import windows
from data.tokenizers import Tokenizer
from data.windows import MAX_STEPS, Batch, ranges
from errors import UserError
from tasks.encoding import Examples
from tasks.record import Kind

# A bound for speed; the rows that stay open are those with the most room.
OPEN_ROWS = 64
# Rows as short as leave this little padding are taken rather than the fullest ones,
# because attention costs by the row's length.
ENOUGH_PADDING = 0.05


@dataclass(frozen=True)
class RowShape:
    """The static shape of batches.

    Attributes:
        rows: B, of which none is empty while training.
        length: T.
        slots: E, the most examples a row takes.
        packed: False: one example a row.
    """

    rows: int
    length: int
    slots: int
    packed: bool


def row_shape(
    examples: Examples,
    *,
    examples_per_batch: int,
    longest_row: int,
    packed: bool,
    read_once: bool,
) -> RowShape:
    """A shape with little padding whose batches hold so many examples on average.

    The exact number of examples in a batch varies, since rows are filled with what
    fits; losses are sums over weights, so no example counts more than another.

    Args:
        examples: of the training split (or the one to evaluate).
        examples_per_batch: the papers' batch size.
        longest_row: T may grow to this; twice `max_length` or more packs well.
        packed: False: one example a row, rows as long as the longest example.
        read_once: for `evaluation_batches`; the last batch shall be nearly full, too.

    Raises:
        UserError: an example does not fit into longest_row.
    """
    if examples_per_batch < 1:
        raise UserError(f"batch_size={examples_per_batch} must be at least 1")
    lengths = examples.lengths
    longest = int(lengths.max())
    if longest > longest_row:
        raise UserError(
            f"the longest example has {longest} tokens in all its sequences (a choice "
            f"has one an answer) and rows hold {longest_row}; lower max_length, or "
            f"raise the row length to {longest}"
        )
    if not packed:
        shortest_row = min(-(-longest // 8) * 8, longest_row)
        return RowShape(examples_per_batch, shortest_row, 1, False)
    sample = _sample(lengths, read_once)
    length = row_length(lengths, longest_row, read_once)
    packing = pack(sample, length, slots=length)
    rows = examples_per_batch * len(packing) / len(sample)
    if read_once:
        total = math.ceil(len(packing) * len(lengths) / len(sample))
        rows = _even_rows(total, rows)
    return RowShape(
        rows=max(1, round(rows)),
        length=length,
        slots=max(map(len, packing)),
        packed=True,
    )


def row_length(
    lengths: Int[np.ndarray, " N"], longest_row: int, read_once: bool
) -> int:
    """The shortest T, of a multiple of 8, that leaves little padding."""
    shortest_row = min(-(-int(lengths.max()) // 8) * 8, longest_row)
    sample = _sample(lengths, read_once)
    step = max(8, (longest_row - shortest_row) // 16 // 8 * 8)
    paddings = {}
    for length in range(shortest_row, longest_row + 1, step):
        packing = pack(sample, length, slots=length)
        paddings[length] = 1 - sample.sum() / (len(packing) * length)
        if paddings[length] <= ENOUGH_PADDING:
            break
    return min(
        paddings, key=lambda key: (paddings[key] > ENOUGH_PADDING, paddings[key])
    )


def _sample(lengths: Int[np.ndarray, " N"], read_once: bool) -> Int[np.ndarray, " n"]:
    """Some of them; the longest first where rows are packed so."""
    sample = lengths[np.random.default_rng(0).permutation(len(lengths))[:4096]]
    return np.sort(sample)[::-1] if read_once else sample


def _even_rows(total: int, rows: float) -> int:
    """About so many rows a batch that `total` rows leave the last one nearly full."""
    wanted = max(1, round(total / rows))
    counts = range(math.ceil(wanted / 1.5), math.floor(wanted * 1.5) + 1)
    best = min(counts, key=lambda n: (n * math.ceil(total / n), abs(n - wanted)))
    return math.ceil(total / best)


def pack(
    lengths: Int[np.ndarray, " N"], row_length: int, slots: int
) -> list[list[int]]:
    """First-fit: the places in `lengths` that share a row, in order, for each row.

    At most `OPEN_ROWS` rows are open; to open another the fullest is closed.
    """
    packed: list[list[int]] = []
    open_rows: list[int] = []
    room: list[int] = []  # of the open rows
    shortest = int(lengths.min()) if len(lengths) else 0
    for place, length in enumerate(lengths.tolist()):
        assert length <= row_length, (length, row_length)
        index = next((i for i, free in enumerate(room) if length <= free), -1)
        if index < 0:
            if len(room) == OPEN_ROWS:
                fullest = room.index(min(room))
                del room[fullest], open_rows[fullest]
            index = len(room)
            room.append(row_length)
            open_rows.append(len(packed))
            packed.append([])
        row = packed[open_rows[index]]
        row.append(place)
        room[index] -= length
        if room[index] < shortest or len(row) == slots:
            del room[index], open_rows[index]
    return packed


def training_batches(
    examples: Examples, shape: RowShape, *, seed: int
) -> grain.MapDataset:
    """`[step]` is the batch of that step; without end.

    A pure function of (seed, step). Each epoch shuffles the examples by (seed, epoch),
    packs them, and shuffles the rows; the rows of all epochs follow one another, so
    every example comes once an epoch and no batch is short. To seek, the epochs before
    are packed again for their numbers of rows, a second per million examples or so.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} is not between 0 and 2**32 - 1.")
    order, stacked = _EndlessRows(examples.lengths, shape, seed), _stack(examples)

    def batch(step: int) -> Batch:
        return _batch(stacked, order.rows(step * shape.rows), shape)

    return grain.MapDataset.range(MAX_STEPS).map(batch)


def evaluation_batches(examples: Examples, shape: RowShape) -> grain.MapDataset:
    """Every example once, the longest first where rows are packed, since that leaves
    the least padding; empty rows fill up the last batch."""
    order, stacked = np.arange(len(examples.encoded)), _stack(examples)
    if shape.packed:
        order = np.argsort(-examples.lengths, kind="stable")
    packing = [order[row] for row in pack_all(examples.lengths[order], shape)]

    def batch(step: int) -> Batch:
        return _batch(
            stacked, packing[step * shape.rows : (step + 1) * shape.rows], shape
        )

    return grain.MapDataset.range(-(-len(packing) // shape.rows)).map(batch)


def pack_all(lengths: Int[np.ndarray, " N"], shape: RowShape) -> list[list[int]]:
    """The rows of one pass in order; an epoch has len(.) / shape.rows steps."""
    if lengths.max() > shape.length:
        raise UserError(
            f"an example has {lengths.max()} tokens and rows hold {shape.length}; "
            "choose the shape for the longest of all splits"
        )
    return pack(lengths, shape.length, shape.slots if shape.packed else 1)


def describe(
    kind: Kind, batch: Batch, examples: Examples, tokenizer: Tokenizer, rows: int
) -> str:
    """The first rows of a batch for a reader: each sequence, and what is predicted."""
    return windows.describe(
        batch,
        tokenizer,
        rows,
        lambda row: kind.described(batch, examples, tokenizer, row),
    )


class _EndlessRows:
    """The rows of all epochs, one after the other, as the examples in them."""

    def __init__(self, lengths: Int[np.ndarray, " N"], shape: RowShape, seed: int):
        self.lengths, self.shape, self.seed = lengths, shape, seed
        self.begins = [0]  # the number of the first row of each epoch, as far as known
        self.recent: collections.OrderedDict[int, list[Int[np.ndarray, " _"]]] = (
            collections.OrderedDict()
        )
        self.lock = threading.Lock()  # batches are made ahead by threads

    def rows(self, first: int) -> list[Int[np.ndarray, " _"]]:
        """Those of a batch that begins with row `first`."""
        found: list[Int[np.ndarray, " _"]] = []
        with self.lock:
            while len(found) < self.shape.rows:
                number = first + len(found)
                while number >= self.begins[-1]:
                    epoch = len(self.begins) - 1
                    self.begins.append(self.begins[-1] + len(self._epoch(epoch)))
                epoch = int(np.searchsorted(self.begins, number, side="right")) - 1
                place = number - self.begins[epoch]
                wanted = self.shape.rows - len(found)
                found += self._epoch(epoch)[place : place + wanted]
        return found

    def _epoch(self, epoch: int) -> list[Int[np.ndarray, " _"]]:
        if epoch not in self.recent:
            generator = np.random.default_rng([self.seed, epoch])
            order = generator.permutation(len(self.lengths))
            packing = pack_all(self.lengths[order], self.shape)
            shuffled = generator.permutation(len(packing)).tolist()
            self.recent[epoch] = [order[packing[place]] for place in shuffled]
            if len(self.recent) > 2:  # a batch may begin in the epoch before
                self.recent.popitem(last=False)
        return self.recent[epoch]


@dataclass(frozen=True)
class _Stacked:
    """All examples, N of them, in arrays for `_batch`.

    Attributes:
        begins, lengths: where each stands in `arrays`.
        sequences: how many each has.
        arrays: what there is a token, of all one after the other.
        slot, places: [N, ...].
    """

    begins: Int[np.ndarray, " N"]
    lengths: Int[np.ndarray, " N"]
    sequences: Int[np.ndarray, " N"]
    arrays: dict[str, Shaped[np.ndarray, " _"]]
    slot: dict[str, Shaped[np.ndarray, "N ..."]]
    places: dict[str, Int[np.ndarray, "N ..."]]
    pad: int


def _stack(examples: Examples) -> _Stacked:
    encoded, lengths = examples.encoded, examples.lengths
    arrays = {
        name: np.concatenate([example.arrays[name] for example in encoded])
        for name in encoded[0].arrays
    }
    ends = np.cumsum(lengths)
    return _Stacked(
        ends - lengths,
        lengths,
        arrays["segment_ids"][ends - 1].astype(np.int64),
        arrays,
        {n: np.stack([one.slot[n] for one in encoded]) for n in encoded[0].slot},
        {n: np.stack([one.places[n] for one in encoded]) for n in encoded[0].places},
        examples.pad,
    )


def _batch(
    examples: _Stacked, rows: list[Int[np.ndarray, " _"]], shape: RowShape
) -> Batch:
    """Lays examples out in rows; positions in them are moved to where they stand."""
    counts = np.array([len(row) for row in rows])
    ids = np.concatenate(rows)
    row, slot = np.repeat(np.arange(len(rows)), counts), ranges(0 * counts, counts)
    by_slot = (shape.rows, shape.slots)

    def sum_before(values: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Over the examples that stand before in the row."""
        table = np.zeros(by_slot, np.int64)
        table[row, slot] = values
        return (np.cumsum(table, axis=1) - table)[row, slot]

    lengths = examples.lengths[ids]
    begins = sum_before(lengths)
    source = ranges(examples.begins[ids], lengths)
    target = ranges(row * shape.length + begins, lengths)
    batch = {}
    for name, array in examples.arrays.items():
        laid = np.zeros(shape.rows * shape.length, array.dtype)
        laid[:] = examples.pad if name == "tokens" else 0
        laid[target] = array[source]
        if name == "segment_ids":
            laid[target] += np.repeat(sum_before(examples.sequences[ids]), lengths)
        batch[name] = laid.reshape(shape.rows, shape.length)
    for name, values in (*examples.slot.items(), *examples.places.items()):
        batch[name] = np.zeros(by_slot + values.shape[1:], values.dtype)
        batch[name][row, slot] = values[ids]
        if name in examples.places:
            moved = begins.reshape(-1, *[1] * (values.ndim - 1))
            batch[name][row, slot] += moved
    batch["example_ids"] = np.full(by_slot, -1, np.int32)
    batch["example_ids"][row, slot] = ids
    return batch
