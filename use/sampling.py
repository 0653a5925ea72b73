"""Drawing a token from its scores."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def sample_token(
    logits: Float[Array, "B V"],
    key: Any,
    temperature: float,
    top_k: int,
    top_p: float,
) -> Int[Array, " B"]:
    """One token a row: greedy at temperature 0, else drawn from the kept ones.

    `top_k` keeps the k most probable; `top_p` keeps the most probable ones whose share
    first reaches p (Holtzman et al. 2020, 3.1). 0 and 1 keep all.
    """
    if temperature == 0:
        return jnp.argmax(logits, axis=-1)
    logits = logits / temperature
    if top_k:
        kth = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        shares = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(shares, axis=-1) - shares
        last = jnp.where(before < top_p, ordered, jnp.inf).min(axis=-1, keepdims=True)
        logits = jnp.where(logits < last, -jnp.inf, logits)
    return jax.random.categorical(key, logits, axis=-1)
