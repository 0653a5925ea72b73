"""Schedules and AdamW with the papers' weight-decay masks."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from errors import UserError

SHAPES = ("linear", "cosine", "constant", "inverse_square_root")


def make_schedule(
    *,
    schedule: str,
    learning_rate: float,
    end_learning_rate: float,
    warmup_steps: int,
    total_steps: int,
) -> optax.Schedule:
    """The learning rate of each update, counted from 0.

    Update `t` of the warm-up has `learning_rate * (t + 1) / warmup_steps`: the first
    one already moves, the last one has the peak. After it the rate falls to
    `end_learning_rate`, which the last update has, on a line or a half cosine; or
    stays; or falls as `sqrt(warmup_steps / (t + 1))` (Vaswani et al. 2017, 5.3).

    Raises:
      UserError: an unknown shape, or a warm-up that leaves no step to train.
    """
    if schedule not in SHAPES:
        raise UserError(
            f"optim.schedule={schedule!r} is not known: use one of {', '.join(SHAPES)}"
        )
    if not 0 <= warmup_steps < total_steps:
        raise UserError(
            f"optim.warmup_steps={warmup_steps} must be at least 0 and less than "
            f"optim.total_steps={total_steps}"
        )
    if schedule == "inverse_square_root" and warmup_steps < 1:
        raise UserError(
            "optim.schedule='inverse_square_root' is scaled by the warm-up: "
            f"optim.warmup_steps={warmup_steps} must be at least 1"
        )
    decay_steps = max(total_steps - warmup_steps, 1)

    def rate(step: Any) -> jax.Array:
        update = jnp.asarray(step, jnp.float32) + 1.0
        fraction = jnp.clip((update - warmup_steps) / decay_steps, 0.0, 1.0)
        span = learning_rate - end_learning_rate
        if schedule == "linear":
            decayed = end_learning_rate + span * (1.0 - fraction)
        elif schedule == "cosine":
            decayed = end_learning_rate + span * 0.5 * (1 + jnp.cos(jnp.pi * fraction))
        elif schedule == "constant":
            decayed = jnp.full_like(update, learning_rate)
        else:
            decayed = learning_rate * jnp.sqrt(warmup_steps / update)
        warming = learning_rate * update / max(warmup_steps, 1)
        return jnp.where(update <= warmup_steps, warming, decayed)

    return rate


def parameter_paths(params: Any) -> Any:
    """The tree of `params` with each leaf replaced by its path, `layer_0/...`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), params
    )


def decay_mask(params: Any, no_decay: Sequence[str]) -> Any:
    """True for each parameter that is decayed: no pattern matches its whole path.

    Raises:
      UserError: a pattern that matches no parameter.
    """
    paths = parameter_paths(params)
    for pattern in no_decay:
        if not any(re.fullmatch(pattern, path) for path in jax.tree.leaves(paths)):
            raise UserError(
                f"optim.no_decay pattern {pattern!r} matches no parameter; the paths "
                f"are {', '.join(jax.tree.leaves(paths)[:8])}, ..."
            )
    return jax.tree.map(
        lambda path: not any(re.fullmatch(pattern, path) for pattern in no_decay),
        paths,
    )


def make_optimizer(
    schedule: optax.Schedule,
    *,
    b1: float,
    b2: float,
    epsilon: float,
    weight_decay: float,
    no_decay: Sequence[str],
    clip_norm: float,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) after one clip over all gradients.

    `weight_decay` is decoupled: an update shrinks a decayed parameter by
    `rate * weight_decay`. BERT and GPT-1 decay everything but biases and layer-norm
    parameters, embeddings included (papers' code: `optimization.py`, `opt.py`).
    """
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(
            schedule,
            b1=b1,
            b2=b2,
            eps=epsilon,
            weight_decay=weight_decay,
            mask=lambda params: decay_mask(params, no_decay),
        ),
    )
