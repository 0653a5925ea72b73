"""Devices: one program over a mesh with the axes `data`, `fsdp` and `tensor`.

The batch is cut over data x fsdp; parameters, and what the optimizer keeps for each, as
the caller's rules say. One device is the same program with a mesh of 1.
"""

import ctypes
import itertools
import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

from errors import UserError
from training.optimizers import first_matches, parameter_paths
from training.step import LossTerms, Term, TrainState, create_state

# Ordered (regex of a whole parameter path, the mesh axes that cut its axes); the first
# match wins, and what none matches is whole on every device.
Rules = Sequence[tuple[str, PartitionSpec]]

T = TypeVar("T")

WHOLE = PartitionSpec()
BY_ROWS = PartitionSpec(("data", "fsdp"))
JOINABLE_JAX = (0, 10, 2)
BARRIER_MS = 24 * 3600 * 1000  # for what one process prepares; a dead one ends it


def keep_freed_memory() -> None:
    """Lets the process keep memory that it has freed, where the C library is glibc.

    It returns large blocks to the system, so on a CPU the buffers of each step are
    paged in anew. To be called before jax starts its threads, each of which would get
    a heap of its own: that costs a BERT of 4 layers x 256 on 32 x 128 tokens a sixth
    of a step.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL("libc.so.6")
    never_map, trim_threshold, top_pad, arenas = -4, -1, -2, -8  # of malloc.h
    for option, value in (
        (never_map, 0),
        (trim_threshold, 2**31 - 1),
        (top_pad, 64 << 20),
        (arenas, 1),
    ):
        libc.mallopt(option, value)


# The mesh, and what lies where.


def make_mesh(data: int, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh of data x fsdp x tensor devices; -1, of one of them, takes the rest.

    Raises:
      UserError: sizes that the devices there are do not have.
    """
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    asked = " x ".join(f"run.mesh.{axis}={size}" for axis, size in sizes.items())
    if any(size < 1 and size != -1 for size in sizes.values()) or (
        [*sizes.values()].count(-1) > 1
    ):
        raise UserError(
            f"{asked}: each must be at least 1, and one of them may be -1, the rest"
        )
    available = jax.device_count()
    fixed = math.prod(size for size in sizes.values() if size > 0)
    shape = [available // fixed if size == -1 else size for size in sizes.values()]
    count = math.prod(shape)
    needs_all = -1 in sizes.values() or jax.process_count() > 1
    if count > available or (needs_all and count != available):
        raise UserError(
            f"{asked}, but there are {available} devices "
            f"({jax.devices()[0].device_kind}): their product must be "
            f"{'all of them' if needs_all else f'at most {available}'}"
        )
    return jax.make_mesh(
        shape,
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(shape),
        devices=jax.devices()[:count],
    )


def describe(mesh: Mesh) -> str:
    """Number and kind of the devices and, of several, how they are laid out."""
    text = f"{mesh.size} x {jax.devices()[0].device_kind}"
    if mesh.size > 1:
        axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        text += f" ({axes}; processes: {jax.process_count()})"
    return text


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch_size(rows: Any, mesh: Mesh, micro_batches: int) -> None:
    """Raises UserError unless every device gets the same number of rows each time, also
    of each of the batches in a batch, whose rows come by name."""
    parts, total = batch_parts(mesh) * micro_batches, sum(jax.tree.leaves(rows))
    for path, count in jax.tree.leaves_with_path(rows):
        name = jax.tree_util.keystr(path, simple=True)
        of = f", with {count} {name} rows," if name else ""
        if micro_batches < 1 or count % parts:
            raise UserError(
                f"data.batch_size={total}{of} does not divide over "
                f"{batch_parts(mesh)} devices (run.mesh.data x run.mesh.fsdp) x "
                f"run.micro_batches={micro_batches}: use a multiple of "
                f"{max(parts, 1)}{' for these' if name else ''}, or other run.mesh or "
                "run.micro_batches"
            )


def plan_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    rules: Rules,
    mesh: Mesh,
    carried: Any = None,
) -> TrainState:
    """Shape, type and place of every array of a state; `params`, and what the rows of
    a batch carry, may be shapes alone.

    What the optimizer keeps for a parameter has a path that ends in the parameter's,
    and its shape: it lies as the parameter does. All else is whole on every device.
    """
    paths = jax.tree.leaves(parameter_paths(params))
    matches = first_matches(paths, [pattern for pattern, _ in rules])
    specs = {
        (path, leaf.shape): rules[match][1]
        for path, leaf, match in zip(
            paths, jax.tree.leaves(params), matches, strict=True
        )
        if match is not None
    }

    def planned(path: str, leaf: Any) -> jax.ShapeDtypeStruct:
        names = path.split("/")
        endings = (("/".join(names[i:]), leaf.shape) for i in range(len(names)))
        spec = next((specs[ending] for ending in endings if ending in specs), WHOLE)
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    state = jax.eval_shape(lambda params: create_state(params, optimizer), params)
    state = jax.tree.map(planned, parameter_paths(state), state)
    by_rows = NamedSharding(mesh, BY_ROWS)
    return state.replace(
        extra=jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=by_rows), carried
        )
    )


def plan_batch(batch: Any, rows: int, mesh: Mesh) -> Any:
    """Shapes and places of a global batch of so many rows, from some of its rows."""
    sharding = NamedSharding(mesh, BY_ROWS)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (rows, *x.shape[1:]), x.dtype, sharding=sharding
        ),
        batch,
    )


def places(plan: Any) -> Any:
    """The tree with each array, or its shape, replaced by its place."""
    return jax.tree.map(lambda leaf: leaf.sharding, plan)


def place(tree: Any, plan: Any) -> Any:
    """NumPy arrays, which every process has whole, onto the devices as planned."""

    def put(leaf: Any, planned: Any) -> Any:
        if not isinstance(leaf, np.ndarray):
            return leaf  # is there already
        return jax.make_array_from_callback(
            leaf.shape, planned.sharding, lambda index: leaf[index]
        )

    return jax.tree.map(put, tree, plan)


def start_state(
    params: Any, optimizer: optax.GradientTransformation, plan: TrainState
) -> TrainState:
    """A state of step 0, made where it is planned to lie; takes over the `params`."""

    def start(params: Any) -> TrainState:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), plan.extra)
        return create_state(params, optimizer, zeros)

    return jax.jit(start, out_shardings=places(plan), donate_argnums=0)(params)


def filled(batch: Any, rows: int) -> Any:
    """The batch with empty rows at its end: all zeros, segments and weights as well."""
    return jax.tree.map(
        lambda x: np.pad(x, [(0, rows - len(x))] + [(0, 0)] * (x.ndim - 1)), batch
    )


def shard_batch(batch: Any, rows: int, mesh: Mesh) -> Any:
    """A global batch of so many rows, cut over the devices: of all its rows, or of the
    `host_part` that this process makes."""
    sharding = NamedSharding(mesh, BY_ROWS)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(
            sharding, x, (rows, *x.shape[1:])
        ),
        batch,
    )


# Programs.


def mapped_axis(mode: str, mesh: Mesh) -> str | None:
    """The axis that `jax.pmap` maps over where `run.parallel` asks for it.

    Raises:
      UserError: another mode than "jit" and "pmap", or a mesh that pmap cannot have.
    """
    if mode == "jit":
        return None
    if mode != "pmap":
        raise UserError(f"run.parallel={mode!r} is not known: use 'jit' or 'pmap'")
    if mesh.shape["fsdp"] > 1 or mesh.shape["tensor"] > 1 or jax.process_count() > 1:
        raise UserError(
            "run.parallel='pmap' keeps a whole copy of the state on each device of one "
            f"process; the mesh is {describe(mesh)}: use run.parallel='jit', or "
            "run.mesh.fsdp=1, run.mesh.tensor=1 and no --distributed"
        )
    return "data"


def gathering(loss_terms: LossTerms, plan: Any, mesh: Mesh) -> LossTerms:
    """`loss_terms` with parameters that are whole over `fsdp` while they are used.

    Left to itself XLA cuts the activations by their width instead, and exchanges those
    in every layer. `plan` is that of the parameters.
    """
    if mesh.shape["fsdp"] == 1:
        return loss_terms

    def gathered(sharding: NamedSharding) -> NamedSharding:
        axes = (None if axis == "fsdp" else axis for axis in sharding.spec)
        return NamedSharding(mesh, PartitionSpec(*axes))

    targets = jax.tree.map(gathered, places(plan))

    def terms(params: Any, batch: dict, key: Any) -> dict[str, Term]:
        params = jax.lax.with_sharding_constraint(params, targets)
        return loss_terms(params, batch, key)

    return terms


def compile_train_step(
    step: Callable, plan: TrainState, batch: Any, mesh: Mesh, axis: str | None
) -> Any:
    """`step(state, batch, key)` for what is planned; the new state takes the memory of
    the old one. `axis` is that of `mapped_axis`, which `step` sums over, too."""
    if axis is not None:
        step = map_over_devices(step, mesh, axis)
    jitted = jax.jit(
        step,
        out_shardings=(places(plan), NamedSharding(mesh, WHOLE)),
        donate_argnums=0,
        compiler_options=compiler_options(),
    )
    return jitted.lower(plan, batch, jax.random.key(0)).compile()


def map_over_devices(step: Callable, mesh: Mesh, axis: str) -> Callable:
    """`step` by `jax.pmap`: each device with the whole state and its rows."""
    mapped = jax.pmap(
        step,
        axis,
        in_axes=(None, 0, None),
        out_axes=None,
        devices=[*mesh.devices.flat],
    )

    def run(state: TrainState, batch: Any, key: Any) -> tuple[TrainState, dict]:
        cut = jax.tree.map(lambda x: x.reshape(mesh.size, -1, *x.shape[1:]), batch)
        return mapped(state, cut, key)

    return run


def compile_eval_step(step: Callable, params: Any, batch: Any, mesh: Mesh) -> Any:
    """`step(params, batch)` as planned; its result is whole on every device."""
    jitted = jax.jit(
        step,
        out_shardings=NamedSharding(mesh, WHOLE),
        compiler_options=compiler_options(),
    )
    return jitted.lower(params, batch).compile()


def compiler_options() -> dict[str, str] | None:
    """XLA's own kernels for CPUs take three times as long to compile as Eigen's, and
    their products of matrices are up to a quarter slower (jax 0.10.2)."""
    if jax.default_backend() == "cpu":
        return {"xla_cpu_experimental_ynn_fusion_type": ""}
    return None


# Several processes.


def join_processes() -> None:
    """Makes this process one of several that run the same command line.

    Their number and this one's place are found on TPU pods, under SLURM and Open MPI,
    and else in JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. All
    processes but the first print nothing.

    Raises:
      UserError: nothing says which processes there are, or they were not reached, or
        jax is older than `JOINABLE_JAX`.
    """
    if jax.__version_info__ < JOINABLE_JAX:
        wanted = ".".join(map(str, JOINABLE_JAX))
        raise UserError(
            f"--distributed needs jax {wanted} or later, where several processes stop "
            f"in order, and this is {jax.__version__}: pip install -U jax"
        )
    keep_freed_memory()  # reaching the others starts jax's threads
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is the loop's

    def number(name: str) -> int | None:
        return int(os.environ[name]) if name in os.environ else None

    try:
        jax.distributed.initialize(
            num_processes=number("JAX_NUM_PROCESSES"),
            process_id=number("JAX_PROCESS_ID"),
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed: {error} Outside of TPU pods, SLURM and Open MPI set "
            "JAX_COORDINATOR_ADDRESS=HOST:PORT of the first process, JAX_NUM_PROCESSES "
            "and JAX_PROCESS_ID, or leave out --distributed"
        ) from error
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)


def is_first() -> bool:
    """Whether this process writes and prints; one alone does."""
    return jax.process_index() == 0


def wait_for_all() -> None:
    """Returns when every process has called this as often."""
    if jax.process_count() > 1:
        key = f"foreword_{next(_barriers)}"
        multihost.get_barrier_sync_fn()(key=key, timeout_ms=BARRIER_MS)


_barriers = itertools.count()


def first_alone(make: Callable[[], T]) -> T:
    """What `make` returns: called by the first process, and after it by the others,
    which find the files that it made."""
    if is_first():
        try:
            return make()
        finally:
            wait_for_all()
    wait_for_all()
    return make()


def host_part(mesh: Mesh) -> tuple[int, int]:
    """(index, count) of the part of each batch's rows that this process makes.

    Processes whose devices hold the same rows make the same part; where devices of a
    process share rows with those of several others, each makes the whole batch.
    """
    parts = mesh.devices.reshape(batch_parts(mesh), -1)
    owners = [frozenset(device.process_index for device in part) for part in parts]
    groups = [*dict.fromkeys(owners)]
    is_even = all(owners.count(group) * len(groups) == len(owners) for group in groups)
    if not is_even or sum(map(len, groups)) > jax.process_count():
        return 0, 1
    index = next(i for i, group in enumerate(groups) if jax.process_index() in group)
    return index, len(groups)


class Agreement:
    """Numbers that all processes act on: of each the largest that any of them gave.

    With several processes a call starts an exchange and returns the result of the call
    before (at first zeros), so that no process waits for the devices of others.
    """

    def __init__(self) -> None:
        self._mesh = Mesh(np.array(jax.devices()), ("device",))
        self._largest = jax.jit(
            lambda x: x.max(axis=0), out_shardings=NamedSharding(self._mesh, WHOLE)
        )
        self._result: Any = None

    def __call__(self, *values: int) -> tuple[int, ...]:
        if jax.process_count() == 1:
            return values
        before, self._result = self._result, self._exchange(values)
        if before is None:
            return (0,) * len(values)
        return tuple(np.asarray(before).tolist())

    def _exchange(self, values: tuple[int, ...]) -> jax.Array:
        given = jax.make_array_from_process_local_data(
            NamedSharding(self._mesh, PartitionSpec("device")),
            np.tile(np.array(values, np.int32), (jax.local_device_count(), 1)),
        )
        return self._largest(given)
