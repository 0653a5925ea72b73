"""What a compiled step costs: operations and memory, beside what the device has."""

import collections
import contextlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from errors import UserError

# Of a device's memory, since XLA's estimate leaves out its own buffers and libraries.
USABLE_SHARE = 0.9


# Dense bfloat16 (T4, V100: float16) operations a second of a device as jax names it, by
# the makers' data sheets; of TPU v2 and v3 a device is one of a chip's two cores.
PEAK_FLOPS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "Tesla T4": 65e12,
    "Tesla V100-SXM2-16GB": 125e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


class Work(NamedTuple):
    """Of some updates: their tokens, padding as well, and FLOPs of a device."""

    tokens: int
    flops: float


def throughput(work: Work, seconds: float, useful_share: float) -> dict[str, float]:
    """Tokens a second, those that are not padding, and "mfu": the share of the devices'
    peak (Chowdhery et al. 2022, appendix B), where the device is one of `PEAK_FLOPS`.
    """
    kind, tokens_per_second = jax.devices()[0].device_kind, work.tokens / seconds
    values = {
        "tokens_per_second": tokens_per_second,
        "useful_tokens_per_second": tokens_per_second * useful_share,
    }
    if kind in PEAK_FLOPS:
        values["mfu"] = work.flops / seconds / PEAK_FLOPS[kind]
    return values


@dataclass(frozen=True)
class StepCost:
    """Of one device, as XLA counts it.

    Attributes:
        flops: a step's; XLA counts the body of a loop once.
        arguments: bytes of state and batch.
        temporaries: bytes of activations, gradients and scratch space.
        outputs: bytes of results that do not take the place of arguments.
        collectives: of `collective_bytes`.
    """

    flops: float
    arguments: int
    temporaries: int
    outputs: int
    collectives: Mapping[str, int]

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries + self.outputs


def step_cost(compiled: Any) -> StepCost:
    """The cost of `jax.jit(f).lower(...).compile()`."""
    memory = compiled.memory_analysis()
    return StepCost(
        compiled.cost_analysis()["flops"],
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        collective_bytes(compiled.as_text()),
    )


COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
# "  %name = type opcode(operands), ..." of an HLO program.
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?(\S+) = (.+?) ([a-z][a-z0-9-]*)\((.*)")
COMPUTATION = re.compile(r"(ENTRY )?%?([^\s(]+) \(.*\{$")
CALLED = re.compile(r"(?:body|to_apply|calls|computation)=%?([\w.-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
ARRAY = re.compile(r"\b[a-z]+(\d+)\w*\[([\d,]*)\]")


def collective_bytes(program: str) -> dict[str, int]:
    """Bytes of the arrays that a device exchanges with others, by kind of collective.

    The larger of what goes in and what comes out: of an all-gather the gathered array,
    of a reduce-scatter the one to be summed. In a ring of n devices an all-reduce sends
    2 (n - 1) / n times these bytes, the other kinds (n - 1) / n times. The body of a
    loop counts as often as it runs, once where XLA does not know.

    Args:
        program: `as_text()` of a compiled program, HLO.
    """
    computations: dict[str, list[re.Match]] = {}
    entry, sizes = "", {}
    for line in program.splitlines():
        if head := COMPUTATION.match(line):
            name = head.group(2)
            computations[name] = []
            entry = name if head.group(1) else entry
        elif found := INSTRUCTION.match(line):
            computations[name].append(found)
            sizes[found.group(1)] = array_bytes(found.group(2))
    totals: collections.Counter[str] = collections.Counter()

    def add(computation: str, times: int) -> None:
        for instruction in computations[computation]:
            _, result, opcode, rest = instruction.groups()
            kind = opcode.removesuffix("-start")
            if re.fullmatch(COLLECTIVES, kind):
                names = re.findall(r"%([\w.-]+)", rest.partition(")")[0])
                given = sum(sizes[name] for name in names)
                # What starts an exchange holds its operands and the results.
                taken = array_bytes(result) - (given if opcode != kind else 0)
                totals[kind] += times * max(given, taken)
                continue
            trips = TRIPS.search(rest) if opcode == "while" else None
            for called in CALLED.findall(rest):
                if called in computations:
                    add(called, times * (int(trips.group(1)) if trips else 1))

    add(entry, 1)
    return dict(totals)


def array_bytes(hlo_type: str) -> int:
    """Of "f32[8,16]{1,0}", or of a tuple of such."""
    return sum(
        math.prod(map(int, filter(None, shape.split(",")))) * max(int(bits) // 8, 1)
        for bits, shape in ARRAY.findall(hlo_type)
    )


def device_memory() -> int:
    """Bytes of one device; on a CPU of the machine."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return pages // jax.local_device_count()


def describe(cost: StepCost) -> str:
    """A table for a reader, and whether it fits."""
    fits = cost.total <= USABLE_SHARE * device_memory()
    return f"{table(cost)}\n{'fits' if fits else f'DOES NOT FIT: {REMEDIES}'}"


def table(cost: StepCost) -> str:
    """What a step needs of a device, beside what there is."""
    rows = [
        ("state and batch", cost.arguments),
        ("activations, gradients, scratch", cost.temporaries),
        ("results", cost.outputs),
        ("total of a device", cost.total),
        ("the device has", device_memory()),
    ]
    lines = [f"{cost.flops:.3g} FLOPs a step on a device (loops counted once)"]
    lines += [f"  {name:<32}{size / 1e6:12,.3f} MB" for name, size in rows]
    lines.append(
        f"exchanged with other devices a step:{'' if cost.collectives else ' nothing'}"
    )
    lines += [
        f"  {kind:<32}{size / 1e6:12,.3f} MB" for kind, size in cost.collectives.items()
    ]
    return "\n".join(lines)


def is_out_of_memory(error: Exception) -> bool:
    """Whether XLA says that a device has too little memory, for a program or in one;
    before jax 0.10 a CPU's says it as an internal error."""
    return isinstance(error, jax.errors.JaxRuntimeError) and any(
        words in str(error) for words in ("RESOURCE_EXHAUSTED", "Out of memory")
    )


@contextlib.contextmanager
def memory_explained(remedies: str, compiled: Sequence[Any] = ()) -> Iterator[None]:
    """Within it, too little memory is a mistake that names the way out.

    Args:
        remedies: the settings that lower the need.
        compiled: the steps that run, where there are some already.

    Raises:
        UserError: a device ran out of memory.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        lines = [str(error).split("\n\n")[0]]  # a TPU's compiler goes on for pages
        costs = map(step_cost, compiled)
        if largest := max(costs, key=lambda cost: cost.total, default=None):
            lines.append(f"the training step: {table(largest)}")
        raise UserError("\n".join([*lines, remedies])) from error


REMEDIES = (
    "run.micro_batches doubled halves the activations; run.remat=block keeps one "
    "activation a layer; run.logit_chunks divides the logits; run.mesh.fsdp cuts the "
    "state over devices; data.batch_size, data.sequence_length (fine-tuning: "
    "data.max_length) and model sizes change the results"
)
