"""The cross-entropy over a few words of a large vocabulary.

Source: Bengio and Senécal 2003 (importance sampling); Jean et al. 2015, section 3.
bilm-tf trains with tf.nn.sampled_softmax_loss, whose words are drawn without
replacement; with it, as here, more words bring the loss nearer to the whole softmax's.
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
    the vocabulary must be in the order of frequency. From the score of a word that is
    drawn goes the log of how often it is expected to be; draws of the target itself do
    not count.
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
    own += bias[targets]
    others = jnp.einsum(
        "...d,nd->...n", states, table[drawn], preferred_element_type=jnp.float32
    )
    drawn = drawn.reshape((1,) * targets.ndim + drawn.shape)
    others += bias[drawn] - log_expected(drawn)
    others = jnp.where(drawn == targets[..., None], -jnp.inf, others)
    total = jnp.logaddexp(own, jax.nn.logsumexp(others, axis=-1))
    weights = weights.astype(jnp.float32)
    return ((total - own) * weights).sum(), weights.sum(), {}
