"""Continuing a text by filling in masked words, many at once."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from models import Model
from models.transformer import logits
from use.sampling import sample_token

SETTINGS = ("model", "num_tokens", "parallel", "temperature", "top_k", "top_p")


@partial(jax.jit, static_argnames=SETTINGS)
def unmask_tokens(
    model: Model,
    params: Any,
    prompt: Int[Array, "B T"],
    key: Any,
    *,
    num_tokens: int,
    mask: Int[Array, ""],
    parallel: int,
    temperature: float,
    top_k: int,
    top_p: float,
    banned: Int[Array, " N"],
) -> Int[Array, "B num_tokens"]:
    """`num_tokens` after each prompt: all are masked at first, and each turn keeps the
    `parallel` surest of what it draws. (Nie et al. 2025, LLaDA, section 2.4.)

    `banned` ids are never drawn.
    """
    batch, length = prompt.shape
    places = jnp.broadcast_to(
        length + jnp.arange(num_tokens, dtype=jnp.int32)[None], (batch, num_tokens)
    )

    def turn(new: Array, key: Any) -> tuple[Array, None]:
        tokens = jnp.concatenate([prompt, new], axis=1)
        read = {"tokens": tokens, "predict_positions": places}
        scores = logits(model.apply(params, read)["masked_lm"])
        scores = scores.at[..., banned].set(-jnp.inf)
        flat = scores.reshape(-1, scores.shape[-1])
        drawn = sample_token(flat, key, temperature, top_k, top_p).reshape(new.shape)
        shares = jax.nn.softmax(scores, axis=-1)
        sure = jnp.take_along_axis(shares, drawn[..., None], axis=-1)[..., 0]
        sure = jnp.where(new == mask, sure, -1)
        best = jax.lax.top_k(sure, min(parallel, num_tokens))[1]
        is_best = (
            jnp.zeros(new.shape, bool).at[jnp.arange(batch)[:, None], best].set(True)
        )
        return jnp.where(is_best & (new == mask), drawn, new), None

    keys = jax.random.split(key, -(-num_tokens // parallel))
    start = jnp.full((batch, num_tokens), mask, prompt.dtype)
    return jax.lax.scan(turn, start, keys)[0]
