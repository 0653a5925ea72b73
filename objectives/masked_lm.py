"""Masked language modelling: predict the tokens behind the mask.

Source: Devlin et al. 2019, section 3.1, task 1. The batch names P positions a row and
their true tokens; a slot that is not used has weight 0.
"""

from jaxtyping import Array, Float, Int

from objectives.cross_entropy import weighted_cross_entropy


def masked_lm(
    logits: Float[Array, "B P V"],
    targets: Int[Array, "B P"],
    weights: Float[Array, "B P"],
) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns (loss sum in nats, weight sum, metrics); see `weighted_cross_entropy`."""
    return weighted_cross_entropy(logits, targets, weights)
