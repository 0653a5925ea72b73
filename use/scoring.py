"""Log-probabilities of texts, many at a time: rows packed full, the longest first.

A causal model gives each token its probability after those before it. A masked one
gives each token its probability where it alone is hidden, a copy of the text for each
(pseudo-log-likelihood: Wang and Cho 2019; Salazar et al. 2020); in the within-word form
the later pieces of its word are hidden, too, so that a word of many pieces does not
give itself away (Kauf and Ivanova 2023).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int, Integer
from tqdm import tqdm

import models
from data.tokenizers import TASK_ROLES
from errors import UserError
from models import Model
from models.transformer import logits
from tasks import packing
from tasks.encoding import Encoded, Examples
from tasks.packing import RowShape
from use.run import PRETRAINED_PRECISION, Run

BATCH_TOKENS = 4096
MOST_LOGITS = 1 << 26  # of a batch: 256 MiB
CHUNK_TOKENS = 1 << 18  # laid out at a time; copies of masked texts count


class Counted(NamedTuple):
    """The tokens of a text, special ones included, and those whose probabilities
    count: first .. last-1."""

    tokens: Integer[np.ndarray, " N"]
    first: int
    last: int


class Scores(NamedTuple):
    """Of texts.

    Attributes:
        sums: nats, the log-probability of what counts.
        counts: how many tokens that is; the first of a text that a causal model has no
            start token for is not among them.
        greedy: whether each of them is the likeliest there.
    """

    sums: Float64[np.ndarray, " N"]
    counts: Int[np.ndarray, " N"]
    greedy: Bool[np.ndarray, " N"]


class Way(NamedTuple):
    """One to read probabilities off a model.

    Attributes:
        output: that a model needs for it.
        frame: (run) -> tokens before and after a text.
        examples: (run, text, within_word) -> its sequences.
        room: tokens that a text may have beyond the model's positions.
        sees_both: whether a token's probability depends on what follows it.
    """

    output: str
    frame: Callable[[Run], tuple[list[int], list[int]]]
    examples: Callable[[Run, Counted, bool], Iterator[Encoded]]
    room: int
    sees_both: bool


def causal_frame(run: Run) -> tuple[list[int], list[int]]:
    return run.start, []


def masked_frame(run: Run) -> tuple[list[int], list[int]]:
    special = run.tokenizer.special_ids
    return [special["cls"]], [special["sep"]]


def causal_examples(run: Run, text: Counted, within_word: bool) -> Iterator[Encoded]:
    """Each token predicts the next one; the last that counts has nothing to predict."""
    tokens = text.tokens[: text.last].astype(np.int32)
    targets = np.arange(1, len(tokens))
    if len(targets):
        yield sequence(tokens[:-1], tokens[1:], targets >= text.first)


def masked_examples(run: Run, text: Counted, within_word: bool) -> Iterator[Encoded]:
    """A copy for each token that counts."""
    tokens, places = text.tokens.astype(np.int32), np.arange(text.first, text.last)
    is_counted = np.arange(len(tokens)) == places[:, None]
    hidden = is_counted
    if within_word:
        words = np.cumsum(run.tokenizer.starts_word[tokens])
        is_later = np.arange(len(tokens)) > places[:, None]
        hidden = is_counted | (is_later & (words == words[places, None]))
    shown = np.where(hidden, run.tokenizer.special_ids["mask"], tokens)
    for row, counts in zip(shown.astype(np.int32), is_counted, strict=True):
        yield sequence(row, tokens, counts)


def sequence(
    tokens: Int[np.ndarray, " N"],
    targets: Int[np.ndarray, " N"],
    counts: Bool[np.ndarray, " N"],
) -> Encoded:
    size = len(tokens)
    arrays = {
        "tokens": tokens,
        "segment_ids": np.ones(size, np.int32),
        "positions": np.arange(size, dtype=np.int32),
        "targets": targets,
        "weights": counts.astype(np.float32),
    }
    return Encoded(arrays, {}, {})


WAYS = {
    "causal": Way("causal_lm", causal_frame, causal_examples, 1, False),
    "masked": Way("masked_lm", masked_frame, masked_examples, 0, True),
}


def way_of(run: Run, asked: str | None = None) -> str:
    """The one of `WAYS` that a run is scored in.

    Raises:
        UserError: it was fine-tuned, cannot be scored as is asked, or in several.
    """
    if run.task is not None:
        raise UserError(
            f"{run.folder} was fine-tuned for {run.task.kind} and gives no words a "
            "probability: score the run that it began from, or this one by score.py "
            "task --input=FILE, without --spec"
        )
    can = [
        name
        for name, way in WAYS.items()
        if way.output in run.way.outputs
        and way.output in models.outputs_of(fields_for(run, way))
    ]
    if asked is None and len(can) == 1:
        return can[0]
    if asked in can:
        return str(asked)
    told = " or ".join(f"--as={name}" for name in can)
    raise UserError(
        f"{run.folder} can be scored in more than one way: choose {told}"
        if asked is None and can
        else f"{run.folder} gives no such probabilities"
        f"{'' if asked is None else f' (--as={asked})'}: "
        f"{told or 'it predicts no words'}"
    )


def fields_for(run: Run, way: Way) -> dict[str, Any]:
    """`model` of a run, made to see what the way needs where it can do either."""
    fields = run.config.model.to_dict() | {"precision": PRETRAINED_PRECISION}
    return models.seeing(fields, "both" if way.sees_both else "left")


def whole_texts(
    run: Run, way: str, texts: Sequence[str], places: Sequence[str]
) -> list[Counted]:
    """Texts of which all counts, but what frames them.

    Says on stderr how many pieces are unknown.

    Raises:
        UserError: a text without a piece, or longer than the model, with its place.
    """
    before, after = WAYS[way].frame(run)
    found, unknown, total = [], 0, 0
    for place, pieces in zip(places, run.tokenizer.encode_batch([*texts]), strict=True):
        if not len(pieces):
            raise UserError(f"{place} has no text: write some, or remove it")
        unknown += run.count_unpredictable(pieces)
        total += len(pieces)
        tokens = np.concatenate([before, pieces, after]).astype(np.int32)
        found.append(Counted(tokens, len(before), len(before) + len(pieces)))
        check_length(run, way, found[-1], place)
    run.tell_unknown(unknown, total)
    return found


def never_meant(run: Run) -> Int[np.ndarray, " S"]:
    """The tokens that frame a task's text alone: no text that was read has them, and an
    import may have added them, so that no probability is theirs."""
    special = run.tokenizer.special_ids
    ids = [special[role] for role in TASK_ROLES if role in special]
    return np.array(ids, np.int32)


def check_length(run: Run, way: str, text: Counted, place: str) -> None:
    """Raises UserError where a text does not fit the model's positions."""
    limit = longest(run, way)
    if len(text.tokens) > limit:
        raise UserError(
            f"{place}: {len(text.tokens)} tokens, but the model has room for {limit}: "
            "shorten it, or take perplexity, which reads through windows"
        )


def longest(run: Run, way: str) -> int:
    """How many tokens of a text the model has positions for."""
    return run.config.model.max_positions + WAYS[way].room


def log_probabilities(
    run: Run, way: str, texts: Sequence[Counted], within_word: bool = False
) -> Scores:
    """Of what counts in each text; equal ones are computed once, and score the same.

    Args:
        way: of `WAYS`.
        within_word: the masked way's other form.
    """
    keys = [(text.tokens.tobytes(), text.first, text.last) for text in texts]
    model = models.build(fields_for(run, WAYS[way]))
    distinct = dict(zip(keys, texts, strict=True))
    order = sorted(distinct, key=lambda key: len(distinct[key].tokens), reverse=True)
    numbers = {key: number for number, key in enumerate(order)}
    sums = np.zeros(len(order))
    counts, wrong = np.zeros(len(order), int), np.zeros(len(order), int)
    shape, told = None, tqdm(total=len(order), desc="texts", leave=False, disable=None)
    for owners, examples in chunks(
        run, way, [distinct[key] for key in order], within_word
    ):
        if shape is None:
            shape = make_shape(run, way, [*distinct.values()], examples)
        for chosen, found, is_best in scored(run, model, WAYS[way], examples, shape):
            owner = owners[chosen]
            sums += np.bincount(owner, found, len(order))
            counts += np.bincount(owner, minlength=len(order))
            wrong += np.bincount(owner[~is_best], minlength=len(order))
        told.update(int(owners[-1]) + 1 - told.n)
    told.close()
    places = np.array([numbers[key] for key in keys], int)
    return Scores(sums[places], counts[places], wrong[places] == 0)


def chunks(
    run: Run, way: str, texts: Sequence[Counted], within_word: bool
) -> Iterator[tuple[Int[np.ndarray, " n"], Examples]]:
    """The sequences of texts, about `CHUNK_TOKENS` of them, and whose they are."""
    pad = run.tokenizer.special_ids.get("pad", 0)
    owners: list[int] = []
    encoded: list[Encoded] = []
    size = 0
    for number, text in enumerate(texts):
        for example in WAYS[way].examples(run, text, within_word):
            owners.append(number)
            encoded.append(example)
            size += len(example)
        if size > CHUNK_TOKENS or (encoded and number == len(texts) - 1):
            yield np.array(owners), Examples((), encoded, [], pad)
            owners, encoded, size = [], [], 0


def make_shape(
    run: Run, way: str, texts: Sequence[Counted], examples: Examples
) -> RowShape:
    """Rows for all these texts; no more than the first examples fill."""
    lengths = np.array([len(text.tokens) for text in texts])
    if WAYS[way].sees_both:  # a copy for each token
        lengths = np.repeat(lengths, [text.last - text.first for text in texts])
    most = max(128, 2 * int(lengths.max()))
    length = packing.row_length(lengths, most, read_once=True)
    wanted = min(BATCH_TOKENS, MOST_LOGITS // run.config.model.vocab_size) // length
    ordered = np.sort(examples.lengths)[::-1]
    filled = len(packing.pack(ordered, length, slots=length))
    batches = -(-filled // max(1, wanted))  # the last one shall be full, too
    return RowShape(-(-filled // batches), length, slots=length, packed=True)


def scored(
    run: Run, model: Model, way: Way, examples: Examples, shape: RowShape
) -> Iterator[tuple[Int[np.ndarray, " n"], Float64[np.ndarray, " n"], np.ndarray]]:
    """Of each batch the tokens that count: whose each is, its log-probability, and
    whether it is the likeliest."""
    computed, never = [], never_meant(run)
    for batch in packing.evaluation_batches(examples, shape).map(run.reads):
        counted = compact(batch)
        read = {name: batch[name] for name in model.inputs if name in batch}
        if way.sees_both and "predict_positions" in model.inputs:  # spares its head
            read["predict_positions"] = counted["predict_positions"]
        # Not waited for: the next batch is laid out meanwhile.
        found = word_scores(model, run.params, read, counted, never, way.output)
        computed.append((owners_of(batch, counted), counted["weights"] > 0, found))
    for owners, is_counted, (found, is_best) in computed:
        yield (
            owners[is_counted],
            np.asarray(found)[is_counted].astype(np.float64),
            np.asarray(is_best)[is_counted],
        )


def compact(batch: packing.Batch) -> packing.Batch:
    """`targets` and `weights` [B, P] of what counts, at `predict_positions` [B, P].

    P is that of the fullest row, rounded up, so that few shapes are compiled.
    """
    is_counted = batch["weights"] > 0
    most = max(1, int(is_counted.sum(axis=1).max()))
    step = max(8, most // 64 * 8)
    room = min(-(-most // step) * step, is_counted.shape[1])
    places = np.argsort(~is_counted, axis=1, kind="stable")[:, :room].astype(np.int32)
    found = {
        name: np.take_along_axis(batch[name], places, axis=1)
        for name in ("targets", "weights")
    }
    return found | {"predict_positions": places}


def owners_of(batch: packing.Batch, counted: packing.Batch) -> Int[np.ndarray, "B P"]:
    """The number of the example that stands at each place; of padding any."""
    segments = np.take_along_axis(
        batch["segment_ids"], counted["predict_positions"], axis=1
    )
    return np.take_along_axis(batch["example_ids"], np.maximum(segments - 1, 0), axis=1)


@partial(jax.jit, static_argnames=("model", "output"))
def word_scores(
    model: Model,
    params: Any,
    batch: dict[str, Array],
    counted: dict[str, Array],
    never: Int[Array, " S"] | Int[np.ndarray, " S"],
    output: str,
) -> tuple[Float[Array, "B P"], Bool[Array, "B P"]]:
    """log p(target) in nats at `predict_positions`, and whether none is likelier.

    Args:
        batch: that the model reads.
        counted: of `compact`.
        never: words that have no probability.
    """
    prediction = model.apply(params, batch)[output]
    if "predict_positions" not in batch:
        places = counted["predict_positions"][:, :, None]
        states = jnp.take_along_axis(prediction.states, places, axis=1)
        prediction = prediction._replace(states=states)
    bias = prediction.bias
    bias = jnp.zeros(len(prediction.table)) if bias is None else bias
    scores = logits(prediction._replace(bias=bias.at[never].set(-jnp.inf)))
    target = jnp.take_along_axis(scores, counted["targets"][..., None], axis=-1)[..., 0]
    likeliest = target >= scores.max(axis=-1)
    return target - jax.nn.logsumexp(scores, axis=-1), likeliest
