"""Regression: the squared error of a score, in the unit of the data, squared.

Source: the usual objective for STS-B; GPT-1's and BERT's releases have none.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def regression(
    predictions: Float[Array, "*slots"],
    scores: Float[Array, "*slots"],
    weights: Float[Array, "*slots"],
) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns (weighted sum of squared errors, sum of weights, metrics), float32.

    "absolute_error" is the weighted sum of absolute errors.
    """
    weights = weights.astype(jnp.float32)
    error = predictions.astype(jnp.float32) - scores.astype(jnp.float32)
    metrics = {"absolute_error": (jnp.abs(error) * weights).sum()}
    return (error**2 * weights).sum(), weights.sum(), metrics
