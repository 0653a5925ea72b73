"""The cross-entropy that the language modelling objectives share."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def weighted_cross_entropy(
    logits: Float[Array, "*slots V"],
    targets: Int[Array, "*slots"],
    weights: Float[Array, "*slots"],
) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Float[Array, ""]]]:
    """(weighted sum of -log p(target) in nats, sum of weights, metrics), float32.

    "accuracy" is the sum of the weights where nothing scores above the target. Sums,
    never means: whoever adds up devices and micro-batches divides, once.
    """
    logits, weights = logits.astype(jnp.float32), weights.astype(jnp.float32)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(logits, axis=-1) - target_logits
    right = target_logits >= logits.max(axis=-1)
    return (loss * weights).sum(), weights.sum(), {"accuracy": (right * weights).sum()}
