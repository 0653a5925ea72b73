"""Causal and masked language modelling at once: of each batch some rows predict the
next token, the rest the tokens behind the mask, with the same weights.

Source: Charpentier and Samuel 2024, "GPT or BERT: why not both?", section 3. Here every
word stands as in the two single ways: a masked one is predicted at its own position,
not at the one before. Each loss is the mean over its words of the whole batch, and the
two add up; of halves that is, but for a factor that Adam does not see, the mean over
the devices of the authors' code, each of which has rows of one kind.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from data.shards import Shards
from data.tokenizers import BERT_SPECIAL_TOKENS, Tokenizer
from data.windows import Examples
from pretraining import masked_words, next_words
from pretraining.masked_words import masked_loss_terms as masked_terms
from pretraining.next_words import CausalLmExamples
from pretraining.record import HeldOut, Line, Measure, Objective, Pretraining
from settings import Setting


def rows(objective: Objective, batch_size: int) -> dict[str, int]:
    causal = round(objective.causal_share * batch_size)
    return {"causal": causal, "masked": batch_size - causal}


def make_examples(
    objective: Objective, tokenizer: Tokenizer, sequence_length: int
) -> Callable[[Shards], Mapping[str, Examples]]:
    """Those of the two ways, of text whose documents are `[CLS] ... [SEP]`."""
    masked = masked_words.make_examples(objective, tokenizer, sequence_length)
    return lambda split: {
        "causal": CausalLmExamples(split, sequence_length),
        "masked": masked(split),
    }


def loss_terms(objective: Objective, model: Any, logit_chunks: int) -> Callable:
    """The terms of the two ways."""
    causal = next_words.loss_terms(objective, model.seeing("left"), logit_chunks)
    masked = masked_terms("masked_lm")(objective, model.seeing("both"), logit_chunks)

    def terms(params: Any, batch: dict, dropout_key: Any) -> dict:
        return causal(params, batch["causal"], dropout_key) | masked(
            params, batch["masked"], dropout_key
        )

    return terms


def masked_measure(objective: Objective, model: Any, logit_chunks: int) -> Callable:
    return masked_terms("masked")(objective, model.seeing("both"), logit_chunks)


def lines(
    objective: Objective, tokenizer: Tokenizer, train: Shards, held_out: HeldOut
) -> tuple[Line, ...]:
    """Those of the two ways."""
    causal, masked = (
        held_out._replace(batches=[batch[name] for batch in held_out.batches])
        for name in ("causal", "masked")
    )
    return (
        *next_words.lines(objective, tokenizer, train, causal),
        *masked_words.lines(objective, tokenizer, train, masked, "masked_lm_loss"),
    )


def whole_rows(config: ConfigDict) -> str | None:
    share, size = config.objective.causal_share, config.data.batch_size
    if share in (0, 1):
        way = "causal_lm" if share else "masked_lm"
        return (
            f"objective.causal_share={share} leaves rows of one kind alone: set "
            f"objective.name={way!r}, or a share between 0 and 1"
        )
    nearest = min(max(round(share * size), 1), size - 1)
    if nearest and math.isclose(share * size, nearest):
        return None
    near = f"objective.causal_share={nearest / size:g}, or " if nearest else ""
    return (
        f"objective.causal_share={share} of data.batch_size={size} is "
        f"{share * size:g} rows: it must be whole ones, and leave some; set {near}"
        "another data.batch_size"
    )


PRETRAINING = Pretraining(
    special_tokens=BERT_SPECIAL_TOKENS,
    roles=masked_words.ROLES,
    framing=masked_words.framing,
    examples=make_examples,
    outputs=("causal_lm", "masked_lm"),
    sees=("left", "both"),
    loss_terms=loss_terms,
    predicted=lambda objective, length: {
        "causal": length,
        "masked": objective.max_predictions,
    },
    measures={"masked": Measure(masked_words.hidden_words, masked_measure)},
    lines=lines,
    evaluation=next_words.evaluation,
    commands=("generate", "fill_mask"),
    settings=(
        *masked_words.SETTINGS,
        Setting(
            "objective.causal_share",
            float,
            "Share of a batch's rows that predict the next token; the rest is masked.",
            ">=0 <=1",
        ),
    ),
    rules=(*masked_words.RULES, whole_rows),
    tiny=masked_words.tiny,
    rows=rows,
)
