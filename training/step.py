"""One optimizer update as a pure function, and one evaluation of a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float

# What an objective returns: the sum of the losses, the sum of the weights, and further
# sums over the same weights. Only a step divides, once, by the whole batch's weight.
Scalar = Float[Array, ""] | float
Term = tuple[Scalar, Scalar, dict[str, Scalar]]
# (params, batch, dropout key or None) -> the terms of the loss, by name.
LossTerms = Callable[[Any, dict, Any], dict[str, Term]]


@struct.dataclass
class TrainState:
    """All that a run carries from one update to the next."""

    step: Any  # int32 [], updates done; a pytree's leaves can be anything
    params: Any
    opt_state: Any


def create_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def make_train_step(
    loss_terms: LossTerms,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    micro_batches: int,
    axis: str | None = None,
) -> Callable[[TrainState, dict, Any], tuple[TrainState, dict]]:
    """`step(state, batch, key) -> (state, metrics)`, one update from one global batch.

    The loss is the sum of the terms, each divided by its weight over the whole batch,
    so cutting the batch into `micro_batches` or over devices changes nothing. Dropout
    draws from `fold_in(key, step)`. Under `jax.pmap` over `axis` the batch is a
    device's own rows, and dropout draws from the device's number, too: by other masks
    than under `jax.jit`, where they are those of one device.
    """

    def total(sums: Any) -> Any:
        """Over all devices; what `jax.jit` sums is that already."""
        return sums if axis is None else jax.lax.psum(sums, axis)

    def step(state: TrainState, batch: dict, key: Any) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(key, state.step)
        if axis is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        # The weights do not depend on the parameters: XLA drops the rest of this pass.
        terms = loss_terms(state.params, batch, None)
        weights = total({name: term[1] for name, term in terms.items()})
        weights = {name: nonzero(weight) for name, weight in weights.items()}

        def loss(params: Any, batch: dict, key: Any) -> tuple[Scalar, dict]:
            terms = loss_terms(params, batch, key)
            total = sum(term[0] / weights[name] for name, term in terms.items())
            return total, terms

        gradient = jax.grad(loss, has_aux=True)
        grads, terms = total(
            accumulate(gradient, state.params, batch, key, micro_batches)
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = term_means(terms) | {
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": schedule(state.step),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


def accumulate(
    gradient: Callable, params: Any, batch: dict, key: Any, micro_batches: int
) -> Any:
    """Sums what `gradient(params, batch, key)` returns over `micro_batches` parts.

    Rows are dealt out in turn, so that each device keeps its own rows.
    """
    if micro_batches == 1:
        return gradient(params, batch, key)
    parts = jax.tree.map(
        lambda x: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1), batch
    )
    keys = jax.random.split(key, micro_batches)
    first = jax.tree.map(lambda x: x[0], (parts, keys))
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(gradient, params, *first),
    )

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(params, *part)), None

    return jax.lax.scan(add, zeros, (parts, keys))[0]


def make_eval_step(loss_terms: LossTerms) -> Callable[[Any, dict], dict[str, Term]]:
    """`eval_step(params, batch) -> terms`, with dropout off."""
    return lambda params, batch: loss_terms(params, batch, None)


def term_means(terms: dict[str, Term]) -> dict[str, Scalar]:
    """The total loss; each term's loss and metrics, divided by the term's weight."""
    means = {}
    for name, (loss_sum, weight_sum, sums) in terms.items():
        weight = nonzero(weight_sum)
        means[f"{name}_loss"] = loss_sum / weight
        means |= {f"{name}_{metric}": total / weight for metric, total in sums.items()}
    loss = sum(means[f"{name}_loss"] for name in terms)
    return {"loss": loss} | means


def nonzero(weight_sum: Scalar) -> Scalar:
    """What to divide by: 1 where nothing is predicted, since the sums are 0 then."""
    return jnp.where(weight_sum > 0, weight_sum, 1.0)
