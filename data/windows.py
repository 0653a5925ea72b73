"""Examples to batches: which example comes at which step, on which host.

An example is a pure function of (example index, random generator); which example comes
at which step, and its generator, are pure functions of (seed, step). So any step can be
computed alone: resuming needs the step and nothing else, and any number of hosts sees
the same global batches.

Arrays of an example (a batch adds the axis B in front): `tokens [T]`; `segment_ids [T]`
(1, 2, .. for the documents packed into the row, 0 for padding); `positions [T]`; where
texts have two sides, `token_types [T]`; and what is to be predicted: `targets` and
`weights` at `[T]`, or at `[P]` with `predict_positions [P]`.
"""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, Int64, Shaped

from data.shards import Shards
from data.tokenizers import Tokenizer
from errors import UserError

if TYPE_CHECKING:
    import grain

Example = dict[str, Shaped[np.ndarray, "..."]]
Batch = dict[str, Shaped[np.ndarray, "B ..."]]

# Fixed, not the run's seed: every run is evaluated on the same masks.
EVALUATION_SEED = 0


@runtime_checkable  # what tests check
class Examples(Protocol):
    """The examples of a split, by index from 0 on."""

    def __len__(self) -> int: ...

    def example(self, index: int, generator: np.random.Generator) -> Example: ...


def training_batches(
    examples: Examples,
    *,
    batch_size: int,
    seed: int,
    host_index: int = 0,
    host_count: int = 1,
) -> "grain.MapDataset":
    """`[step]` is this host's rows of the global batch of that step; without end.

    Visit v = step * batch_size + row takes place v of an order shuffled anew in each
    epoch, and a generator seeded by (seed, v). Hosts take consecutive rows, so joined
    in order they give the batch of a single host.
    """
    import grain  # and with it jax, which preparing needs not

    rows = _rows_per_host(batch_size, host_count)
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} is not between 0 and 2**32 - 1.")
    return (
        grain.MapDataset.range(len(examples))
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(examples.example)
        .batch(rows, drop_remainder=True)
        .slice(slice(host_index, None, host_count))
    )


def evaluation_batches(
    examples: Examples,
    *,
    batch_size: int,
    most: int = 0,
    host_index: int = 0,
    host_count: int = 1,
) -> "grain.MapDataset":
    """Every example once, in order, or of more than `most` so many evenly apart; the
    last batch is filled with rows of weight 0.

    The masks depend on the example alone, so sums over all batches do not depend on
    the batch size.
    """
    import grain

    rows = _rows_per_host(batch_size, host_count)
    total = len(examples)
    count = min(total, most) if most else total

    def example_or_padding(index: int, generator: np.random.Generator) -> Example:
        place = min(index, count - 1) * total // count
        example = examples.example(place, generator)
        if index < count:
            return example
        return {name: np.zeros_like(array) for name, array in example.items()}

    num_batches = -(-count // batch_size)
    return (
        grain.MapDataset.range(num_batches * batch_size)
        .random_map(example_or_padding, seed=EVALUATION_SEED)
        .batch(rows, drop_remainder=True)
        .slice(slice(host_index, None, host_count))
    )


def describe(batch: Batch, tokenizer: Tokenizer, rows: int) -> str:
    """The first rows of a batch for a reader: decoded, predictions marked, padding.

    In masked rows a predicted piece is shown as {input -> target}. In causal rows each
    piece predicts the next one; `|` stands after a piece that predicts nothing.
    """
    lines = []
    for row in range(min(rows, len(batch["tokens"]))):
        example = {name: np.asarray(array[row]) for name, array in batch.items()}
        segment_ids = example["segment_ids"]
        real = np.count_nonzero(segment_ids)
        lines.append(
            f"row {row}: {real} tokens, {len(segment_ids) - real} padding, "
            f"{segment_ids.max()} document(s), "
            f"{np.count_nonzero(example['weights'])} predicted"
        )
        for name, array in example.items():
            if not array.ndim and not name.endswith("weights"):  # of the whole row
                lines.append(f"  {name.replace('_', ' ')}: {array}")
        notes = _notes(example, tokenizer)
        for segment in range(1, segment_ids.max() + 1):
            places = np.flatnonzero(segment_ids == segment)
            text = _decoded(example["tokens"], places, notes, tokenizer)
            lines.append(f"  document {segment}: {text}")
    padding = np.mean(batch["segment_ids"] == 0)
    lines.append(f"padding: {padding:.1%} of the batch's {batch['tokens'].size} tokens")
    return "\n".join(lines)


def _notes(example: Example, tokenizer: Tokenizer) -> dict[int, str]:
    """What to show in place of the piece at a position."""
    tokens, pieces = example["tokens"], tokenizer.pieces
    if "predict_positions" in example:
        predicted = example["weights"] > 0
        return {
            position: f"{{{pieces[tokens[position]]} -> {pieces[target]}}}"
            for position, target in zip(
                example["predict_positions"][predicted].tolist(),
                example["targets"][predicted].tolist(),
                strict=True,
            )
        }
    last = np.flatnonzero((example["weights"] == 0) & (example["segment_ids"] > 0))
    return {position: f"{pieces[tokens[position]]} |" for position in last.tolist()}


def _decoded(
    tokens: Int32[np.ndarray, " T"],
    places: Int64[np.ndarray, " N"],
    notes: dict[int, str],
    tokenizer: Tokenizer,
) -> str:
    """The text of some positions, with special tokens and notes spelt out between."""
    special = set(tokenizer.special_ids.values())
    words, run = [], []
    for place in places.tolist():
        token = int(tokens[place])
        if place in notes or token in special:
            words += [tokenizer.decode(run), notes.get(place, tokenizer.pieces[token])]
            run = []
        else:
            run.append(token)
    words.append(tokenizer.decode(run))
    return " ".join(word.strip() for word in words if word.strip())


def segments(
    documents: Int64[np.ndarray, " D_plus_1"], start: int, stop: int
) -> tuple[Int32[np.ndarray, " N"], Int32[np.ndarray, " N"]]:
    """Segment ids and positions of stream[start:stop], both anew at each document."""
    inside = documents[
        np.searchsorted(documents, start, side="right") : np.searchsorted(
            documents, stop
        )
    ]
    begins = np.zeros(stop - start, np.int32)
    begins[inside - start] = 1
    places = np.arange(stop - start, dtype=np.int32)
    return 1 + np.cumsum(begins, dtype=np.int32), places - np.maximum.accumulate(
        places * begins
    )


def check_text(shards: Shards) -> None:
    """UserError where a split is too short for a token to follow another."""
    if shards.num_tokens < 2:
        raise UserError(
            f"the {shards.split} split holds {shards.num_tokens} token(s): nothing to "
            "predict. Add text to data.corpus."
        )


def padded(example: Example, length: int) -> Example:
    """Arrays filled with zeros to a length."""
    filled = {}
    for name, array in example.items():
        filled[name] = np.zeros(length, array.dtype)
        filled[name][: len(array)] = array
    return filled


def _rows_per_host(batch_size: int, host_count: int) -> int:
    if batch_size < 1 or batch_size % host_count:
        raise UserError(
            f"data.batch_size={batch_size} does not divide over {host_count} host(s); "
            f"choose a multiple of {host_count}."
        )
    return batch_size // host_count
