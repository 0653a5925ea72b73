"""Checkpoints: orbax, asynchronous, atomic; the last two, and the best weights.

checkpoints/STEP/state   all that a run carries, to resume from
best/STEP/state          the parameters alone, with the lowest criterion of the run
best/STEP/metrics        that criterion
kept/NAME/best/STEP      those that `run.keep_weights_at` asks for, a run folder each
"""

import contextlib
import errno
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

import errors
from errors import UserError
from training.optimizers import parameter_paths
from training.step import TrainState

logging.set_verbosity(logging.ERROR)  # orbax warns at each save of what is no fault

# Files of a run that say what its weights are.
OF_A_RUN = ("config.json", "data.json", "tokenizer.*", "special_tokens.json")
MARGIN_BYTES = 1_000_000  # what a checkpoint takes beside its arrays
TABLE_MULTIPLE = 128  # rows that tables are filled up to; older runs' are not


class DamagedCheckpoint(Exception):
    """Names a checkpoint that cannot be read whole, and what of it."""


class Checkpoints:
    """What a run saves in its folder. Opening it removes what a killed save left, so
    only the writer of the folder may (`training.lock`).

    Attributes:
      best_value: the criterion of the best weights; infinite where there are none.
    """

    def __init__(self, run_folder: Path):
        folder = run_folder.resolve()
        self._folder = folder / "checkpoints"
        for place in (self._folder, folder / "best"):
            errors.check_folder(place, "--workdir")
        self._states = _manager(self._folder, max_to_keep=2)
        self._best = _manager(
            folder / "best",
            max_to_keep=1,
            best_fn=lambda metrics: metrics["criterion"],
            best_mode="min",
        )
        self.best_value = min(_values(folder / "best").values(), default=math.inf)
        earlier = _values(self._folder)
        if earlier and self.best_value == math.inf:
            # A run of before, with its best among the checkpoints.
            params, step = load_params(folder)
            if step in earlier:
                self.keep_best(params, step, earlier[step])
                self.wait()

    def save(self, state: TrainState) -> None:
        """Starts to save `state`, unless its step is there."""
        step = int(state.step)
        if step in self._states.all_steps():
            return
        self._check_space(state)
        self._states.save(step, args=_arguments(state))

    def keep_best(self, params: Any, step: int, value: float) -> None:
        """Starts to save `params` where `value`, the criterion, is a new lowest one."""
        if not value < self.best_value:  # NaN is not
            return
        self.best_value = value
        if step in self._best.all_steps():
            return
        self._check_space(params)
        self._best.save(
            step,
            args=_arguments({"params": params}),
            metrics={"criterion": value},
            force=True,  # a resumed run can be before the step of its best
        )

    def keep(self, params: Any, step: int, names: Iterable[str]) -> None:
        """Saves `params` as run folders of their own, kept/NAME, those not there."""
        run_folder = self._folder.parent
        for folder in (run_folder / "kept" / name for name in names):
            if _steps(folder / "best") == [step]:
                continue
            self._check_space(params)
            folder.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                for path in (one for name in OF_A_RUN for one in run_folder.glob(name)):
                    shutil.copy(path, folder)
            best = _manager(folder / "best", max_to_keep=1)
            best.save(step, args=_arguments({"params": params}), force=True)
            best.close()

    def _check_space(self, tree: Any) -> None:
        """Raises UserError where a checkpoint would fill the disk half-way through."""
        self.wait()
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) + MARGIN_BYTES
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise UserError(
                f"the disk of {self._folder} is full: a checkpoint takes "
                f"{needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free. Free some space "
                f"and run the same line again: it goes on after step "
                f"{self.latest_step() or 0}"
            )

    def latest_step(self) -> int | None:
        return self._states.latest_step()

    def restore(self, plan: TrainState) -> TrainState:
        """The latest state, where `plan` has it: shapes, types and shardings.

        Tables that have been filled up since get rows of zeros.

        Raises:
          UserError: names the arrays that differ in more than that.
          DamagedCheckpoint: see `set_aside`.
        """
        path = self._folder / str(self.latest_step()) / "state"
        _check_shapes(_saved_tree(path), plan, path)
        arguments = jax.tree.map(
            lambda leaf: ocp.ArrayRestoreArgs(
                sharding=leaf.sharding,
                global_shape=leaf.shape,
                dtype=leaf.dtype,
                strict=False,  # appends zeros
            ),
            plan,
        )
        with _damage_named(path):
            return ocp.PyTreeCheckpointer().restore(
                path,
                args=ocp.args.PyTreeRestore(
                    item=plan,
                    restore_args=arguments,
                    partial_restore=True,  # a field that is None was not always there
                ),
            )

    def set_aside(self, error: DamagedCheckpoint) -> None:
        """Renames the latest state, which is damaged, and closes; the one before it is
        then the latest.

        Raises:
          UserError: there is none before it, or other processes read this one.
        """
        self.close()
        *earlier, step = sorted(_steps(self._folder))
        if not earlier or jax.process_count() > 1:
            way = f"delete it to resume from step {earlier[-1]}" if earlier else ""
            raise UserError(f"{error}: {way or 'begin anew in another --workdir'}")
        aside = self._folder / f"{step}.damaged"
        shutil.rmtree(aside, ignore_errors=True)
        (self._folder / str(step)).rename(aside)
        _warn(f"{error}; it is now {aside.name}, and step {earlier[-1]} is resumed")

    def wait(self) -> None:
        """Blocks until everything is on disk; raises what a save in flight raised."""
        self._states.wait_until_finished()
        self._best.wait_until_finished()

    def close(self) -> None:
        self._states.close()
        self._best.close()


def _manager(folder: Path, **options: Any) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        folder,
        item_names=("state",),
        options=ocp.CheckpointManagerOptions(cleanup_tmp_directories=True, **options),
    )


def _arguments(tree: Any) -> ocp.args.Composite:
    return ocp.args.Composite(state=ocp.args.StandardSave(tree))


def _check_shapes(saved: Any, plan: Any, path: Path) -> None:
    """Raises UserError where arrays are missing, too many or of another shape."""

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        names = jax.tree.leaves(parameter_paths(tree))
        return {n: x.shape for n, x in zip(names, jax.tree.leaves(tree), strict=True)}

    there, here = shapes(saved), shapes(plan)
    wrong = [
        f"{name} is {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
        for name in here | there
        if name not in there
        or name not in here
        or here[name] not in (there[name], _filled_up(there[name]))
    ]
    if wrong:
        raise UserError(
            f"the checkpoint {path.parent} does not fit: {'; '.join(wrong[:5])} "
            f"({len(wrong)} differ): use the model and the optimizer it was saved from"
        )


def _filled_up(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with its first axis a multiple of `TABLE_MULTIPLE`."""
    return (
        tuple(-(-n // TABLE_MULTIPLE) * TABLE_MULTIPLE for n in shape[:1]) + shape[1:]
    )


def _values(folder: Path) -> dict[int, float]:
    """Of each checkpoint in the folder its step and what it was saved with, a number;
    those saved without one are left out."""
    found = {}
    for step in _steps(folder):
        path = folder / str(step) / "metrics" / "metrics"
        if not path.exists():
            continue
        try:
            (found[step],) = json.loads(path.read_text()).values()
        except ValueError as error:
            _warn(f"{path} is damaged ({error}): how good these weights are is unknown")
    return {step: value for step, value in found.items() if not math.isnan(value)}


def _steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in the folder."""
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return [int(name) for name in names if name.isdecimal()]


def _warn(sentence: str) -> None:
    print(f"warning: {sentence}", file=sys.stderr)


# Read, as far as it is whole.


def _saved_tree(path: Path) -> Any:
    """Shapes and types of what was saved at `path`.

    Raises:
      DamagedCheckpoint: they cannot be read.
    """
    for file in path.rglob("*"):
        if not os.access(file, os.R_OK):  # orbax would take it for damaged
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
    with _damage_named(path):
        metadata = ocp.PyTreeCheckpointer().metadata(path).item_metadata
        if metadata is None:
            raise ValueError("its _METADATA, _sharding or manifest is missing or cut")
        return metadata.tree


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Raises DamagedCheckpoint for what orbax raises while it reads `path`, which can
    be anything, `Exception` itself among it."""
    try:
        yield
    except Exception as error:
        is_memory = isinstance(error, MemoryError | jax.errors.JaxRuntimeError)
        if is_memory or errors.system_fault(error, []):
            raise
        _ignore_late_reads()
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        reason = (str(first).strip() or type(first).__name__).splitlines()[0]
        raise DamagedCheckpoint(
            f"the checkpoint {path.parent} is damaged ({reason})"
        ) from error


def _ignore_late_reads() -> None:
    """Without it each array that is still being read when another one fails prints a
    traceback, since orbax has closed the event loop that it would report to."""
    told = sys.unraisablehook

    def tell(late: Any) -> None:
        if str(late.exc_value) != "Event loop is closed":
            told(late)

    sys.unraisablehook = tell


def has_checkpoint(run_folder: Path) -> bool:
    """Whether there is a state to resume from."""
    return bool(_steps(run_folder / "checkpoints"))


def load_params(run_folder: Path) -> tuple[Any, int]:
    """The parameters of a run as NumPy arrays, and their step, on any machine.

    They are the ones with the lowest criterion; where nothing was evaluated, the
    latest. Where these are damaged the next ones are taken, and it is said.

    Raises:
      UserError: there is no checkpoint, or all are damaged.
    """
    run_folder, damages = run_folder.resolve(), []
    ranked = _ranked(run_folder)
    for folder, step in ranked:
        try:
            params = _read_params(folder / str(step) / "state")
        except DamagedCheckpoint as error:
            damages.append(str(error))
            continue
        for damage in damages:
            _warn(f"{damage}; the weights of {folder.name}/{step} are used")
        return params, step
    if damages:
        raise UserError(f"{'; '.join(damages)}: there is no other one. Train it anew")
    raise UserError(
        f"no checkpoint in {run_folder / 'checkpoints'}: give the run folder of "
        "train.py (--workdir), after its first checkpoint"
    )


def _ranked(run_folder: Path) -> list[tuple[Path, int]]:
    """All checkpoints with weights, the best first: folder and step.

    Runs of before had no best/, and a criterion with each state.
    """
    ranked = []
    for folder in (run_folder / "best", run_folder / "checkpoints"):
        values, steps = _values(folder), sorted(_steps(folder), reverse=True)
        steps.sort(key=lambda step: values.get(step, math.inf))
        ranked += [(folder, step) for step in steps]
    return ranked


def _read_params(path: Path) -> Any:
    """The parameters of a state as NumPy arrays."""
    wanted = {"params": _saved_tree(path)["params"]}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    arguments = ocp.args.PyTreeRestore(
        item=wanted, restore_args=as_numpy, partial_restore=True
    )
    with _damage_named(path):
        return ocp.PyTreeCheckpointer().restore(path, args=arguments)["params"]


def take_weights(
    params: Any,
    source: Any,
    name: str,
    *,
    may_be_new: tuple[str, ...],
    may_be_left: tuple[str, ...],
) -> tuple[Any, str]:
    """`params` with all that `source` has at the same paths, and a report of it.

    What is only in one of them, or has another shape, must match a pattern of those
    that may be new here, or left there.

    Raises:
      UserError: names the parameters that differ.
    """
    paths, structure = jax.tree.flatten(parameter_paths(params))
    leaves = jax.tree.leaves(params)
    given = dict(
        zip(
            jax.tree.leaves(parameter_paths(source)),
            jax.tree.leaves(source),
            strict=True,
        )
    )
    taken, new, left, wrong = [], [], [], []
    for path, leaf in zip(paths, leaves, strict=True):
        if path in given and given[path].shape == leaf.shape:
            taken.append(path)
        elif any(re.fullmatch(pattern, path) for pattern in may_be_new):
            new.append(path)
        elif path in given:
            wrong.append(f"{path} is {given[path].shape} there, {leaf.shape} here")
        else:
            wrong.append(f"{path} is not there")
    for path in given.keys() - {*paths}:
        if any(re.fullmatch(pattern, path) for pattern in may_be_left):
            left.append(path)
        else:
            wrong.append(f"{path} has no place here")
    if wrong:
        raise UserError(
            f"the weights of {name} do not fit: {'; '.join(sorted(wrong)[:5])} "
            f"({len(wrong)} differ): use the model they belong to, or excuse paths by "
            "patterns in config.allow_missing"
        )
    named = (
        f"  {what} {len(which)}: {', '.join(sorted(which)) or 'none'}"
        for what, which in (("new", new), ("left", left))
    )
    report = "\n".join([f"  taken {len(taken)}, all but the new", *named])
    chosen = {*taken}
    merged = [
        np.asarray(given[path]) if path in chosen else leaf
        for path, leaf in zip(paths, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, merged), report
