"""Extractive question answering: where the answer starts, and where it ends.

Source: Devlin et al. 2019, section 4.2; run_squad.py. The loss of an example is the
mean of the two cross-entropies, each a softmax over the positions of its window.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from objectives.cross_entropy import weighted_cross_entropy

# Takes a position out of a softmax; finite, so that a slot that shows nothing has a
# finite loss, which its weight makes 0.
MASKED_SCORE = -1e30


def span(
    logits: Float[Array, "B E T 2"],
    starts: Int[Array, "B E"],
    ends: Int[Array, "B E"],
    weights: Float[Array, "B E"],
) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns (loss sum in nats, weight sum, metrics).

    "accuracy" is the mean of the sums of the weights of right starts and right ends.
    """
    places = jnp.stack([starts, ends], axis=-1)
    loss, weight, metrics = weighted_cross_entropy(
        jnp.moveaxis(logits, -1, -2),
        places,
        jnp.broadcast_to(weights[..., None], places.shape),
    )
    return loss / 2, weight / 2, {name: total / 2 for name, total in metrics.items()}


def within_segments(
    token_scores: Float[Array, "B T 2"], segment_ids: Int[Array, "B T"], slots: int
) -> Float[Array, "B E T 2"]:
    """For each slot, of which i has segment i + 1, the scores of its own tokens, all
    others out of the softmax."""
    numbers = jnp.arange(1, slots + 1)[None, :, None]
    own = segment_ids[:, None, :] == numbers
    return jnp.where(own[..., None], token_scores[:, None], MASKED_SCORE)
