"""The course of a run, a pure function of its config: its lengths in updates, however
they are written, and its phases, in each of which the batches have one shape.
"""

import bisect
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from data import draws
from data.windows import MAX_STEPS
from errors import UserError
from settings import amount, is_length

# What a phase may change, and the group of the config that has it.
OF_A_PHASE = {
    "batch_size": "data",
    "sequence_length": "data",
    "max_predictions": "objective",
}
EXAMPLE = '(("90%", {"sequence_length": 512}),)'


class Phase(NamedTuple):
    """Updates whose batches have one shape.

    Attributes:
        first: of them, counted from 0.
        visits: of its examples before it.
        seed: of their order and of what is drawn for them.
        config: the run's with the phase's values, and with lengths in updates.
    """

    first: int
    visits: int
    seed: int
    config: ConfigDict


class Course(NamedTuple):
    """What a run does, in updates."""

    phases: tuple[Phase, ...]
    total_steps: int
    warmup_steps: int
    eval_every_steps: int

    @property
    def firsts(self) -> list[int]:
        return [phase.first for phase in self.phases]

    @property
    def sizes(self) -> list[int]:
        """Tokens of an update in each phase, padding as well."""
        data = [phase.config.data for phase in self.phases]
        return [own.batch_size * own.sequence_length for own in data]


def course_of(config: ConfigDict) -> Course:
    """The course of a config whose settings are each as they must be.

    A phase has from the one before what it does not change. Where only the batch size
    changes, the visits of the examples go on. Where the length of rows does, the
    examples are others: visited from the first one on, in an order and with draws of
    their own.

    Raises:
        UserError: phases that make no sense, or that the run does not reach.
    """
    tree, pairs = config.to_dict(), parse_phases(config)
    starts, trees = [start for start, _ in pairs], [tree]
    for _, settings in pairs:
        trees.append(changed(trees[-1], settings))
    data = [own["data"] for own in trees]
    sizes = [own["batch_size"] * own["sequence_length"] for own in data]
    optim = config.optim
    total = total_steps(optim.total_steps, starts, sizes)
    firsts = firsts_of(starts, sizes, total)
    check_firsts(starts, firsts, total, optim.total_steps)
    warmup = updates_of(optim.warmup_steps, firsts, sizes, total)
    if str(optim.warmup_steps).endswith("%"):  # leaves an update, however short the run
        warmup = min(warmup, total - 1)
    lengths = {
        "total_steps": total,
        "warmup_steps": warmup,
        "eval_every_steps": updates_of(optim.eval_every_steps, firsts, sizes, total),
    }
    phases: list[Phase] = []
    for first, own in zip(firsts, trees, strict=True):
        visits, seed = visited(phases, first, own)
        plain = {"data": own["data"] | {"phases": ()}, "optim": tree["optim"] | lengths}
        phases.append(Phase(first, visits, seed, ConfigDict(own | plain)))
    return Course(tuple(phases), **lengths)


def parse_phases(config: ConfigDict) -> list[tuple[int | str, Mapping[str, int]]]:
    """The pairs (first update, settings) of `data.phases`.

    Raises:
        UserError: what is no such pair, or a setting that phases do not have.
    """
    known = [name for name, group in OF_A_PHASE.items() if name in config[group]]
    for pair in config.data.phases:
        if (
            not isinstance(pair, Sequence)
            or len(pair) != 2
            or not begins(pair[0])
            or not isinstance(pair[1], Mapping)
        ):
            raise UserError(
                f"data.phases holds {pair!r}: each phase is a pair (first update, "
                "settings), the first one an update from 1 on or a text such as "
                f'"90%" or "30B tokens", as in {EXAMPLE}'
            )
        start, settings = pair
        for name, value in settings.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise UserError(
                    f"data.phases: the phase from {start!r} on has {name!r}, which "
                    f"cannot change in this run, only {', '.join(known)} can"
                    f"{f'; did you mean {near[0]}?' if near else ''}"
                )
            if not (type(value) is int and 1 <= value < 2**31):
                raise UserError(
                    f"data.phases: the phase from {start!r} on has {name}={value!r}: "
                    "it must be a whole number, at least 1"
                )
    return [*map(tuple, config.data.phases)]


def begins(start: Any) -> bool:
    """Whether a phase may begin there: what words come to only the text says."""
    return is_length(start) and "words" not in str(start)


def changed(tree: Mapping[str, Any], settings: Mapping[str, int]) -> dict[str, Any]:
    """The tree of a config with the settings of a phase."""
    found = {**tree}
    for name, value in settings.items():
        group = OF_A_PHASE[name]
        found[group] = found[group] | {name: value}
    return found


def check_firsts(
    starts: Sequence[int | str], firsts: Sequence[int], total: int, written: int | str
) -> None:
    """UserError where phases are not in order, or not within the run."""
    for start, before, first in zip(starts, firsts, firsts[1:], strict=False):
        if before < first < total:
            continue
        where = (
            f"within the {total:,} updates of optim.total_steps={written!r}"
            if first >= total
            else f"after the one before, which begins at {before:,}"
        )
        raise UserError(
            f"data.phases: the phase from {start!r} on begins at update {first:,}, not "
            f"{where}: put it elsewhere, such as at a share of the run ('90%'), or "
            "leave it out (none: --config.data.phases='()')"
        )


def visited(
    phases: Sequence[Phase], first: int, tree: Mapping[str, Any]
) -> tuple[int, int]:
    """The visits before a phase, by those that came before it, and its seed."""
    if not phases:
        return 0, tree["seed"]
    last = phases[-1]
    data = last.config.data
    if tree["data"]["sequence_length"] == data.sequence_length:
        return last.visits + (first - last.first) * data.batch_size, last.seed
    number = np.array([len(phases)])
    (start,) = draws.starts_of(draws.PHASES, tree["seed"], rows=number)
    return 0, int(start) % 2**32


# Lengths in updates. `sizes` are the tokens of an update in each phase, padding as
# well; `firsts` the first updates of the phases.


def total_steps(
    written: int | str, starts: Sequence[int | str], sizes: Sequence[int]
) -> int:
    """The fewest updates with so many tokens, where it is written in tokens; phases
    may begin at a share of them."""
    if isinstance(written, int):
        return written
    tokens, _ = amount(written)
    counts = range(1, MAX_STEPS)
    place = bisect.bisect_left(
        counts,
        tokens,
        key=lambda total: tokens_before(total, firsts_of(starts, sizes, total), sizes),
    )
    return counts[min(place, len(counts) - 1)]


def firsts_of(
    starts: Sequence[int | str], sizes: Sequence[int], total: int
) -> list[int]:
    firsts = [0]
    for start in starts:
        firsts.append(updates_of(start, firsts, sizes, total))
    return firsts


def updates_of(
    written: int | str, firsts: Sequence[int], sizes: Sequence[int | float], total: int
) -> int:
    """The nearest number for a share of all, the fewest for a number of tokens (of
    words, where `sizes` are words), counted from the start; at least 1 for more than
    nothing."""
    if isinstance(written, int):
        return written
    number, unit = amount(written)
    if unit == "%":
        return max(round(total * number / 100), math.ceil(min(number, 1)))
    for first, end, size in zip(firsts, [*firsts[1:], math.inf], sizes, strict=False):
        if number <= (end - first) * size:
            break
        number -= (end - first) * size
    return first + math.ceil(number / size)


def tokens_before(step: int, firsts: Sequence[int], sizes: Sequence[int]) -> int:
    ends = [*firsts[1:], step]
    return sum(
        max(min(step, end) - first, 0) * size
        for first, end, size in zip(firsts, ends, sizes, strict=True)
    )


def weights_kept(
    course: Course,
    words: Callable[[], Sequence[float]],
    written: Sequence[int | str],
) -> dict[int, tuple[str, ...]]:
    """`run.keep_weights_at`, as it is written: updates, and under which names the
    weights after them are kept.

    Args:
        words: () -> those of an update of each phase; asked for where they count.

    Raises:
        UserError: the run ends before.
    """
    found: dict[int, tuple[str, ...]] = {}
    for length in written:
        sizes = words() if "words" in str(length) else course.sizes
        step = updates_of(length, course.firsts, sizes, course.total_steps)
        if step > course.total_steps:
            raise UserError(
                f"run.keep_weights_at has {length!r}, which is update {step:,}, but "
                f"the run ends after {course.total_steps:,}: leave it out, or raise "
                "optim.total_steps"
            )
        found[step] = (*found.get(step, ()), str(length).replace(" ", "_"))
    return found


def describe_course(course: Course) -> str:
    """What a run does, for a reader: a line, and one for each of several phases."""
    firsts = course.firsts
    shapes = [
        (phase.config.data.batch_size, phase.config.data.sequence_length)
        for phase in course.phases
    ]
    tokens = tokens_before(course.total_steps, firsts, course.sizes)
    lines = [
        f"{course.total_steps:,} updates, {tokens:,} tokens; warm-up "
        f"{course.warmup_steps:,}; held out: every {course.eval_every_steps:,}, rows "
        f"of {shapes[-1][1]}"
    ]
    lines += [
        f"  from update {first:,} on {rows} rows of {length}"
        for first, (rows, length) in zip(firsts, shapes, strict=True)
    ]
    return "\n".join(lines)
