"""What the ways that mask words share: windows of text, settings of masks, the measure
of held-out text, and the lines to beat."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Integer
from ml_collections import ConfigDict

from data import draws
from data.masking import Masking, predictions, special_pieces
from data.shards import Framing, Shards
from data.tokenizers import Tokenizer
from data.windows import EVALUATION_SEED, Batch, Text, Visits, check_text, read
from pretraining.counts import Neighbours, frequencies, stream_of
from pretraining.language_model import long_enough, perplexity, word_loss
from pretraining.record import HeldOut, Line, Measure, Objective
from settings import Setting

HIDDEN_RATE = 0.15
MOST_HIDDEN = 1 << 14  # words that both neighbours are asked for
AT_ONCE = 256  # of their distributions over the vocabulary

ROLES = ("pad", "cls", "sep", "mask")


def make_masking(objective: Objective, tokenizer: Tokenizer) -> Masking:
    return Masking(
        tokenizer,
        mask_rate=objective.mask_rate,
        mask_token_rate=objective.mask_token_rate,
        random_token_rate=objective.random_token_rate,
        max_predictions=objective.max_predictions,
        whole_word=objective.whole_word,
    )


def framing(tokenizer: Tokenizer) -> Framing:
    """Each document is `[CLS] ... [SEP]`."""
    ids = tokenizer.special_ids
    return Framing(ids["cls"], ids["sep"], split_sentences=False)


class Windows:
    """Rows of the stream, packed full.

    A window goes on into the following documents, which do not see each other
    (`segment_ids`). Each begins with [CLS], put in front where it cuts a document, and
    advances by T-1 tokens.
    """

    def __init__(self, text: Text, tokenizer: Tokenizer, sequence_length: int):
        check_text(text)
        self.text = text
        self.sequence_length = sequence_length
        self.cls = tokenizer.special_ids["cls"]
        self.pad = tokenizer.special_ids["pad"]
        assert text.tokens[0] == self.cls, "shards framed for another way"

    def __len__(self) -> int:
        # No window for the last token alone: it is a [SEP], nothing to predict.
        return (self.text.num_tokens - 2) // (self.sequence_length - 1) + 1

    def starts(self, indices: Int64[np.ndarray, " B"]) -> Int64[np.ndarray, " B"]:
        """Where windows begin in the stream."""
        starts, documents = indices * (self.sequence_length - 1), self.text.documents
        # Within a document [CLS] takes the place of the token before.
        return starts - (documents[np.searchsorted(documents, starts)] != starts)

    def rows(self, indices: Int64[np.ndarray, " B"]) -> Batch:
        starts, length = self.starts(indices), self.sequence_length
        stops = np.minimum(starts + length, self.text.num_tokens)
        tokens, segment_ids, positions = read(self.text, starts, stops, length)
        tokens[:, 0] = self.cls
        tokens[segment_ids == 0] = self.pad
        return {
            "tokens": tokens,
            "segment_ids": segment_ids,
            "positions": positions,
            "token_types": np.zeros_like(tokens),
        }


class MaskedLmExamples:
    """Windows of the stream, some of their tokens masked."""

    def __init__(self, windows: Windows, masking: Masking):
        self.windows = windows
        self.masking = masking

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, visits: Visits) -> Batch:
        return self.masking.mask(self.windows.rows(visits.indices), visits.draws)


def make_examples(
    objective: Objective, tokenizer: Tokenizer, sequence_length: int
) -> Callable[[Shards], MaskedLmExamples]:
    masking = make_masking(objective, tokenizer)
    return lambda split: MaskedLmExamples(
        Windows(split, tokenizer, sequence_length), masking
    )


class HiddenWords:
    """Windows of held-out text with `HIDDEN_RATE` of its tokens as [MASK].

    Which ones depends on their place in the text alone, so that runs of one tokenizer
    are measured on the same, whatever their rows and masks.
    """

    def __init__(self, text: Text, tokenizer: Tokenizer, sequence_length: int):
        self.windows = Windows(text, tokenizer, sequence_length)
        self.is_special = special_pieces(tokenizer)
        self.mask = tokenizer.special_ids["mask"]
        # Five standard deviations more than the mean.
        mean = sequence_length * HIDDEN_RATE
        room = mean + 5 * math.sqrt(mean * (1 - HIDDEN_RATE))
        self.room = min(sequence_length, math.ceil(room))

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, visits: Visits) -> Batch:
        """Nothing is drawn."""
        rows, starts = (
            self.windows.rows(visits.indices),
            self.windows.starts(visits.indices),
        )
        tokens = rows["tokens"]
        places = (starts[:, None] + np.arange(tokens.shape[1])).astype(np.uint64)
        start = draws.starts_of(draws.HIDDEN, rows=np.array([EVALUATION_SEED]))
        chance = (draws.numbers(start[:, None], places) >> np.uint64(11)) * 2.0**-53
        is_hidden = (chance < HIDDEN_RATE) & (rows["segment_ids"] > 0)
        is_hidden &= ~self.is_special[tokens]
        is_hidden &= np.cumsum(is_hidden, axis=1) <= self.room
        shown = np.where(is_hidden, self.mask, tokens).astype(np.int32)
        return rows | {"tokens": shown} | predictions(is_hidden, tokens, self.room)


class Framed(NamedTuple):
    """Text whose documents are `[CLS] ... [SEP]`, whatever its shards have."""

    split: str
    tokens: Integer[np.ndarray, " N"]
    documents: Int64[np.ndarray, " D_plus_1"]

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)


def framed(split: Shards, tokenizer: Tokenizer) -> Text:
    """The split itself where it is framed; else a copy: for what is held out."""
    cls, sep = (tokenizer.special_ids[role] for role in ("cls", "sep"))
    if split.num_tokens == 0 or split.tokens[0] == cls:
        return split
    begins, ends = split.documents[:-1], split.documents[1:]
    tokens = np.insert(
        split.tokens,
        np.stack([begins, ends], axis=1).reshape(-1),
        np.tile([cls, sep], len(begins)),
    )
    return Framed(split.split, tokens, split.documents + 2 * np.arange(len(ends) + 1))


def hidden_words(tokenizer: Tokenizer, sequence_length: int) -> Callable:
    return lambda split: HiddenWords(
        framed(split, tokenizer), tokenizer, sequence_length
    )


def masked_loss_terms(name: str) -> Callable:
    """The masked tokens alone, as a term of that name."""

    def make(_: Objective, model: Any, logit_chunks: int) -> Callable:
        def terms(params: Any, batch: dict, dropout_key: Any) -> dict:
            output = model.apply(params, batch, dropout_key)
            return {name: word_loss(output["masked_lm"], batch, logit_chunks)}

        return terms

    return make


MEASURES = {"masked": Measure(hidden_words, masked_loss_terms("masked"))}


def lines(
    objective: Objective,
    tokenizer: Tokenizer,
    train: Shards,
    held_out: HeldOut,
    loss: str = "loss",
) -> tuple[Line, ...]:
    """At the hidden places of the measure, and for the loss of that name frequencies,
    where what is shown may be kept."""
    shares = word_shares(tokenizer, train)
    masking = make_masking(objective, tokenizer)
    shown = np.concatenate(
        [frequency_losses(shares, masking, batch) for batch in held_out.batches]
    )
    return (
        *measured_lines(tokenizer, train, held_out, shares),
        Line("frequencies", loss, float(shown.mean())),
    )


def word_shares(tokenizer: Tokenizer, train: Shards) -> Float64[np.ndarray, " V"]:
    """The frequencies of what can be hidden."""
    shares = frequencies(train.unigram_counts)
    shares[special_pieces(tokenizer)] = 0
    return shares / shares.sum()


def measured_lines(
    tokenizer: Tokenizer,
    train: Shards,
    held_out: HeldOut,
    shares: Float64[np.ndarray, " V"],
) -> tuple[Line, ...]:
    """At the hidden places frequencies, and both neighbours."""
    hidden = [*held_out.measured["masked"]]
    targets = [batch["targets"][batch["weights"] > 0] for batch in hidden]
    by_frequency = -np.log(shares[np.concatenate(targets)])
    model = Neighbours(stream_of(train.tokens, train.documents), shares)
    nats, accuracy = neighbours_score(model, hidden, tokenizer.special_ids["mask"])
    return (
        Line("frequencies", "masked_loss", float(by_frequency.mean())),
        Line("both neighbours", "masked_loss", nats),
        Line("both neighbours", "masked_accuracy", accuracy),
    )


def neighbours_score(
    model: Neighbours, batches: Iterable[Batch], mask: int
) -> tuple[float, float]:
    """(nats, share of right ones) at hidden words, at most `MOST_HIDDEN` of them."""
    losses, right = [], []
    for batch in batches:
        rows, slots = np.nonzero(batch["weights"])
        columns = batch["predict_positions"][rows, slots].astype(np.int64)
        targets = batch["targets"][rows, slots]
        seen = np.where(batch["tokens"] == mask, -1, batch["tokens"]).astype(np.int64)
        seen[:, 0] = -1  # a [CLS] that may stand in the middle of a document
        seen = np.pad(seen, [(0, 0), (0, 1)], constant_values=-1)
        left, after = seen[rows, columns - 1], seen[rows, columns + 1]
        for first in range(0, len(targets), AT_ONCE):
            part = slice(first, first + AT_ONCE)
            found, aim = model.probabilities(left[part], after[part]), targets[part]
            losses += (-np.log(found[np.arange(len(aim)), aim])).tolist()
            right += (found.argmax(axis=1) == aim).tolist()
        if len(losses) >= MOST_HIDDEN:
            break
    return float(np.mean(losses)), float(np.mean(right))


def frequency_losses(
    shares: Float64[np.ndarray, " V"], masking: Masking, batch: Batch
) -> Float64[np.ndarray, " N"]:
    """Nats of each prediction of a batch for whoever knows frequencies, and how often
    what is shown was kept."""
    rows, slots = np.nonzero(batch["weights"])
    targets = batch["targets"][rows, slots]
    shown = batch["tokens"][rows, batch["predict_positions"][rows, slots]]
    kept = masking.kept_rate * shares
    other = np.zeros_like(shares)
    other[masking.replacements] = masking.random_token_rate / len(masking.replacements)
    is_kept = np.divide(kept, kept + other, out=np.zeros_like(kept), where=kept > 0)
    is_kept[masking.mask_id] = 0
    by_frequency = (1 - is_kept[shown]) * shares[targets]
    return -np.log(by_frequency + is_kept[shown] * (shown == targets))


def evaluation(means: Mapping[str, float], _: Shards) -> dict[str, float]:
    return {"perplexity": perplexity(means["masked_lm_loss"])}


def tiny(objective: Objective, sequence_length: int) -> dict[str, Any]:
    return {"max_predictions": max(1, round(sequence_length * objective.mask_rate))}


SETTINGS = (
    Setting(
        "objective.mask_rate",
        float,
        "Share of a row's tokens to be predicted; BERT's is 0.15.",
        ">0 <=1",
    ),
    Setting(
        "objective.mask_token_rate",
        float,
        "Share of these that become [MASK]; BERT's is 0.8.",
        ">=0 <=1",
    ),
    Setting(
        "objective.random_token_rate",
        float,
        "Share of these that become another token; BERT's is 0.1.",
        ">=0 <=1",
    ),
    Setting(
        "objective.max_predictions",
        int,
        "Room for predictions in a row: mask_rate of its tokens.",
        ">=1",
    ),
    Setting("objective.whole_word", bool, "The pieces of a word share one fate."),
)


def room_for_predictions(config: ConfigDict) -> str | None:
    objective, length = config.objective, config.data.sequence_length
    room, wanted = objective.max_predictions, round(length * objective.mask_rate)
    if room >= wanted:
        return None
    return (
        f"objective.max_predictions={room} leaves {100 * room / length:.1f} % of the "
        f"{length} tokens of data.sequence_length to be predicted, less than "
        f"objective.mask_rate={objective.mask_rate} of them: set "
        f"objective.max_predictions={wanted}"
    )


def shares_of_the_masked(config: ConfigDict) -> str | None:
    objective = config.objective
    masked, random = objective.mask_token_rate, objective.random_token_rate
    if masked + random <= 1:
        return None
    return (
        f"objective.mask_token_rate={masked} and objective.random_token_rate={random} "
        "add up to more than 1: BERT's are 0.8 and 0.1, and the rest of the predicted "
        "tokens stay as they are"
    )


RULES = (long_enough, room_for_predictions, shares_of_the_masked)
