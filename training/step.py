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
    extra: Any = None  # what some runs carry besides: averaged weights, rows' states


def create_state(
    params: Any, optimizer: optax.GradientTransformation, extra: Any = None
) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), extra)


def make_train_step(
    loss_terms: LossTerms,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    micro_batches: int,
    axis: str | None = None,
    next_extra: Callable[[TrainState], Any] = lambda state: state.extra,
    carries: bool = False,
) -> Callable[[TrainState, dict, Any], tuple[TrainState, dict]]:
    """`step(state, batch, key) -> (state, metrics)`, one update from one global batch.

    A batch is a dict of arrays, or of such dicts. The loss is the sum of the terms,
    each divided by its weight over the whole batch, so cutting the batch into
    `micro_batches` or over devices changes nothing: under `jax.pmap` over `axis` it is
    a device's own rows. Dropout draws from `fold_in(key, step)` and the number that a
    row has in the global batch, which each (sub-)batch is given as "rows".
    `next_extra` makes the state's extra part from the updated state.

    Where it `carries`, rows go on from those of the batch before: a batch is given the
    state's extra part, arrays [B, ..], as "carried", and `loss_terms` returns (terms,
    what the next batch's rows go on from), which becomes the extra part.
    """

    def total(sums: Any) -> Any:
        """Over all devices; what `jax.jit` sums is that already."""
        return sums if axis is None else jax.lax.psum(sums, axis)

    def apart(params: Any, batch: dict, key: Any) -> tuple[dict[str, Term], Any]:
        """The terms, and what is carried."""
        found = loss_terms(params, batch, key)
        return found if carries else (found, ())

    def step(state: TrainState, batch: dict, key: Any) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(key, state.step)
        batch = with_row_numbers(batch, axis)
        if carries:
            batch |= {"carried": state.extra}
        # The weights do not depend on the parameters: XLA drops the rest of this pass.
        terms, _ = apart(state.params, batch, None)
        weights = total({name: term[1] for name, term in terms.items()})
        weights = {name: nonzero(weight) for name, weight in weights.items()}

        def loss(params: Any, batch: dict, key: Any) -> tuple[Scalar, tuple]:
            terms, carried = apart(params, batch, key)
            total = sum(term[0] / weights[name] for name, term in terms.items())
            return total, (terms, carried)

        def gradient(params: Any, batch: dict, key: Any) -> tuple:
            grads, (terms, carried) = jax.grad(loss, has_aux=True)(params, batch, key)
            return (grads, terms), carried

        sums, carried = accumulate(gradient, state.params, batch, key, micro_batches)
        grads, terms = total(sums)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = term_means(terms) | {
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": schedule(state.step),
        }
        extra = carried if carries else state.extra
        state = TrainState(state.step + 1, params, opt_state, extra)
        return state.replace(extra=next_extra(state)), metrics

    return step


def with_row_numbers(batch: dict, axis: str | None = None) -> dict:
    """The batch, and each batch in it, with "rows" [B]: their places in the global one,
    of which a device of `jax.pmap` over `axis` has consecutive rows."""
    subs = {name: x for name, x in batch.items() if isinstance(x, dict)}
    if subs:
        return batch | {name: with_row_numbers(x, axis) for name, x in subs.items()}
    rows = jnp.arange(len(next(iter(batch.values()))), dtype=jnp.int32)
    if axis is not None:
        rows += jax.lax.axis_index(axis) * len(rows)
    return batch | {"rows": rows}


def accumulate(
    gradient: Callable, params: Any, batch: dict, key: Any, micro_batches: int
) -> Any:
    """What `gradient(params, batch, key)` returns: first what is summed over
    `micro_batches` parts, second arrays with an axis of rows in front, joined."""
    if micro_batches == 1:
        return gradient(params, batch, key)
    parts = dealt(batch, micro_batches)
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(gradient, params, first, key)[0],
    )

    def add(total: Any, part: Any) -> tuple[Any, Any]:
        found, by_row = gradient(params, part, key)
        return jax.tree.map(jnp.add, total, found), by_row

    total, by_row = jax.lax.scan(add, zeros, parts)
    return total, gathered(by_row)


def dealt(batch: Any, parts: int) -> Any:
    """The rows [parts, B / parts, ..], dealt out so that each device keeps its own."""
    return jax.tree.map(
        lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch
    )


def gathered(parts: Any) -> Any:
    """Arrays [parts, B / parts, ..] of `dealt` rows in their order."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), parts)


def make_eval_step(
    evaluate: Callable[[Any, dict], tuple[dict[str, Term], Any]], micro_batches: int
) -> Callable[[Any, dict], tuple[dict[str, Term], Any]]:
    """`eval_step(params, batch) -> (terms, outputs)`, in as many parts as an update.

    `evaluate(params, part)` gives a part's terms, which are added up, and arrays with
    the axis of its rows in front, which come back in the order of the batch.
    """
    if micro_batches == 1:
        return evaluate

    def step(params: Any, batch: dict) -> tuple[dict[str, Term], Any]:
        parts = dealt(batch, micro_batches)
        terms, outputs = jax.lax.map(lambda part: evaluate(params, part), parts)
        return jax.tree.map(lambda x: x.sum(axis=0), terms), gathered(outputs)

    return step


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
