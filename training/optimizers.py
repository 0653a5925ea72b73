"""Schedules; AdamW and the papers' Adams, with settings per group of parameters.

Rates, multipliers, decay, betas and epsilons may be traced, so that trials can be
`vmap`ped; steps, shapes of schedules and `clip_norm` are plain, and decide the program.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from errors import UserError

SHAPES = ("linear", "cosine", "constant", "inverse_square_root")
# As the releases compute them: counted from 0, the fall begins with the run.
RELEASED_SHAPES = ("gpt1_linear", "gpt1_cosine", "bert_linear", "slanted_triangular")
SCALED_BY_WARMUP = (
    "inverse_square_root",
    "gpt1_linear",
    "gpt1_cosine",
    "slanted_triangular",
)

Number = float | int | Float[Array, ""]


def make_schedule(
    *,
    schedule: str,
    learning_rate: Number,
    end_learning_rate: Number,
    warmup_steps: int,
    total_steps: int,
) -> optax.Schedule:
    """The learning rate of each update, counted from 0.

    Update `t` of the warm-up has `learning_rate * (t + 1) / warmup_steps`: the first
    one already moves, the last one has the peak. After it the rate falls to
    `end_learning_rate`, which the last update has, on a line or a half cosine; or
    stays; or falls as `sqrt(warmup_steps / (t + 1))` (Vaswani et al. 2017, 5.3).
    RELEASED_SHAPES are described at `released_schedule`. A single update has the peak,
    so that it learns.

    Raises:
      UserError: an unknown shape, or a warm-up that leaves no step to train.
    """
    if schedule not in SHAPES + RELEASED_SHAPES:
        raise UserError(
            f"optim.schedule={schedule!r} is not known: use one of "
            f"{', '.join(SHAPES + RELEASED_SHAPES)}"
        )
    if not 0 <= warmup_steps < total_steps:
        raise UserError(
            f"optim.warmup_steps={warmup_steps} must be at least 0 and less than "
            f"optim.total_steps={total_steps}"
        )
    if total_steps == 1:
        return lambda step: jnp.full_like(step, learning_rate, dtype=jnp.float32)
    if schedule in SCALED_BY_WARMUP and warmup_steps < 1:
        raise UserError(
            f"optim.schedule={schedule!r} is scaled by the warm-up: "
            f"optim.warmup_steps={warmup_steps} must be at least 1"
        )
    if schedule in RELEASED_SHAPES:
        return released_schedule(
            schedule, learning_rate, end_learning_rate, warmup_steps, total_steps
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


def released_schedule(
    shape: str,
    learning_rate: Number,
    end_learning_rate: Number,
    warmup_steps: int,
    total_steps: int,
) -> optax.Schedule:
    """The schedules of the releases, with `x = t / total_steps` for update t = 0, 1, ..

    gpt1_linear: `min(x / w, 1) * (1 - x)` (GPT-1, opt.py, warmup_linear).
    gpt1_cosine: `x / w`, then `(1 + cos(pi x)) / 2` (the same, warmup_cosine).
    bert_linear: `t / warmup_steps`, then `1 - x`, so that the rate jumps down at the
      end of the warm-up (BERT, optimization.py).
    slanted_triangular: from `end_learning_rate` up and back (Howard and Ruder 2018,
      section 3.2, where it is `learning_rate / 32` and the warm-up a tenth).

    The first update of the GPT-1 and BERT shapes has the rate 0.
    """
    span = learning_rate - end_learning_rate

    def rate(step: Any) -> jax.Array:
        update = jnp.asarray(step, jnp.float32)
        done = jnp.clip(update / total_steps, 0.0, 1.0)
        line = end_learning_rate + span * (1.0 - done)
        warming = update / max(warmup_steps, 1)
        if shape == "gpt1_linear":
            return jnp.minimum(warming, 1.0) * line
        if shape == "bert_linear":
            return jnp.where(update < warmup_steps, learning_rate * warming, line)
        if shape == "gpt1_cosine":
            cosine = end_learning_rate + span * 0.5 * (1 + jnp.cos(jnp.pi * done))
            return jnp.where(update <= warmup_steps, learning_rate * warming, cosine)
        falling = (total_steps - update) / (total_steps - warmup_steps)
        return end_learning_rate + span * jnp.clip(
            jnp.minimum(warming, falling), 0.0, 1.0
        )

    return rate


def parameter_paths(params: Any) -> Any:
    """The tree of `params` with each leaf replaced by its path, `layer_0/...`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), params
    )


def parameter_sizes(params: Any) -> dict[str, int]:
    """Path -> number of parameters."""
    paths = jax.tree.leaves(parameter_paths(params))
    leaves = jax.tree.leaves(params)
    return {path: leaf.size for path, leaf in zip(paths, leaves, strict=True)}


def closest(pattern: str, paths: Sequence[str]) -> str:
    """The end of an error message: the paths most like the pattern."""
    near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.0)
    return f"; a pattern is compared with whole paths, such as {', '.join(near)}"


def decay_mask(params: Any, no_decay: Sequence[str]) -> Any:
    """True for each parameter that is decayed: no pattern matches its whole path.

    Raises:
      UserError: a pattern that matches no parameter.
    """
    paths = parameter_paths(params)
    for pattern in no_decay:
        if not any(re.fullmatch(pattern, path) for path in jax.tree.leaves(paths)):
            raise UserError(
                f"optim.no_decay pattern {pattern!r} matches no parameter"
                f"{closest(pattern, jax.tree.leaves(paths))}. Correct it, or leave it "
                "out, as by --config.optim.no_decay=\"('.*/bias',)\""
            )
    return jax.tree.map(
        lambda path: not any(re.fullmatch(pattern, path) for pattern in no_decay),
        paths,
    )


@dataclasses.dataclass(frozen=True)
class Group:
    """What happens to the parameters whose whole path the pattern matches.

    None takes the value of `optim`. The rate is `multiplier` times a schedule, that of
    `optim` but for what is given here. `thaw_at` N (gradual unfreezing): N updates
    leave the parameters as they are, with no part in the clip; after them they are
    trained as if Adam began there, at the rate that the schedule has reached.
    """

    pattern: str
    number: int = 0  # in its list, which `assign_groups` fills in
    multiplier: Number = 1.0
    learning_rate: Number | None = None
    schedule: str | None = None
    end_learning_rate: Number | None = None
    warmup_steps: int | None = None
    weight_decay: Number | None = None
    frozen: bool = False
    thaw_at: int = 0


Groups = tuple[Group, ...]  # in order: the first whose pattern matches a path has it
SETTINGS = tuple(field.name for field in dataclasses.fields(Group))[2:]
SCHEDULE_SETTINGS = ("learning_rate", "schedule", "end_learning_rate", "warmup_steps")


def parse_groups(pairs: Sequence[Any]) -> Groups:
    """The groups of a config's pairs (pattern, settings), in order.

    Raises:
      UserError: what is no pair of a regular expression and settings, a setting that
        does not exist, or one that makes no sense.
    """
    groups = []
    for pair in pairs:
        if (
            not isinstance(pair, Sequence)
            or len(pair) != 2
            or not isinstance(pair[0], str)
            or not isinstance(pair[1], Mapping)
        ):
            raise UserError(
                f"optim.groups holds {pair!r}: each group is a pair (pattern, "
                "settings), as in (('embeddings/.*', {'frozen': True}), ('.*', {}))"
            )
        pattern, settings = pair
        culprit = f"optim.groups: {pattern!r}"
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{culprit} is no regular expression: {error}") from error
        for name, value in settings.items():
            if name not in SETTINGS:
                raise UserError(
                    f"{culprit} has the setting {name!r}, which is not known: use some "
                    f"of {', '.join(SETTINGS)}"
                )
            if name == "frozen" and not isinstance(value, bool):
                raise UserError(f"{culprit} has frozen={value!r}: use True or False")
            if name == "schedule" and value not in SHAPES + RELEASED_SHAPES:
                raise UserError(
                    f"{culprit} has schedule={value!r}: use one of "
                    f"{', '.join(SHAPES + RELEASED_SHAPES)}"
                )
            if name in ("frozen", "schedule") or isinstance(value, jax.Array):
                continue
            if name in ("warmup_steps", "thaw_at") and not isinstance(value, int):
                raise UserError(f"{culprit} has {name}={value!r}: use a whole number")
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and 0 <= value < math.inf):
                raise UserError(
                    f"{culprit} has {name}={value!r}: it must be a number, at least 0"
                )
        group = Group(pattern, **settings)
        if group.frozen and len(settings) > 1:
            raise UserError(
                f"{culprit} is frozen, so its other settings have no effect: remove "
                f"{', '.join(name for name in settings if name != 'frozen')}"
            )
        groups.append(group)
    return tuple(groups)


def first_matches(paths: Sequence[str], patterns: Sequence[str]) -> list[int | None]:
    """For each path the number of the first pattern that matches all of it."""
    return [
        next((i for i, p in enumerate(patterns) if re.fullmatch(p, path)), None)
        for path in paths
    ]


def assign_groups(
    params: Any, groups: Groups, *, weight_decay: Number, no_decay: Sequence[str]
) -> Any:
    """The tree of `params` with each leaf replaced by its `Group`, in full.

    `params` may be shapes alone. A frozen parameter, or one whose whole path a pattern
    of `no_decay` matches, has the decay 0.

    Raises:
      UserError: a parameter without a group, a group without a parameter, or as
        `decay_mask`.
    """
    paths, structure = jax.tree.flatten(parameter_paths(params))
    patterns = [group.pattern for group in groups]
    numbers = first_matches(paths, patterns)
    left = [path for path, number in zip(paths, numbers, strict=True) if number is None]
    if left:
        listed = ", ".join(map(repr, patterns))
        raise UserError(
            f"optim.groups: no pattern matches {', '.join(left[:3])} ({len(left)} of "
            f"{len(paths)} parameters); the patterns are {listed or 'none'}: add one, "
            "or ('.*', {}) as the last"
        )
    for i, pattern in enumerate(patterns):
        if i in numbers:
            continue
        if any(re.fullmatch(pattern, path) for path in paths):
            raise UserError(
                f"optim.groups: all that {pattern!r} matches is taken by "
                "patterns before it, and the first one wins: move it up, or remove it"
            )
        raise UserError(
            f"optim.groups: {pattern!r} matches no parameter{closest(pattern, paths)}"
        )

    def resolve(number: int, decayed: bool) -> Group:
        group = groups[number]
        own = weight_decay if group.weight_decay is None else group.weight_decay
        own = own if decayed and not group.frozen else 0.0
        return dataclasses.replace(group, number=number, weight_decay=own)

    mask = decay_mask(params, no_decay)
    return jax.tree.map(resolve, jax.tree.unflatten(structure, numbers), mask)


def group_schedule(group: Group, schedule: Mapping[str, Any]) -> optax.Schedule:
    """The group's rate; `schedule` holds the settings of `make_schedule`."""
    own = {
        name: getattr(group, name)
        for name in SCHEDULE_SETTINGS
        if getattr(group, name) is not None
    }
    try:
        shared = make_schedule(**{**schedule, **own})
    except UserError as error:
        raise UserError(
            f"{error} (optim.groups sets {own})" if own else error
        ) from error
    return lambda step: group.multiplier * shared(step)


def group_rates(groups: Any, schedule: Mapping[str, Any]) -> dict[str, optax.Schedule]:
    """Of each group, by its pattern, the rate of an update; 0 while it is frozen."""

    def rate(group: Group) -> optax.Schedule:
        own = group_schedule(group, schedule)
        return lambda step: jnp.where(
            group.frozen | (step < group.thaw_at), 0.0, own(step)
        )

    found = {group.number: group for group in jax.tree.leaves(groups)}
    return {group.pattern: rate(group) for _, group in sorted(found.items())}


def make_optimizer(
    groups: Any,
    schedule: Mapping[str, Any],
    *,
    b1: Number,
    b2: Number,
    epsilon: Number,
    clip_norm: float,
    adam: str,
) -> optax.GradientTransformation:
    """Adam with the settings of each group, after one clip over all trained gradients.

    `groups` is the tree of `assign_groups`, `schedule` holds the settings of
    `make_schedule`. Decay is decoupled: an update shrinks a parameter by
    `rate * weight_decay`. `clip_norm` 0 clips nothing. Frozen groups have no state, and
    groups known to do the same share one. For `adam` see `scale_by_adam`.

    Raises:
      UserError: as `make_schedule` and `scale_by_adam`, a `clip_norm` below 0, or
        nothing would be trained.
    """
    if clip_norm < 0:
        raise UserError(
            f"optim.clip_norm={clip_norm} must be at least 0, which clips nothing"
        )
    alike = {settings_key(group): group for group in jax.tree.leaves(groups)}
    if all(group.frozen for group in alike.values()):
        raise UserError("optim.groups: every parameter is frozen, nothing is trained")
    names = {key: f"group_{i}" for i, key in enumerate(alike)}
    labels = jax.tree.map(lambda group: names[settings_key(group)], groups)

    def by_group(
        transform: Callable[[Group], optax.GradientTransformation],
    ) -> optax.GradientTransformation:
        return optax.multi_transform(
            {
                names[key]: optax.set_to_zero() if group.frozen else transform(group)
                for key, group in alike.items()
            },
            labels,
        )

    def train(group: Group) -> optax.GradientTransformation:
        return optax.chain(
            thaw(scale_by_adam(adam, b1, b2, epsilon, group.weight_decay), group),
            optax.scale_by_learning_rate(group_schedule(group, schedule)),
        )

    return optax.chain(
        # What is not trained at this update has no part in the norm.
        by_group(lambda group: thaw(optax.identity(), group)),
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        by_group(train),
    )


def settings_key(group: Group) -> tuple:
    """The same for groups that do the same; a traced number is like itself alone."""
    values = [getattr(group, name) for name in SETTINGS]
    return tuple(id(x) if isinstance(x, jax.Array) else x for x in values)


def thaw(
    inner: optax.GradientTransformation, group: Group
) -> optax.GradientTransformation:
    """`inner`, at rest with zero updates for the first `group.thaw_at` updates."""
    if group.thaw_at == 0:
        return inner
    return optax.conditionally_mask(inner, lambda step: step >= group.thaw_at)


def scale_by_adam(
    adam: str, b1: Number, b2: Number, epsilon: Number, weight_decay: Number
) -> optax.GradientTransformation:
    """Adam's direction with the decay added; the rate comes after it.

    adamw: Loshchilov and Hutter 2019.
    bert: no bias correction, `m / (sqrt(v) + epsilon) + weight_decay * p` (BERT's
      release, optimization.py; it trains worse on small data, Zhang et al. 2021).
    gpt1: BERT's, then all of it times `sqrt(1 - b2**t) / (1 - b1**t)`, so the epsilon
      stands beside the uncorrected root and the decay too is corrected (GPT-1's
      release, opt.py).
    elmo: no Adam but Adagrad, `g / sqrt(1 / 400 + sum of all g**2)`, as bilm-tf has it
      whose sums begin with 1 and whose gradients are 20 times ours.

    Raises:
      UserError: another `adam`.
    """
    decay = optax.add_decayed_weights(weight_decay)
    if adam == "adamw":
        return optax.chain(optax.scale_by_adam(b1, b2, epsilon), decay)
    uncorrected = optax.chain(scale_by_uncorrected_adam(b1, b2, epsilon), decay)
    if adam == "bert":
        return uncorrected
    if adam == "gpt1":
        return optax.chain(
            uncorrected,
            optax.scale_by_schedule(
                lambda step: jnp.sqrt(1 - b2 ** (step + 1.0)) / (1 - b1 ** (step + 1.0))
            ),
        )
    if adam == "elmo":
        sums = optax.scale_by_rss(initial_accumulator_value=1 / 400, eps=epsilon)
        return optax.chain(sums, decay)
    raise UserError(
        f"optim.adam={adam!r} is not known: use one of adamw, bert, gpt1, elmo"
    )


def scale_by_uncorrected_adam(
    b1: Number, b2: Number, epsilon: Number
) -> optax.GradientTransformation:
    """`m / (sqrt(v) + epsilon)` from moments that begin at 0, left as they are."""

    def init(params: Any) -> dict[str, Any]:
        # Two trees: buffers that are shared cannot be donated.
        return {
            "mean": jax.tree.map(jnp.zeros_like, params),
            "mean_square": jax.tree.map(jnp.zeros_like, params),
        }

    def update(grads: Any, state: dict[str, Any], params: Any = None) -> tuple:
        del params
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state["mean"], grads)
        v = jax.tree.map(
            lambda v, g: b2 * v + (1 - b2) * g * g, state["mean_square"], grads
        )
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), m, v)
        return updates, {"mean": m, "mean_square": v}

    return optax.GradientTransformation(init, update)


def stop_frozen(params: Any, groups: Any) -> Any:
    """`params` with the frozen ones cut off from differentiation.

    `groups` is the tree of `assign_groups`. In a loss this saves the computation of
    their gradients, which become zeros, and the whole backward pass below the lowest
    parameter that is trained. It saves nothing for groups that thaw later: the program
    is the same for all steps.
    """
    return jax.tree.map(
        lambda leaf, group: jax.lax.stop_gradient(leaf) if group.frozen else leaf,
        params,
        groups,
    )


# What is printed and kept of the groups.


def group_table(params: Any, groups: Any, learning_rate: float) -> str:
    """One line for each parameter: what the optimizer will do to it.

    `groups` is the tree of `assign_groups`. The peak rate is the multiplier times the
    group's learning rate, or else the one given, that of `optim`.
    """
    rows = [("path", "shape", "group", "peak rate", "decay", "frozen")]
    for path, leaf, group in zip(
        *map(jax.tree.leaves, (parameter_paths(params), params, groups)), strict=True
    ):
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        decay = f"{group.weight_decay:g}"
        rate, frozen = peak_rate(group, learning_rate), when_frozen(group)
        rows.append((path, shape, group.pattern, rate, decay, frozen))
    return aligned(rows)


def group_summary(params: Any, groups: Any, learning_rate: float) -> str:
    """As `group_table`, one line for each group, in the order of their list.

    Of a group that is decayed in part, `0.01 (2 of 5)` counts the decayed tensors.
    """
    members: dict[int, list[tuple[int, Group]]] = {}
    for leaf, group in zip(*map(jax.tree.leaves, (params, groups)), strict=True):
        members.setdefault(group.number, []).append((leaf.size, group))
    rows = [("group", "tensors", "parameters", "peak rate", "decay", "frozen")]
    for _, own in sorted(members.items()):
        sizes, (group, *_) = zip(*own, strict=True)
        decays = [group.weight_decay for _, group in own if group.weight_decay]
        decay = f"{decays[0]:g}" if decays else "0"
        if 0 < len(decays) < len(own):
            decay += f" ({len(decays)} of {len(own)})"
        rate, frozen = peak_rate(group, learning_rate), when_frozen(group)
        count, size = str(len(own)), f"{sum(sizes):,}"
        rows.append((group.pattern, count, size, rate, decay, frozen))
    return aligned(rows)


def peak_rate(group: Group, learning_rate: float) -> str:
    own = learning_rate if group.learning_rate is None else group.learning_rate
    return "0" if group.frozen else f"{group.multiplier * own:.3g}"


def when_frozen(group: Group) -> str:
    waiting = f"until step {group.thaw_at}" if group.thaw_at else "no"
    return "yes" if group.frozen else waiting


def aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    )


# Layer-wise rates.


def layerwise_groups(
    params: Any,
    depth: Callable[[str], int],
    num_layers: int,
    *,
    decay: Number,
    top_exponent: int,
    thaw_every: int,
    first: Groups = (),
) -> Groups:
    """The groups `first`, and for all other parameters rates that fall with depth.

    `depth` of a path is 0 for the embeddings, i + 1 for layer i (0 is the lowest), and
    num_layers + 1 for what is pre-trained and stands above the layers (final norm,
    pooler, pre-training heads); a new head, `head/`, is above all. With n layers, layer
    i is multiplied by `decay ** (top_exponent + n - 1 - i)`, the embeddings by
    `decay ** (top_exponent + n)`, a new head by 1. What stands between it and the top
    layer has exponent 1, or 0 if the top layer has.

    ELECTRA (Clark et al. 2020; model/optimization.py): top_exponent 2, the slot of a
      pooler between head and top layer being kept; decay 0.8, large models 0.9.
    ULMFiT (Howard and Ruder 2018, section 3.2): top_exponent 1, decay 1/2.6.

    With `thaw_every` N (ULMFiT's gradual unfreezing, section 3.3: an epoch) the head is
    trained from the start, the top layer and what stands above it after N updates, the
    layer below after 2 N, ..., the embeddings last. 0 trains all from the start.
    """
    paths = jax.tree.leaves(parameter_paths(params))
    taken = first_matches(paths, [group.pattern for group in first])
    from_top = {  # 0 the head, 1 what stands above the layers, 2 the top layer, ...
        path: 0 if path.startswith("head/") else num_layers + 2 - depth(path)
        for path, number in zip(paths, taken, strict=True)
        if number is None
    }
    groups = list(first)
    for rank in sorted(set(from_top.values())):
        exponent = top_exponent + rank - 2 if rank > 1 else min(top_exponent, rank)
        groups.append(
            Group(
                pattern_of(
                    [path for path, at in from_top.items() if at == rank],
                    [path for path, at in from_top.items() if at != rank],
                ),
                multiplier=decay**exponent,
                thaw_at=thaw_every * max(rank - 1, min(rank, 1)),
            )
        )
    return tuple(groups)


def pattern_of(paths: Sequence[str], others: Sequence[str]) -> str:
    """Matches the paths and none of the others, by the shortest beginnings that do."""
    parts = []
    for path in paths:
        names = path.split("/")
        starts = ("/".join(names[:i]) + "/" for i in range(1, len(names)))
        parts.append(
            next(
                (
                    f"{start}.*"
                    for start in starts
                    if not any(other.startswith(start) for other in others)
                ),
                path,
            )
        )
    return "|".join(dict.fromkeys(parts))
