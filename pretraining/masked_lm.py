"""Masked language modelling alone: predict the tokens behind the mask.

Source: Devlin et al. 2019, section 3.1, task 1; without next sentence prediction, as
Liu et al. 2019, section 4.2, in rows packed full.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from data.masking import Masking
from data.shards import Framing, Shards
from data.tokenizers import BERT_SPECIAL_TOKENS, Tokenizer
from data.windows import Batch, Visits, check_text, read
from pretraining import masked_words
from pretraining.language_model import word_loss
from pretraining.record import Objective, Pretraining


class MaskedLmExamples:
    """Windows of the stream, some of their tokens masked.

    Rows are packed full: a window goes on into the following documents, which do not
    see each other (`segment_ids`). Each window begins with [CLS], put in front where it
    cuts a document, and advances by T-1 tokens.
    """

    def __init__(
        self,
        shards: Shards,
        tokenizer: Tokenizer,
        masking: Masking,
        sequence_length: int,
    ):
        check_text(shards)
        self.masking = masking
        self.shards = shards
        self.sequence_length = sequence_length
        self.cls = tokenizer.special_ids["cls"]
        self.pad = tokenizer.special_ids["pad"]
        assert shards.tokens[0] == self.cls, "shards framed for another way"

    def __len__(self) -> int:
        # No window for the last token alone: it is a [SEP], nothing to predict.
        return (self.shards.num_tokens - 2) // (self.sequence_length - 1) + 1

    def batch(self, visits: Visits) -> Batch:
        length, documents = self.sequence_length, self.shards.documents
        starts = visits.indices * (length - 1)
        # Within a document [CLS] takes the place of the token before.
        starts -= documents[np.searchsorted(documents, starts)] != starts
        stops = np.minimum(starts + length, self.shards.num_tokens)
        tokens, segment_ids, positions = read(self.shards, starts, stops, length)
        tokens[:, 0] = self.cls
        tokens[segment_ids == 0] = self.pad
        rows = {
            "tokens": tokens,
            "segment_ids": segment_ids,
            "positions": positions,
            "token_types": np.zeros_like(tokens),
        }
        return self.masking.mask(rows, visits.draws)


def framing(tokenizer: Tokenizer) -> Framing:
    """Each document is `[CLS] ... [SEP]`."""
    ids = tokenizer.special_ids
    return Framing(ids["cls"], ids["sep"], split_sentences=False)


def make_examples(
    objective: Objective, tokenizer: Tokenizer, sequence_length: int
) -> Callable[[Shards], MaskedLmExamples]:
    masking = masked_words.make_masking(objective, tokenizer)
    return lambda split: MaskedLmExamples(split, tokenizer, masking, sequence_length)


def loss_terms(model: Any, logit_chunks: int) -> Callable:
    """The masked tokens."""

    def terms(params: Any, batch: dict, dropout_key: Any) -> dict:
        output = model.apply(params, batch, dropout_key)
        return {"masked_lm": word_loss(output["masked_lm"], batch, logit_chunks)}

    return terms


PRETRAINING = Pretraining(
    special_tokens=BERT_SPECIAL_TOKENS,
    roles=masked_words.ROLES,
    framing=framing,
    examples=make_examples,
    outputs=("masked_lm",),
    sees="both",
    loss_terms=loss_terms,
    predicted=lambda objective, _: objective.max_predictions,
    line=masked_words.line,
    evaluation=masked_words.evaluation,
    commands=("fill_mask",),
    settings=masked_words.SETTINGS,
    rules=masked_words.RULES,
    tiny=masked_words.tiny,
)
