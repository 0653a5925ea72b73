"""What the ways that predict words share: their loss, and what is told of it."""

import math
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

if TYPE_CHECKING:
    from models.transformer import Prediction
    from training.step import Term

MIN_SEQUENCE_LENGTH = 8
BITS = "bits_per_byte"


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
