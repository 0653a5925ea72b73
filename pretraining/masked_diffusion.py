"""Masked diffusion: predict what is hidden, whatever share of a text that is.

Sources: Sahoo et al. 2024, MDLM, section 3; Nie et al. 2025, LLaDA, section 2.1. The
number n of hidden tokens of a row is drawn evenly from 1 .. L, as in LLaDA's form of
the likelihood (its equation 14), and each counts L/n: the loss is a bound, in nats a
token, that stands beside that of a causal model; and it learns to go on from any share
of the words, so that many can be filled in at once.
"""

from collections.abc import Callable, Mapping

import numpy as np

from data.masking import predictions, special_pieces
from data.shards import Shards
from data.tokenizers import BERT_SPECIAL_TOKENS, Tokenizer
from data.windows import Batch, Visits
from pretraining import masked_words
from pretraining.language_model import BITS, long_enough
from pretraining.masked_words import Windows
from pretraining.record import HeldOut, Line, Objective, Pretraining


class MaskedDiffusionExamples:
    """Windows of the stream, of each from one to all of its words as [MASK]."""

    def __init__(self, windows: Windows, tokenizer: Tokenizer):
        self.windows = windows
        self.mask = tokenizer.special_ids["mask"]
        self.is_special = special_pieces(tokenizer)

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, visits: Visits) -> Batch:
        rows = self.windows.rows(visits.indices)
        tokens, length = rows["tokens"], rows["tokens"].shape[1]
        is_word = (rows["segment_ids"] > 0) & ~self.is_special[tokens]
        words = np.count_nonzero(is_word, axis=1)
        hidden = np.where(words > 0, 1 + visits.draws.below(words), 0)
        order = np.where(is_word, visits.draws.uniform(length), 1.0)
        ranks = np.argsort(np.argsort(order, axis=1), axis=1)
        is_hidden = ranks < hidden[:, None]
        found = predictions(is_hidden, tokens, length)
        share = words / np.maximum(hidden, 1)
        weights = found["weights"] * share[:, None].astype(np.float32)
        shown = np.where(is_hidden, self.mask, tokens).astype(np.int32)
        return rows | {"tokens": shown} | found | {"weights": weights}


def make_examples(
    _: Objective, tokenizer: Tokenizer, sequence_length: int
) -> Callable[[Shards], MaskedDiffusionExamples]:
    return lambda split: MaskedDiffusionExamples(
        Windows(split, tokenizer, sequence_length), tokenizer
    )


def lines(
    _: Objective, tokenizer: Tokenizer, train: Shards, held_out: HeldOut
) -> tuple[Line, ...]:
    """At the hidden places of the measure, and for the bound frequencies."""
    shares = masked_words.word_shares(tokenizer, train)
    total = weight = 0.0
    for batch in held_out.batches:
        rows, slots = np.nonzero(batch["weights"])
        counted = batch["weights"][rows, slots].astype(np.float64)
        total -= counted @ np.log(shares[batch["targets"][rows, slots]])
        weight += counted.sum()
    return (
        *masked_words.measured_lines(tokenizer, train, held_out, shares),
        Line("frequencies", "loss", float(total / weight)),
    )


def evaluation(means: Mapping[str, float], heldout: Shards) -> dict[str, float]:
    """Bits for a byte of the text, a bound; frames are not predicted."""
    loss = means["masked_lm_loss"]
    words = heldout.num_tokens - 2 * (len(heldout.documents) - 1)
    return {BITS: float(loss / np.log(2) * words / heldout.text_bytes)}


PRETRAINING = Pretraining(
    special_tokens=BERT_SPECIAL_TOKENS,
    roles=masked_words.ROLES,
    framing=masked_words.framing,
    examples=make_examples,
    outputs=("masked_lm",),
    sees=("both",),
    loss_terms=masked_words.masked_loss_terms("masked_lm"),
    predicted=lambda _, length: length,
    measures=masked_words.MEASURES,
    lines=lines,
    evaluation=evaluation,
    commands=("generate", "fill_mask"),
    settings=(),
    rules=(long_enough,),
    tiny=lambda *_: {},
)
