"""What the ways that predict the next token share: windows of text, their loss, what is
told of it, and the lines to beat."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64

from data.shards import Shards
from data.tokenizers import Tokenizer
from data.windows import Batch, Visits, check_text, next_token_targets, read
from pretraining.counts import Ngrams, rows_as_stream, stream_of
from pretraining.language_model import BITS, perplexity, word_loss
from pretraining.record import HeldOut, Line, Objective

NGRAMS = {"unigram": 1, "bigram": 2, "5-gram": 5}


class CausalLmExamples:
    """Windows of the stream, each token predicting the next one of its document.

    Window i is stream[i*T : (i+1)*T]. Every token that has a predecessor in its
    document is predicted exactly once over all windows. (GPT, section 3.1.)
    """

    def __init__(self, shards: Shards, sequence_length: int):
        check_text(shards)
        self.shards = shards
        self.sequence_length = sequence_length

    def __len__(self) -> int:
        return (self.shards.num_tokens - 2) // self.sequence_length + 1

    def batch(self, visits: Visits) -> Batch:
        """Nothing is drawn."""
        length = self.sequence_length
        starts = visits.indices * length
        # One more than the window, for the last target.
        stops = np.minimum(starts + length + 1, self.shards.num_tokens)
        tokens, segment_ids, positions = read(self.shards, starts, stops, length + 1)
        targets, weights = next_token_targets(tokens, segment_ids)
        arrays = {
            "tokens": tokens,
            "segment_ids": segment_ids,
            "positions": positions,
            "targets": targets,
            "weights": weights,
        }
        return {name: array[:, :length] for name, array in arrays.items()}


def loss_terms(_: Objective, model: Any, logit_chunks: int) -> Callable:
    """The next token of the document."""

    def terms(params: Any, batch: dict, dropout_key: Any) -> dict:
        output = model.apply(params, batch, dropout_key)
        return {"causal_lm": word_loss(output["causal_lm"], batch, logit_chunks)}

    return terms


def evaluation(means: Mapping[str, float], heldout: Shards) -> dict[str, float]:
    """Perplexity, and bits for a byte of the text whatever its tokens are."""
    loss = means["causal_lm_loss"]
    return {"perplexity": perplexity(loss), BITS: bits_per_byte(loss, heldout)}


def bits_per_byte(loss: float, split: Shards) -> float:
    """Of nats a token."""
    # Every token is predicted but the first of a document, which its frame adds.
    predicted = split.num_tokens - (len(split.documents) - 1)
    return loss / math.log(2) * predicted / split.text_bytes


def lines(
    _: Objective, __: Tokenizer, train: Shards, held_out: HeldOut
) -> tuple[Line, ...]:
    """Counts of the training text's pieces, of their pairs, and of runs of five."""
    text = stream_of(train.tokens, train.documents)
    size = len(train.unigram_counts)
    models = {name: Ngrams(text, size, order) for name, order in NGRAMS.items()}
    losses = np.zeros(len(models))
    predicted = 0.0
    for batch in held_out.batches:
        weights = batch["weights"].reshape(-1)
        predicted += float(weights.sum())
        for number, model in enumerate(models.values()):
            found = target_probabilities(model, batch)
            losses[number] -= weights @ np.log(found)
    return tuple(
        Line(name, BITS, bits_per_byte(loss / predicted, held_out.split))
        for name, loss in zip(models, losses.tolist(), strict=True)
    )


def target_probabilities(model: Ngrams, batch: Batch) -> Float64[np.ndarray, " N"]:
    """Of the targets of a batch, row by row, after the tokens before them there."""
    tokens, segment_ids = batch["tokens"], batch["segment_ids"]
    # The last target stands in no row.
    last, goes_on = batch["targets"][:, -1:], batch["weights"][:, -1:] > 0
    words = np.concatenate([tokens, last], axis=1)
    segments = np.concatenate([segment_ids, segment_ids[:, -1:] * goes_on], axis=1)
    found = model.probabilities(rows_as_stream(words, segments))
    return found.reshape(words.shape)[:, 1:].reshape(-1)
