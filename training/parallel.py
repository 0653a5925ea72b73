"""Devices: one program over a mesh, the batch cut over its `data` axis."""

import ctypes
import platform
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from errors import UserError

# XLA's own kernels for CPUs take three times as long to compile as Eigen's, and their
# products of matrices are 10 % slower (jax 0.10.2).
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}


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


def make_mesh(data: int) -> Mesh:
    """A mesh of `data` devices; -1 takes all there are.

    Raises:
      UserError: more devices are asked for than there are.
    """
    available = jax.device_count()
    size = available if data == -1 else data
    if not 1 <= size <= available:
        raise UserError(
            f"run.mesh.data={data}, but there are {available} devices "
            f"({jax.devices()[0].device_kind}): use 1 to {available}, or -1 for all"
        )
    return jax.make_mesh(
        (size,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:size]
    )


def check_batch_size(batch_size: int, mesh: Mesh, micro_batches: int) -> None:
    """Raises UserError unless every device gets the same number of rows each time."""
    parts = mesh.shape["data"] * micro_batches
    if micro_batches < 1 or batch_size % parts:
        raise UserError(
            f"data.batch_size={batch_size} does not divide over "
            f"{mesh.shape['data']} devices x run.micro_batches={micro_batches}: use a "
            f"multiple of {max(parts, 1)}, or other run.mesh.data or run.micro_batches"
        )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """`tree` with a whole copy on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's rows of a global batch, cut over the `data` axis."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in batch.items()
    }


def shapes(state: Any, batch: dict[str, np.ndarray], mesh: Mesh) -> tuple[Any, Any]:
    """What to compile a step for: `state` on every device, `batch` cut over `data`."""

    def described(tree: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    return described(state, PartitionSpec()), described(batch, PartitionSpec("data"))


def compile_step(step: Callable, mesh: Mesh, *, donate_state: bool) -> Callable:
    """`step(state, batch, ...)` jitted; its result is whole on every device.

    With `donate_state` the new state takes the memory of the old one.
    """
    return jax.jit(
        step,
        out_shardings=NamedSharding(mesh, PartitionSpec()),
        donate_argnums=(0,) if donate_state else (),
        compiler_options=CPU_OPTIONS if jax.default_backend() == "cpu" else None,
    )
