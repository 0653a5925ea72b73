"""The cross-entropy that the language modelling objectives share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Sums = tuple[Float[Array, ""], Float[Array, ""], dict[str, Float[Array, ""]]]


def weighted_cross_entropy(
    logits: Float[Array, "*slots V"],
    targets: Int[Array, "*slots"],
    weights: Float[Array, "*slots"],
) -> Sums:
    """(weighted sum of -log p(target) in nats, sum of weights, metrics), float32.

    "accuracy" is the sum of the weights where the target is the argmax, the first of
    those that score highest. Sums, never means: whoever adds up devices and
    micro-batches divides, once.
    """
    logits, weights = logits.astype(jnp.float32), weights.astype(jnp.float32)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(logits, axis=-1) - target_logits
    # As argmax(logits) == targets, whose reduction is slow on CPUs.
    places = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    before = jnp.where(places < targets[..., None], logits, -jnp.inf).max(axis=-1)
    right = (target_logits >= logits.max(axis=-1)) & (target_logits > before)
    return (loss * weights).sum(), weights.sum(), {"accuracy": (right * weights).sum()}


def in_chunks(
    objective: Callable[..., Sums],
    project: Callable[[Array], Array],
    hidden: Float[Array, "B P D"],
    targets: Int[Array, "B P"],
    weights: Float[Array, "B P"],
    chunks: int,
) -> Sums:
    """`objective(project(hidden), targets, weights)` over parts of P, added up.

    The logits of one part at a time exist, in the backward pass as well, which computes
    them again: [B, P / chunks, V] in place of [B, P, V]. The last part is filled up
    with weight 0.
    """
    if chunks == 1:
        return objective(project(hidden), targets, weights)
    size = -(-hidden.shape[1] // chunks)
    room = size * chunks - hidden.shape[1]

    def parts(values: Array) -> Array:
        padded = jnp.pad(values, [(0, 0), (0, room)] + [(0, 0)] * (values.ndim - 2))
        split = padded.reshape(values.shape[0], chunks, size, *values.shape[2:])
        return split.swapaxes(0, 1)

    @jax.checkpoint
    def part(hidden: Array, targets: Array, weights: Array) -> Sums:
        return objective(project(hidden), targets, weights)

    def add(total: Sums, of_part: tuple) -> tuple[Sums, None]:
        return jax.tree.map(jnp.add, total, part(*of_part)), None

    split = (parts(hidden), parts(targets), parts(weights))
    first = jax.tree.map(lambda x: x[0], split)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(part, *first))
    return jax.lax.scan(add, zeros, split)[0]
