"""The auxiliary language model of fine-tuning. (Radford et al. 2018, section 3.2)

A model that predicts the next token does so of what it reads for the task; one that
predicts masked tokens reads the batch once more with some of its tokens masked. To
batches are added `lm_targets` and `lm_weights`, [B, T] of the next token within the
sequence, or [B, P] of what is masked, with `masked_tokens` [B, T] and
`predict_positions` [B, P].
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import grain
import jax
import numpy as np

from data import draws
from data.draws import Draws
from data.masking import Masking
from data.tokenizers import Tokenizer
from data.windows import Batch, next_token_targets
from errors import UserError
from models.transformer import Prediction, logits
from objectives.cross_entropy import Sums, in_chunks, weighted_cross_entropy

MASK_TOKEN_RATE, RANDOM_TOKEN_RATE = 0.8, 0.1  # BERT, appendix A.1


@dataclasses.dataclass(frozen=True)
class AuxiliaryLm:
    """A language model beside the task.

    Attributes:
        output: what it needs of the model.
        draws: whether what it predicts is drawn.
        added: (batches, seed) -> the batches with what it predicts.
        loss: (model, params, batch, output for the task, dropout key, logit chunks) ->
            (loss sum in nats, weight sum, metrics).
    """

    output: str
    draws: bool
    added: Callable[[grain.MapDataset, int], grain.MapDataset]
    loss: Callable[[Any, Any, dict, dict, Any, int], Sums]


def auxiliary_lm(
    outputs: Collection[str],
    tokenizer: Tokenizer,
    *,
    per_sequence: bool,
    mask_rate: float,
    longest_row: int,
) -> AuxiliaryLm:
    """The language model that a model can have.

    Args:
        outputs: what it can predict.
        per_sequence: of the next token: see `with_sequence_weights`.
        mask_rate: of masked tokens: of those of a row.
        longest_row: T of the longest rows.

    Raises:
        UserError: it predicts neither.
    """
    if "causal_lm" in outputs:

        def next_tokens(batches: grain.MapDataset, seed: int) -> grain.MapDataset:
            batches = batches.map(with_next_tokens)
            return batches.map(with_sequence_weights) if per_sequence else batches

        return AuxiliaryLm("causal_lm", False, next_tokens, causal_loss)
    if "masked_lm" in outputs:
        masking = Masking(
            tokenizer,
            mask_rate=mask_rate,
            mask_token_rate=MASK_TOKEN_RATE,
            random_token_rate=RANDOM_TOKEN_RATE,
            max_predictions=max(1, round(mask_rate * longest_row)),
            whole_word=False,
        )

        def masked(batches: grain.MapDataset, seed: int) -> grain.MapDataset:
            return with_masked_tokens(batches, masking, seed)

        return AuxiliaryLm("masked_lm", True, masked, masked_loss)
    raise UserError(
        "objective.lm_weight is set, but this model predicts no tokens "
        f"(it has {', '.join(outputs) or 'no outputs'}): set it to 0"
    )


# What is predicted


def with_next_tokens(batch: Batch) -> Batch:
    """Adds the next token of every token but the last of its sequence."""
    targets, weights = next_token_targets(batch["tokens"], batch["segment_ids"])
    return batch | {"lm_targets": targets, "lm_weights": weights}


def with_sequence_weights(batch: Batch) -> Batch:
    """Scales `lm_weights` to a sum of 1 in each sequence, as GPT-1's release does.

    The loss is then the mean over sequences of the mean over their tokens, so that a
    short one counts as much as a long one.
    """
    weights = batch["lm_weights"].copy()
    for i, segments in enumerate(batch["segment_ids"]):
        weights[i] /= np.maximum(np.bincount(segments, weights[i]), 1)[segments]
    return batch | {"lm_weights": weights}


def with_masked_tokens(
    batches: grain.MapDataset, masking: Masking, seed: int
) -> grain.MapDataset:
    """Adds masked tokens, drawn by (seed, step, row): empty rows, which stand at the
    end, change nothing."""

    def add(step: int, batch: Batch) -> Batch:
        rows = np.arange(len(batch["tokens"]))
        starts = draws.starts_of(draws.MASKS, seed, step, rows=rows)
        read = {name: batch[name] for name in ("tokens", "segment_ids")}
        masked = masking.mask(read, Draws(starts))
        return batch | {
            "masked_tokens": masked["tokens"],
            "predict_positions": masked["predict_positions"],
            "lm_targets": masked["targets"],
            "lm_weights": masked["weights"],
        }

    return batches.map_with_index(add)


# Losses


def causal_loss(
    model: Any, params: Any, batch: dict, output: dict, dropout_key: Any, chunks: int
) -> Sums:
    return token_loss(output["causal_lm"], batch, chunks)


def masked_loss(
    model: Any, params: Any, batch: dict, output: dict, dropout_key: Any, chunks: int
) -> Sums:
    masked = batch | {"tokens": batch["masked_tokens"]}
    key = None if dropout_key is None else jax.random.fold_in(dropout_key, 1)
    return token_loss(model.apply(params, masked, key)["masked_lm"], batch, chunks)


def token_loss(prediction: Prediction, batch: dict, chunks: int) -> Sums:
    return in_chunks(
        weighted_cross_entropy,
        lambda states: logits(prediction._replace(states=states)),
        prediction.states,
        batch["lm_targets"],
        batch["lm_weights"],
        chunks,
    )
