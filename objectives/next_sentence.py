"""Next-sentence prediction: does the second segment follow the first?

Source: Devlin et al. 2019, section 3.1, task 2. Label 0: it follows; 1: it is random
text, as in the release's data code. A padding row has weight 0.
"""

from jaxtyping import Array, Float, Int

from objectives.cross_entropy import weighted_cross_entropy


def next_sentence(
    logits: Float[Array, "B 2"],
    labels: Int[Array, " B"],
    weights: Float[Array, " B"],
) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns (loss sum in nats, weight sum, metrics); see `weighted_cross_entropy`."""
    return weighted_cross_entropy(logits, labels, weights)
