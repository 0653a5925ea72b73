"""Causal language modelling: predict the next token.

Source: Radford et al. 2018, section 3.1.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data.shards import Framing, Shards
from data.tokenizers import GPT_SPECIAL_TOKENS, Tokenizer
from pretraining.counts import Ngrams, stream_of, target_probabilities
from pretraining.language_model import (
    BITS,
    CausalLmExamples,
    long_enough,
    perplexity,
    word_loss,
)
from pretraining.record import HeldOut, Line, Objective, Pretraining

NGRAMS = {"unigram": 1, "bigram": 2, "5-gram": 5}


def framing(tokenizer: Tokenizer) -> Framing:
    """The end-of-text token stands before and after each document if the vocabulary
    has one, so that first tokens and ends are predicted as well."""
    end_of_text = tokenizer.special_ids.get("end_of_text")
    return Framing(end_of_text, end_of_text, split_sentences=False)


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


PRETRAINING = Pretraining(
    special_tokens=GPT_SPECIAL_TOKENS,
    roles=("end_of_text",),
    may_lack=("end_of_text",),
    framing=framing,
    examples=lambda _, tokenizer, length: lambda split: CausalLmExamples(split, length),
    outputs=("causal_lm",),
    sees="left",
    loss_terms=loss_terms,
    predicted=lambda _, length: length,
    measures={},  # its loss is one already
    lines=lines,
    evaluation=evaluation,
    commands=("generate",),
    settings=(),
    rules=(long_enough,),
    tiny=lambda *_: {},
)
