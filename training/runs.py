"""The life of a run: planned, compiled, begun or resumed, trained, recorded.

What pre-training and fine-tuning have in common; each makes a `Job`, and tells of it.
"""

import bisect
import dataclasses
import functools
import json
import math
import platform
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from errors import UserError
from training import costs, loop, parallel, step
from training.checkpoints import Checkpoints, DamagedCheckpoint
from training.metrics import MetricsWriter, Watch, read_metrics
from training.optimizers import (
    group_rates,
    group_table,
    make_optimizer,
    make_schedule,
    stop_frozen,
)
from training.step import LossTerms, TrainState

Settings = Any  # a group of a config


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is trained, how, and where it lies; nothing of it is made yet.

    Attributes:
        groups: the tree of the parameters' groups.
        rates: of each group, by its pattern.
        state: shape, type and place of every array.
        loss_terms: with what is frozen cut off, and gathered where the mesh cuts it;
            with what is carried where the state has such.
    """

    mesh: Mesh
    groups: Any
    rates: dict[str, optax.Schedule]
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    state: TrainState
    loss_terms: LossTerms


@dataclasses.dataclass(frozen=True)
class Feed:
    """Batches of one shape, by number, of NumPy arrays.

    Attributes:
        rows: of a global batch, or by name of each of those in it.
        is_whole: every process makes all rows, and empty ones may fill up the batch;
            else each makes its `parallel.host_part`.
    """

    batches: Any  # a grain.MapDataset, or what has indices as well
    rows: Any
    is_whole: bool

    @functools.cached_property
    def tokens(self) -> int:
        """Of a batch, padding as well."""
        counts = jax.tree.map(
            lambda rows, batch: rows * batch["segment_ids"].shape[-1],
            self.rows,
            self.batches[0],
        )
        return sum(jax.tree.leaves(counts))

    def filled_rows(self, mesh: Mesh, micro_batches: int) -> Any:
        """Rows of a batch that every device has as many of each time."""
        multiple = parallel.batch_parts(mesh) * micro_batches
        return jax.tree.map(lambda rows: -(-rows // multiple) * multiple, self.rows)

    def planned(self, mesh: Mesh, micro_batches: int) -> Any:
        """Shapes and places of a batch, filled up."""
        rows = self.filled_rows(mesh, micro_batches)
        return jax.tree.map(
            lambda rows, batch: parallel.plan_batch(batch, rows, mesh),
            rows,
            self.batches[0],
        )

    def placed(self, batch: dict, mesh: Mesh, micro_batches: int) -> Any:
        """A batch on the devices, filled up."""

        def placed(rows: int, batch: dict) -> dict:
            if self.is_whole:
                batch = parallel.filled(batch, rows)
            return parallel.shard_batch(batch, rows, mesh)

        return jax.tree.map(placed, self.filled_rows(mesh, micro_batches), batch)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Text that is not trained on, and what is asked of it.

    Attributes:
        evaluate: (params, part of a batch) -> (terms of the loss, arrays [B, ...]).
    """

    feed: Feed
    evaluate: Callable[[Any, dict], tuple[dict, Any]]


@dataclasses.dataclass(frozen=True)
class Phase:
    """Updates whose batches have one shape.

    Attributes:
        first: of them, counted from 0.
        feed: its batches, counted from 0.
        flops: of an update, for the share of the devices' peak.
    """

    first: int
    feed: Feed
    flops: float


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled update, where there is one, and evaluations of a batch, by name."""

    train_step: Any | None
    eval_steps: dict[str, Any]
    micro_batches: int

    def named(self) -> dict[str, Any]:
        """Those that are there, by what they are called where their cost is told."""
        update = {} if self.train_step is None else {"an update": self.train_step}
        return update | {
            f"an evaluation of {name}": step for name, step in self.eval_steps.items()
        }


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run trains, on what, and how it is judged.

    Attributes:
        run: `run` of its config.
        phases: in order, the first one from update 0 on.
        held_out: what `measure` evaluates, by name, in as many micro-batches as the
            last phase's updates.
        measure: (programs, params, stop) -> the values of a held-out evaluation; None
            when told to stop.
        criterion: of these values, the lower the better.
        patience: evaluations without a new lowest criterion that end it; 0: never.
        weights_kept: after which updates, and under which names.
        fresh: () -> the parameters of step 0, where they are planned to lie.
        compiled: evaluations so far, by name and micro-batches.
    """

    run: Settings
    seed: int
    plan: Plan
    phases: tuple[Phase, ...]
    held_out: dict[str, Evaluation]
    total_steps: int
    eval_every_steps: int
    measure: Callable[[Programs, Any, loop.StopSignal], dict[str, float] | None]
    criterion: Callable[[dict[str, float]], float]
    patience: int
    weights_kept: Mapping[int, tuple[str, ...]]
    fresh: Callable[[], Any]
    compiled: dict[tuple[str, int], Any] = dataclasses.field(default_factory=dict)

    def phase(self, step: int) -> int:
        """The number of the phase of an update."""
        return bisect.bisect([phase.first for phase in self.phases], step) - 1

    def batch(self, step: int) -> dict:
        """The rows of an update's batch that this process makes."""
        phase = self.phases[self.phase(step)]
        return phase.feed.batches[step - phase.first]

    def work(self, first: int, last: int) -> costs.Work:
        """That of updates first .. last-1."""
        ends = [*(phase.first for phase in self.phases[1:]), last]
        counts = [
            max(0, min(end, last) - max(phase.first, first))
            for phase, end in zip(self.phases, ends, strict=True)
        ]
        both = [*zip(counts, self.phases, strict=True)]
        return costs.Work(
            sum(count * phase.feed.tokens for count, phase in both),
            sum(count * phase.flops for count, phase in both) / self.plan.mesh.size,
        )

    def told(self, first: int) -> str:
        """What is left to do, in words."""
        if first >= self.total_steps:
            return f"all {first} steps are done"
        return f"steps {first} to {self.total_steps}; the first one compiles"


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        step: updates done.
        metrics: of the last held-out evaluation.
        signal: that it was stopped by.
    """

    folder: Path
    step: int
    metrics: dict[str, float]
    signal: int | None

    @property
    def exit_status(self) -> int:
        return 0 if self.signal is None else 128 + self.signal


def start_jax(precision: str, compiled: Path) -> None:
    """Compiled programs are kept in a folder; float32 means float32 on every device."""
    parallel.keep_freed_memory()
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(compiled))
    # The many small programs of a start count, too.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if precision == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")


# Planned.


def init_params(model: Any, batch: dict, seed: Any, places: Any = None) -> Any:
    """Fresh parameters, float32, made at their `places`; None: on one device.

    They depend on the model and the seed; of the batch only the shapes matter.
    """

    def init() -> Any:
        row = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), batch)
        return model.init(jax.random.key(seed), row)

    return jax.jit(init, out_shardings=places)()


def shapes_of(model: Any, batch: dict) -> Any:
    """The shapes of the parameters of a model."""
    return jax.eval_shape(lambda: init_params(model, batch, 0))


def make_plan(
    params: Any,
    loss_terms: LossTerms,
    groups: Any,
    *,
    optim: Settings,
    warmup_steps: int,
    total_steps: int,
    placement: parallel.Rules,
    mesh: Mesh,
    carried: Any = None,
) -> Plan:
    """The plan for parameters, of which shapes are enough, and their `groups`, and for
    what the rows of a batch carry.

    Raises:
      UserError: as `make_schedule` and `make_optimizer`.
    """
    schedule = {
        "schedule": optim.schedule,
        "learning_rate": optim.learning_rate,
        "end_learning_rate": optim.end_learning_rate,
        "warmup_steps": warmup_steps,
        "total_steps": total_steps,
    }
    optimizer = make_optimizer(
        groups,
        schedule,
        b1=optim.b1,
        b2=optim.b2,
        epsilon=optim.epsilon,
        clip_norm=optim.clip_norm,
        adam=optim.adam,
    )
    state = parallel.plan_state(params, optimizer, placement, mesh, carried)

    def trained(params: Any, batch: dict, key: Any) -> Any:
        return loss_terms(stop_frozen(params, groups), batch, key)

    return Plan(
        mesh,
        groups,
        group_rates(groups, schedule),
        make_schedule(**schedule),
        optimizer,
        state,
        parallel.gathering(trained, state.params, mesh),
    )


# Compiled.


def compile_programs(job: Job, first: int) -> dict[int, Programs]:
    """Of each phase that updates from `first` on are in, by its number, the update; of
    the last one the evaluation as well.

    All of them before anything is trained, so that one that does not fit is told then.

    Raises:
      UserError: as `in_parts_that_fit` and `update`.
    """
    last = len(job.phases) - 1
    programs = {}
    for number in range(job.phase(first), last):
        feed = job.phases[number].feed
        programs[number] = in_parts_that_fit(
            job, feed, lambda n, feed=feed: Programs(update(job, feed, n), {}, n)
        )
    feed = job.phases[last].feed
    programs[last] = in_parts_that_fit(
        job,
        feed,
        lambda n: Programs(update(job, feed, n), evaluations(job, job.held_out, n), n),
    )
    return programs


def compile_evaluations(job: Job, held_out: dict[str, Evaluation]) -> Programs:
    """Evaluations alone."""
    return in_parts_that_fit(
        job,
        job.phases[-1].feed,
        lambda n: Programs(None, evaluations(job, held_out, n), n),
    )


def update(job: Job, feed: Feed, micro_batches: int) -> Any:
    """The update of a state, compiled.

    Raises:
      UserError: a mesh that pmap cannot have.
    """
    plan, mesh = job.plan, job.plan.mesh
    axis = parallel.mapped_axis(job.run.parallel, mesh)
    one = step.make_train_step(
        plan.loss_terms,
        plan.optimizer,
        plan.schedule,
        micro_batches=micro_batches,
        axis=axis,
        carries=plan.state.extra is not None,
    )
    batch = feed.planned(mesh, micro_batches)
    return parallel.compile_train_step(one, plan.state, batch, mesh, axis)


def evaluations(
    job: Job, held_out: dict[str, Evaluation], micro_batches: int
) -> dict[str, Any]:
    """The evaluations of a batch, compiled once for each name."""
    mesh = job.plan.mesh
    for name, one in held_out.items():
        if (name, micro_batches) not in job.compiled:
            job.compiled[name, micro_batches] = parallel.compile_eval_step(
                step.make_eval_step(one.evaluate, micro_batches),
                job.plan.state.params,
                one.feed.planned(mesh, micro_batches),
                mesh,
            )
    return {name: job.compiled[name, micro_batches] for name in held_out}


def in_parts_that_fit(
    job: Job, feed: Feed, compiled: Callable[[int], Programs]
) -> Programs:
    """`compiled(micro_batches)` for those of `run`, or with 0 for as few as fit, of the
    batches of a feed.

    Raises:
      UserError: not even one row at a time fits.
    """
    asked = job.run.micro_batches
    counts = [asked] if asked else micro_batch_counts(feed, job.plan.mesh)
    for micro_batches in counts:
        try:
            programs = compiled(micro_batches)
        except jax.errors.JaxRuntimeError as error:  # a TPU's compiler sees it first
            if not costs.is_out_of_memory(error) or micro_batches == counts[-1]:
                raise
            continue
        if asked:
            return programs
        needs = [costs.step_cost(program) for program in programs.named().values()]
        largest = max(needs, key=lambda cost: cost.total)
        if largest.total <= costs.USABLE_SHARE * costs.device_memory():
            print(f"micro-batches: {micro_batches}")
            return programs
    raise UserError(
        f"no number of micro-batches fits the device:\n{costs.describe(largest)}"
    )


def micro_batch_counts(feed: Feed, mesh: Mesh) -> list[int]:
    """Into how many parts a device's rows may be cut, the fewest first."""
    parts = parallel.batch_parts(mesh)
    rows = math.gcd(*(-(-rows // parts) for rows in jax.tree.leaves(feed.rows)))
    if feed.is_whole:
        return [2**power for power in range(rows.bit_length())]
    return [count for count in range(1, rows + 1) if rows % count == 0]


def dry_run(job: Job) -> str:
    """What the programs cost, in words; no state is made."""
    lines = []
    for number, programs in compile_programs(job, 0).items():
        first = job.phases[number].first
        since = f" from step {first} on" if len(job.phases) > 1 else ""
        for name, program in programs.named().items():
            since = since if name == "an update" else ""
            lines.append(f"{name}{since}: {costs.describe(costs.step_cost(program))}")
    return "\n".join(lines)


# Trained.


def execute(
    job: Job,
    workdir: Path,
    stop: loop.StopSignal,
    describe: Callable[[int], None],
    watch: Watch | None,
) -> Result:
    """Begins or resumes the run in `workdir`, to its end or until told to stop.

    `describe(first step)` tells of what is about to be trained. `watch` is called each
    time that numbers were written, and stands in for the progress bar. A run that is
    over is left as it is, and said to be done, without compiling anything. A checkpoint
    that is damaged is set aside for the one before it.
    """
    checkpoints = Checkpoints(workdir)
    first = checkpoints.latest_step() or 0
    writer = MetricsWriter(
        workdir,
        first,
        writes=parallel.is_first(),
        watch=watch and (lambda step: watch(step, job.total_steps)),
    )
    history = {at: job.criterion(values) for at, values in writer.evaluations.items()}
    if not loop.is_over(
        first,
        history,
        checkpoints,
        total_steps=job.total_steps,
        eval_every_steps=job.eval_every_steps,
        patience=job.patience,
    ):
        describe(first)
        programs = compile_programs(job, first)
        steps = [found.train_step for found in programs.values()]
        try:
            with costs.memory_explained(costs.REMEDIES, steps):
                first = train(job, programs, checkpoints, writer, stop)
        except DamagedCheckpoint as damage:
            writer.close()
            checkpoints.set_aside(damage)
            return execute(job, workdir, stop, describe, watch)
    else:
        print(f"step {first}: the run is done")
    writer.close()
    checkpoints.close()
    return result_of(workdir, first, stop.received)


def finished(
    workdir: Path, *, total_steps: int, eval_every_steps: int
) -> Result | None:
    """The result of a run that is over, which is said; None where there is work left.

    Without its job, and so without its data; of a run that is judged by its loss, and
    that no patience ends.
    """
    checkpoints = Checkpoints(workdir)
    step = checkpoints.latest_step() or 0
    evaluated = {row["step"]: row["eval/loss"] for row in evaluations_of(workdir)}
    over = loop.is_over(
        step,
        evaluated,
        checkpoints,
        total_steps=total_steps,
        eval_every_steps=eval_every_steps,
        patience=0,
    )
    checkpoints.close()
    if not over:
        return None
    print(f"step {step}: the run is done")
    return result_of(workdir, step, None)


def train(
    job: Job,
    programs: dict[int, Programs],
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    stop: loop.StopSignal,
) -> int:
    """Returns the step that was reached."""
    plan, run = job.plan, job.run
    if checkpoints.latest_step() is not None:
        state = checkpoints.restore(plan.state)
    else:
        state = parallel.start_state(job.fresh(), plan.optimizer, plan.state)
    first = int(state.step)
    last = programs[len(job.phases) - 1]
    state = loop.fit(
        state,
        device_batches(job, first, programs),
        train_step=lambda step: programs[job.phase(step)].train_step,
        evaluate=lambda params: job.measure(last, params, stop),
        checkpoints=checkpoints,
        writer=writer,
        key=jax.random.key(job.seed),
        stop=stop,
        total_steps=job.total_steps,
        work=job.work,
        log_every_steps=run.log_every_steps,
        eval_every_steps=job.eval_every_steps,
        save_every_minutes=run.save_every_minutes,
        criterion=job.criterion,
        patience=job.patience,
        weights_kept=job.weights_kept,
    )
    return int(state.step)


def device_batches(
    job: Job, first: int, programs: Mapping[int, Programs]
) -> Iterator[dict]:
    """The batches from step `first` on, which the threads that make them put on the
    devices as well; with 0 threads each is made when asked for.

    Whoever stops early just lets go of it: the interpreter's exit waits for the few
    batches under way, no longer.
    """
    import grain

    def placed(step: int) -> dict:
        number = job.phase(step)
        feed, parts = job.phases[number].feed, programs[number].micro_batches
        return feed.placed(job.batch(step), job.plan.mesh, parts)

    threads = job.run.data_threads
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    steps = grain.MapDataset.range(first, job.total_steps)
    return iter(steps.map(placed).to_iter_dataset(options))


# Recorded.


def result_of(workdir: Path, reached: int, received: int | None) -> Result:
    """The result as metrics.jsonl tells it."""
    evaluations = evaluations_of(workdir)
    last = evaluations[-1] if evaluations else {}
    metrics = {
        name.removeprefix("eval/"): value
        for name, value in last.items()
        if name.startswith("eval/")
    }
    return Result(workdir, reached, metrics, received)


def evaluations_of(workdir: Path) -> list[dict]:
    """The rows of metrics.jsonl with a held-out evaluation."""
    rows = read_metrics(workdir / "metrics.jsonl")
    return [row for row in rows if "eval/loss" in row]


def record(workdir: Path, plan: Plan, learning_rate: float) -> None:
    """Writes what the optimizer does to each parameter, versions and devices."""
    table = group_table(plan.state.params, plan.groups, learning_rate)
    (workdir / "parameters.txt").write_text(table + "\n")
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    environment = {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "devices": [device.device_kind for device in jax.devices()],
        "platform": platform.platform(),
        "git_commit": commit.stdout.strip() or None,
    }
    target = workdir / "environment.json"
    target.write_text(json.dumps(environment, indent=2) + "\n")


def stopped(result: Result) -> str:
    """What is told of a run that a signal ended."""
    assert result.signal is not None
    name = signal.Signals(result.signal).name
    return f"stopped by {name} after step {result.step}: the same line again resumes"
