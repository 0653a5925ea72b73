"""Classification: cross-entropy of the right class.

Of texts and pairs, of the answers of a choice, and of the words of a sentence. Source:
Radford et al. 2018, section 3.2; Devlin et al. 2019, section 4.
"""

from jaxtyping import Array, Float, Int

from objectives.cross_entropy import weighted_cross_entropy


def classification(
    logits: Float[Array, "*slots K"],
    labels: Int[Array, "*slots"],
    weights: Float[Array, "*slots"],
) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns (loss sum in nats, weight sum, metrics); see `weighted_cross_entropy`."""
    return weighted_cross_entropy(logits, labels, weights)
