"""Examples to batches: which example comes at which step, on which host.

A batch is made in one call from the numbers of its examples and draws for each of them;
which example comes at which step, and what is drawn for it, are pure functions of
(seed, step). So any step can be computed alone: resuming needs the step and nothing
else, and any number of hosts sees the same global batches.

Arrays of a batch: `tokens [B, T]`; `segment_ids [B, T]` (1, 2, .. for the documents
packed into the row, 0 for padding); `positions [B, T]`; where texts have two sides,
`token_types [B, T]`; and what is to be predicted: `targets` and `weights` at `[B, T]`,
or at `[B, P]` with `predict_positions [B, P]`. Where a step trains in several ways, a
batch is a dict of such batches, each with rows of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, Integer, Shaped

from data import draws
from data.draws import Draws
from data.tokenizers import Tokenizer
from errors import UserError

if TYPE_CHECKING:
    import grain

Batch = dict[str, Shaped[np.ndarray, "B ..."]]
Rows = int | Mapping[str, int]  # of a batch, or of each batch in it

MAX_STEPS = 2**31 - 1
# Fixed, not the run's seed: every run is evaluated on the same masks.
EVALUATION_SEED = 0


@dataclass(frozen=True)
class Visits:
    """Rows to be made.

    Attributes:
        indices: of their examples, [B].
        epochs: in which they are visited, [B]; a way that cuts the text anew in each
            epoch does so by (seed, epoch).
        seed: of the run.
        draws: for each of them.
    """

    indices: Int64[np.ndarray, " B"]
    epochs: Int64[np.ndarray, " B"]
    seed: int
    draws: Draws


@runtime_checkable  # what tests check
class Text(Protocol):
    """A stream of documents, as `Shards` has it."""

    split: str

    @property
    def tokens(self) -> Integer[np.ndarray, " N"]: ...
    @property
    def documents(self) -> Int64[np.ndarray, " D_plus_1"]: ...
    @property
    def num_tokens(self) -> int: ...


@runtime_checkable
class Examples(Protocol):
    """The examples of a split, by index from 0 on."""

    def __len__(self) -> int: ...

    def batch(self, visits: Visits) -> Batch: ...


def training_batches(
    examples: Examples | Mapping[str, Examples],
    *,
    batch_size: Rows,
    seed: int,
    visits_before: int = 0,
    host_index: int = 0,
    host_count: int = 1,
    in_lanes: bool = False,
) -> "grain.MapDataset":
    """`[step]` is this host's rows of the global batch of that step; without end.

    Visit v = visits_before + step * batch_size + row takes place v of an order shuffled
    anew in each epoch, and draws by (seed, v). Hosts take consecutive rows, so joined
    in order they give the batch of a single host. Steps are counted from the first one
    with batches of this size, and `visits_before` are those of the steps before it.

    Each batch in a batch has its own examples, its share of the visits before, and an
    order and draws of its own, by (seed, its number).

    With `in_lanes` a row goes on where the same row of the batch before ended: see
    `lane_places`, whose flags a batch has as `goes_on`.
    """
    import grain  # and with it jax, which preparing needs not

    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} is not between 0 and 2**32 - 1.")
    if isinstance(batch_size, Mapping):
        numbers, total = np.arange(len(batch_size)), sum(batch_size.values())
        seeds = draws.starts_of(draws.PARTS, seed, rows=numbers) % np.uint64(2**32)
        parts = {
            name: training_batches(
                examples[name],
                batch_size=rows,
                seed=int(own_seed),
                visits_before=visits_before * rows // total,
                host_index=host_index,
                host_count=host_count,
            )
            for (name, rows), own_seed in zip(batch_size.items(), seeds, strict=True)
        }
        return _together(parts, MAX_STEPS)
    mine = _rows_of_host(batch_size, host_index, host_count)
    count = len(examples)

    def next_in_lanes(step: int) -> Batch:
        epoch, indices, goes_on = lane_places(step, mine, batch_size, count, seed)
        starts = draws.starts_of(draws.VISITS, seed, rows=step * batch_size + mine)
        visits = Visits(indices, np.full_like(indices, epoch), seed, Draws(starts))
        return examples.batch(visits) | {"goes_on": goes_on}

    def batch(step: int) -> Batch:
        visits = visits_before + step * batch_size + mine
        epochs, places = np.divmod(visits, count)
        indices = draws.shuffled(places, epochs, count, seed)
        starts = draws.starts_of(draws.VISITS, seed, rows=visits)
        return examples.batch(Visits(indices, epochs, seed, Draws(starts)))

    return grain.MapDataset.range(MAX_STEPS).map(next_in_lanes if in_lanes else batch)


def lane_places(
    step: int, rows: Int64[np.ndarray, " B"], lanes: int, count: int, seed: int
) -> tuple[int, Int64[np.ndarray, " B"], Bool[np.ndarray, " B"]]:
    """The epoch of a step, the examples of some rows, and whether each is the one after
    that of the same row in the step before.

    In an epoch each of so many rows goes through a lane of its own, of examples that
    follow each other; it begins at a place drawn for the epoch, so what is left over,
    fewer examples than there are rows, is another each time.
    """
    length = max(1, count // lanes)
    epoch, place = divmod(step, length)
    start = draws.shuffled(np.zeros(1, np.int64), np.array([epoch]), count, seed)
    indices = (start + rows * length + place) % count
    return epoch, indices, (indices > 0) & (place > 0)


def evaluation_batches(
    examples: Examples | Mapping[str, Examples],
    *,
    batch_size: Rows,
    most: int = 0,
    fewest: int = 0,
    host_index: int = 0,
    host_count: int = 1,
) -> "grain.MapDataset":
    """Every example once, in order, or of more than `most` so many evenly apart; the
    last batch is filled with rows of weight 0, and `fewest` batches are made of such.

    What is drawn depends on the example alone, so sums over all batches do not depend
    on the batch size, nor those of a batch in them on the others.
    """
    import grain

    if isinstance(batch_size, Mapping):

        def part(name: str, fewest: int) -> "grain.MapDataset":
            return evaluation_batches(
                examples[name],
                batch_size=batch_size[name],
                most=most,
                fewest=fewest,
                host_index=host_index,
                host_count=host_count,
            )

        steps = max(len(part(name, fewest)) for name in batch_size)
        return _together({name: part(name, steps) for name in batch_size}, steps)
    mine = _rows_of_host(batch_size, host_index, host_count)
    total = len(examples)
    count = min(total, most) if most else total

    def batch(step: int) -> Batch:
        rows = step * batch_size + mine
        indices = np.minimum(rows, count - 1) * total // count
        starts = draws.starts_of(draws.VISITS, EVALUATION_SEED, rows=indices)
        epochs = np.zeros_like(indices)
        made = examples.batch(Visits(indices, epochs, EVALUATION_SEED, Draws(starts)))
        for array in made.values():
            array[rows >= count] = 0
        return made

    return grain.MapDataset.range(max(fewest, -(-count // batch_size))).map(batch)


def _together(parts: Mapping[str, "grain.MapDataset"], steps: int) -> Any:
    """Batches that hold those of the parts."""
    import grain

    return grain.MapDataset.range(steps).map(
        lambda step: {name: part[step] for name, part in parts.items()}
    )


def by_name(batch: Batch | dict[str, Batch]) -> dict[str, Batch]:
    """The batches in a batch; one that holds none itself, as ""."""
    inner = {name: part for name, part in batch.items() if isinstance(part, dict)}
    return inner or {"": batch}


def describe(
    batch: Batch | dict[str, Batch],
    tokenizer: Tokenizer,
    rows: int,
    told: Callable[[int], list[str]] = lambda row: [],
) -> str:
    """The first rows of a batch for a reader: decoded, predictions marked, padding.

    Of each of the batches in it, where it holds some.

    In masked rows a predicted piece is shown as {input -> target}. In causal rows each
    piece predicts the next one; `|` stands after a piece that predicts nothing.

    Args:
        told: (row) -> lines that say more of it.
    """
    if "tokens" not in batch:
        return "\n".join(
            f"{name}:\n{describe(part, tokenizer, rows, told)}"
            for name, part in by_name(batch).items()
        )
    lines = []
    for row in range(min(rows, len(batch["tokens"]))):
        example = {name: np.asarray(array[row]) for name, array in batch.items()}
        segment_ids = example["segment_ids"]
        real = np.count_nonzero(segment_ids)
        line = f"row {row}: {real} tokens, {len(segment_ids) - real} padding"
        notes: dict[int, str] = {}
        if "targets" in example:
            line += f", {np.count_nonzero(example['weights'])} predicted"
            notes = _notes(example, tokenizer)
        lines.append(line)
        for name, array in example.items():
            if not array.ndim and not name.endswith("weights"):  # of the whole row
                lines.append(f"  {name.replace('_', ' ')}: {array}")
        for segment in range(1, segment_ids.max() + 1):
            places = np.flatnonzero(segment_ids == segment)
            text = _decoded(example["tokens"], places, notes, tokenizer)
            lines.append(f"  sequence {segment}: {text}")
        lines += told(row)
    padding = np.mean(batch["segment_ids"] == 0)
    lines.append(f"padding: {padding:.1%} of the batch's {batch['tokens'].size} tokens")
    return "\n".join(lines)


def glimpse(described: str) -> str:
    """The beginning of what `describe` says of a row, in a few lines of a terminal."""
    lines = described.splitlines()[:3]
    cut = (f"{line[:156]} ..." if len(line) > 160 else line for line in lines)
    return "\n".join(cut)


def predicted(batch: Batch) -> str:
    """How much the rows of a batch predict, and how many of them nothing."""
    counts = np.count_nonzero(batch["weights"], axis=1)
    without = np.count_nonzero(counts == 0)
    return (
        f"{counts.mean():.1f} predictions a row, {without:,} of {len(counts):,} rows "
        "have none"
    )


def _notes(example: Batch, tokenizer: Tokenizer) -> dict[int, str]:
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


def read(
    text: Text,
    starts: Int64[np.ndarray, " B"],
    stops: Int64[np.ndarray, " B"],
    length: int,
) -> tuple[
    Int32[np.ndarray, "B length"],
    Int32[np.ndarray, "B length"],
    Int32[np.ndarray, "B length"],
]:
    """Tokens, segment ids and positions of stream[start:stop], filled with zeros.

    Segments and positions begin anew at each document.
    """
    columns = np.arange(length)
    is_real = columns < (stops - starts)[:, None]
    places = np.where(is_real, starts[:, None] + columns, 0)
    tokens = np.where(is_real, text.tokens[places], 0).astype(np.int32)
    first = np.searchsorted(text.documents, starts, side="right")
    counts = np.searchsorted(text.documents, stops) - first
    rows = np.repeat(np.arange(len(starts)), counts)
    begins = np.zeros((len(starts), length), np.int32)
    inside = text.documents[ranges(first, counts)] - starts[rows]
    begins[rows, inside] = inside
    segment_ids = 1 + np.cumsum(begins > 0, axis=1, dtype=np.int32)
    positions = columns.astype(np.int32) - np.maximum.accumulate(begins, axis=1)
    return tokens, segment_ids * is_real, positions * is_real


def next_token_targets(
    tokens: Integer[np.ndarray, "B T"], segment_ids: Integer[np.ndarray, "B T"]
) -> tuple[Integer[np.ndarray, "B T"], Float32[np.ndarray, "B T"]]:
    """The next token of every token but the last of its segment; their weights."""
    targets, weights = np.zeros_like(tokens), np.zeros(tokens.shape, np.float32)
    following = segment_ids[:, 1:]
    is_next = (following == segment_ids[:, :-1]) & (following > 0)
    targets[:, :-1] = tokens[:, 1:] * is_next
    weights[:, :-1] = is_next
    return targets, weights


def ranges(
    starts: Int64[np.ndarray, " B"], lengths: Int64[np.ndarray, " B"]
) -> Int64[np.ndarray, " N"]:
    """start, start + 1, .. of each range, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(lengths.sum()) + np.repeat(starts - ends + lengths, lengths)


def check_text(text: Text) -> None:
    """UserError where a split is too short for a token to follow another."""
    if text.num_tokens < 2:
        raise UserError(
            f"the {text.split} split holds {text.num_tokens} token(s): nothing to "
            "predict. Add text to data.corpus."
        )


def _rows_of_host(batch_size: int, index: int, count: int) -> Int64[np.ndarray, " B"]:
    if batch_size < 1 or batch_size % count:
        raise UserError(
            f"data.batch_size={batch_size} does not divide over {count} host(s): "
            f"choose {count}, or a multiple of it"
        )
    rows = batch_size // count
    return np.arange(index * rows, (index + 1) * rows)
