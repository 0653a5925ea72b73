"""What the ways that mask words share: settings of masks, and what must fit them."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from data.masking import Masking
from data.shards import Shards
from data.tokenizers import Tokenizer
from pretraining.language_model import long_enough, perplexity, unigram_line
from pretraining.record import Line, Objective
from settings import Setting

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


def line(split: Shards, tokenizer: Tokenizer) -> Line:
    """The unigram entropy of what is ever masked."""
    counts = split.unigram_counts.copy()
    counts[list(tokenizer.special_ids.values())] = 0
    return unigram_line(counts)


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
