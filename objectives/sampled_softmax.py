"""The cross-entropy over a few words of a large vocabulary.

Source: Jean et al. 2015, section 3; as tf.nn.sampled_softmax_loss, which bilm-tf trains
with, but that words are drawn with replacement.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from objectives.cross_entropy import Sums


def sampled_cross_entropy(
    states: Float[Array, "*slots D"],
    table: Float[Array, "V D"],
    bias: Float[Array, " V"],
    targets: Int[Array, "*slots"],
    weights: Float[Array, "*slots"],
    key: PRNGKeyArray,
    *,
    num_sampled: int,
    vocab_size: int,
) -> Sums:
    """(weighted sum of an estimate of -log p(target) in nats, sum of weights, {}).

    The target competes with `num_sampled` of the first `vocab_size` words, the same for
    all slots, drawn log-uniformly: word k with log((k + 2) / (k + 1)) / log(V + 1), so
    the vocabulary must be in the order of frequency. From each score goes the log of
    how often its word is expected among them; a target that is drawn counts once.
    """
    uniform = jax.random.uniform(key, (num_sampled,))
    drawn = jnp.exp(uniform * math.log(vocab_size + 1)).astype(jnp.int32) - 1
    drawn = jnp.clip(drawn, 0, vocab_size - 1)

    def log_expected(words: Int[Array, "*n"]) -> Float[Array, "*n"]:
        share = jnp.log1p(1 / (words + 1.0)) / math.log(vocab_size + 1)
        return math.log(num_sampled) + jnp.log(share)

    states = states.astype(table.dtype)
    own = jnp.einsum(
        "...d,...d->...", states, table[targets], preferred_element_type=jnp.float32
    )
    own += bias[targets] - log_expected(targets)
    others = jnp.einsum(
        "...d,nd->...n", states, table[drawn], preferred_element_type=jnp.float32
    )
    others += bias[drawn] - log_expected(drawn)
    others = jnp.where(drawn == targets[..., None], -jnp.inf, others)
    total = jnp.logaddexp(own, jax.nn.logsumexp(others, axis=-1))
    weights = weights.astype(jnp.float32)
    return ((total - own) * weights).sum(), weights.sum(), {}
