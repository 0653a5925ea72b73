"""What a sweep file says: `get_sweep()` returns a `Sweep`, see docs/sweeps.md.

`--sweep=FILE.py:ARGUMENT` calls `get_sweep(ARGUMENT)`.
"""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

Overrides = dict[str, Any]  # {"optim.learning_rate": 1e-3}


class Stage(NamedTuple):
    """A command that each of its variants is run with.

    Attributes:
        command: "train", "finetune" or "score"; "run" is a run that there is.
        config: its file, as `--config` names it; of "score" what is scored, "pairs"; of
            "run" its folder.
        variants: what each does otherwise than the file, of "score" its flags; the
            first one is the base.
        label: what it is called beside others, "": as its config.
    """

    command: str
    config: str
    variants: tuple[Overrides, ...]
    label: str = ""

    @property
    def name(self) -> str:
        """bert_mini of configs/bert_mini.py:tiny, pairs of score.py's pairs."""
        return self.label or Path(self.config.partition(".py")[0]).name


class Sweep(NamedTuple):
    """Stages, each of which starts from the runs of the one before.

    Attributes:
        stages: in their order; those that stand side by side in a tuple each start
            from all runs before it (`init_from`).
        seeds: that each variant is run with.
        metrics: that are compared, of the last stage, as "eval/loss" or, fine-tuned,
            "test/accuracy", or "score/accuracy".
        budget: of a run of the stages that pre-train: "1500 steps", "10M tokens",
            "3e13 flops" or "600 seconds", which are those of the updates alone; "": as
            their configs say.
    """

    stages: tuple[Stage | tuple[Stage, ...], ...]
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    budget: str

    @property
    def rounds(self) -> tuple[tuple[Stage, ...], ...]:
        """The stages, one alone as the only one beside itself."""
        return tuple((s,) if isinstance(s, Stage) else s for s in self.stages)


def product(*parts: Iterable[Overrides]) -> tuple[Overrides, ...]:
    """Each of one part with each of the others."""
    return tuple(_joined(chosen) for chosen in itertools.product(*parts))


def zipped(*parts: Iterable[Overrides]) -> tuple[Overrides, ...]:
    """The first ones of all parts, the second ones, and on."""
    return tuple(_joined(chosen) for chosen in zip(*parts, strict=True))


def chain(*parts: Iterable[Overrides]) -> tuple[Overrides, ...]:
    """One part after the other."""
    return (*itertools.chain(*parts),)


def over(setting: str, values: Iterable[Any]) -> tuple[Overrides, ...]:
    """A setting at each of its values."""
    return tuple({setting: value} for value in values)


def _joined(chosen: Iterable[Overrides]) -> Overrides:
    together: Overrides = {}
    for overrides in chosen:
        together |= overrides
    return together
