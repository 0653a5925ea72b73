"""Causal language modelling: predict the next token.

Source: Radford et al. 2018, section 3.1.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data.shards import Framing, Shards
from data.tokenizers import GPT_SPECIAL_TOKENS, Tokenizer
from data.windows import Batch, Visits, check_text, next_token_targets, read
from pretraining.language_model import (
    long_enough,
    perplexity,
    unigram_line,
    word_loss,
)
from pretraining.record import Pretraining


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


def framing(tokenizer: Tokenizer) -> Framing:
    """The end-of-text token stands before and after each document if the vocabulary
    has one, so that first tokens and ends are predicted as well."""
    end_of_text = tokenizer.special_ids.get("end_of_text")
    return Framing(end_of_text, end_of_text, split_sentences=False)


def loss_terms(model: Any, logit_chunks: int) -> Callable:
    """The next token of the document."""

    def terms(params: Any, batch: dict, dropout_key: Any) -> dict:
        output = model.apply(params, batch, dropout_key)
        return {"causal_lm": word_loss(output["causal_lm"], batch, logit_chunks)}

    return terms


def evaluation(means: Mapping[str, float], heldout: Shards) -> dict[str, float]:
    """Perplexity, and bits for a byte of the text whatever its tokens are."""
    loss = means["causal_lm_loss"]
    # Every token is predicted but the first of a document, which its frame adds.
    predicted = heldout.num_tokens - (len(heldout.documents) - 1)
    bytes_per_token = heldout.text_bytes / predicted
    return {
        "perplexity": perplexity(loss),
        "bits_per_byte": loss / math.log(2) / bytes_per_token,
    }


PRETRAINING = Pretraining(
    special_tokens=GPT_SPECIAL_TOKENS,
    roles=(),
    framing=framing,
    examples=lambda _, tokenizer, length: lambda split: CausalLmExamples(split, length),
    outputs=("causal_lm",),
    sees="left",
    loss_terms=loss_terms,
    predicted=lambda _, length: length,
    line=lambda split, _: unigram_line(split.unigram_counts),
    evaluation=evaluation,
    commands=("generate",),
    settings=(),
    rules=(long_enough,),
    tiny=lambda *_: {},
)
