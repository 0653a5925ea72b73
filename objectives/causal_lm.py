"""Causal language modelling: predict the next token.

Source: Radford et al. 2018, section 3.1. The batch brings the shifted targets.
"""

from jaxtyping import Array, Float, Int

from objectives.cross_entropy import weighted_cross_entropy


def causal_lm(
    logits: Float[Array, "B T V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns (loss sum in nats, weight sum, metrics); see `weighted_cross_entropy`."""
    return weighted_cross_entropy(logits, targets, weights)
