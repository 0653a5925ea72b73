"""What the ways that predict words share: their loss, their line, what is told of it.

Whoever has learnt only how frequent each word is has the unigram entropy as its loss.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64
from ml_collections import ConfigDict

from pretraining.record import Line

if TYPE_CHECKING:
    from models.transformer import Prediction
    from training.step import Term

MIN_SEQUENCE_LENGTH = 8


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


def unigram_line(counts: Int64[np.ndarray, " V"]) -> Line:
    """The entropy in nats of tokens that are drawn without any context."""
    shares = counts[counts > 0] / counts.sum(dtype=np.float64)
    return Line("unigram entropy", float(-np.sum(shares * np.log(shares))))


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
