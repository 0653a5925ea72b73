"""What the ways that predict words share: windows of text, their loss, and what is told
of it."""

import math
from typing import TYPE_CHECKING

import numpy as np
from ml_collections import ConfigDict

from data.shards import Shards
from data.windows import Batch, Visits, check_text, next_token_targets, read

if TYPE_CHECKING:
    from models.transformer import Prediction
    from training.step import Term

MIN_SEQUENCE_LENGTH = 8
BITS = "bits_per_byte"


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


def word_loss(prediction: "Prediction", batch: dict, logit_chunks: int) -> "Term":
    """The cross-entropy of the batch's targets, its logits in parts of the positions.

    Args:
        prediction: states [B, P, D], and the table and bias of V words.
        batch: "targets" and "weights" [B, P].
    """
    from models.transformer import logits
    from objectives.cross_entropy import in_chunks, weighted_cross_entropy

    return in_chunks(
        weighted_cross_entropy,
        lambda states: logits(prediction._replace(states=states)),
        prediction.states,
        batch["targets"],
        batch["weights"],
        logit_chunks,
    )


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that overflows."""
    return math.exp(loss) if loss < math.log(1e308) else math.inf


def long_enough(config: ConfigDict) -> str | None:
    length = config.data.sequence_length
    if length >= MIN_SEQUENCE_LENGTH:
        return None
    return (
        f"data.sequence_length={length} is too short: it must be at least "
        f"{MIN_SEQUENCE_LENGTH}"
    )
