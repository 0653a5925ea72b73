"""Pre-trains a model: config -> corpus -> tokens -> batches -> objective -> steps.

    python train.py --config=configs/bert_mini.py [--workdir=runs/bert_mini]
        [--config.optim.learning_rate=3e-4 ...]
        [--show_config | --show_batch | --dry_run] [--distributed]

The same line again resumes the run in `--workdir`, or says that it is done.
"""

import configs
import errors

if __name__ == "__main__":  # mistakes in flags and --help need no jax
    errors.check(lambda argv: configs.parse(argv, "train.py"))

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

import models
from data import cache, draws, shards, spelling, windows
from data.shards import Shards
from data.tokenizers import Tokenizer
from data.windows import Examples
from data.workers import cores, process_workers
from errors import UserError
from formats.transformers import misfit
from pretraining import way_of
from pretraining.corpus import prepare
from pretraining.course import Phase, course_of, describe_course, weights_kept
from pretraining.record import HeldOut, Line
from training import checkpoints, costs, loop, parallel, runs, step
from training.lock import one_writer
from training.metrics import Watch, draw_curves, read_metrics
from training.optimizers import (
    assign_groups,
    group_summary,
    parameter_sizes,
    parse_groups,
)
from training.runs import Evaluation, Feed, Job, Programs, Result

# Of the first line to beat; whoever stays above it has learnt frequencies alone.
FREQUENCIES_SHARE = 0.98


def main(argv: list[str]) -> int:
    flags = configs.parse(argv, "train.py")
    config = flags.config
    if flags.distributed:
        parallel.join_processes()
    if flags.show_batch:
        print(show_batch(config))
    elif flags.dry_run:
        print(dry_run(config))
    else:
        return train(config, Path(flags.workdir or f"runs/{config.name}")).exit_status
    return 0


def train(config: ConfigDict, workdir: Path, watch: Watch | None = None) -> Result:
    """Starts or resumes the run in `workdir`, and tells of it; `watch`: `runs.execute`.

    Raises:
      UserError: settings, data or a run folder that do not fit each other.
    """
    configs.check(config, workdir)
    errors.check_folder(workdir, "--workdir")
    if (workdir / "data.json").exists():
        draws.check_version(json.loads((workdir / "data.json").read_text()), workdir)
    if done := finished(config, workdir):
        return done
    with costs.memory_explained(costs.REMEDIES):
        mesh = make_mesh(config)
        data = open_data(config, mesh)
        job = make_job(config, data, mesh)
        with one_writer(workdir), loop.StopSignal() as stop:
            lines: tuple[Line, ...] = ()
            if parallel.is_first():
                configs.write_run_folder(workdir, config)
                record_origin(workdir, data)
                runs.record(workdir, job.plan, config.optim.learning_rate)
                lines = lines_to_beat(config, data, workdir)
            result = runs.execute(
                job,
                workdir,
                stop,
                lambda first: describe(config, job, data, first, lines),
                watch,
            )
            if parallel.is_first():
                report(config, result, lines)
    return result


def finished(config: ConfigDict, workdir: Path) -> Result | None:
    """The result of a run that is over, told again without looking at its text."""
    lines = workdir / "lines.json"
    if not (lines.exists() and checkpoints.has_checkpoint(workdir)):
        return None
    course = course_of(config)
    with one_writer(workdir):
        result = runs.finished(
            workdir,
            total_steps=course.total_steps,
            eval_every_steps=course.eval_every_steps,
        )
        if result and parallel.is_first():
            report(config, result, read_lines(lines))
    return result


def dry_run(config: ConfigDict) -> str:
    """Compiles the steps without making a state; what they cost, in words."""
    configs.check(config)
    with costs.memory_explained(costs.REMEDIES):
        mesh = make_mesh(config)
        job = make_job(config, open_data(config, mesh), mesh)
        count = models.count(job.plan.state.params, config.model)
        cost = runs.dry_run(job)
    return f"{config.name}: {count:,} parameters on {parallel.describe(mesh)}\n{cost}"


def show_batch(config: ConfigDict) -> str:
    """The first rows of the first batch, decoded."""
    configs.check(config)
    data = open_data(config, parallel.make_mesh(data=1))
    return windows.describe(data.batches[0][0], data.tokenizer, rows=4)


# Corpus -> tokens -> batches.


class Data(NamedTuple):
    """The corpus of a config as tokens in a folder, its training examples and batches,
    of each phase, and held-out ones, of the last phase's shape: the rows that this
    process makes; see `heldout_batches`."""

    tokenizer: Tokenizer
    folder: Path
    train: Shards
    heldout: Shards
    examples: tuple[Examples | Mapping[str, Examples], ...]
    batches: tuple[Any, ...]
    heldout_batches: dict[str, Any]


def open_data(config: ConfigDict, mesh: Mesh) -> Data:
    """Prepares the data where it is missing.

    Raises:
      UserError: data that does not fit the model's tables, or the devices; see
        `prepare`.
    """
    phases, way = course_of(config).phases, way_of(config.objective.name)
    for phase in phases:
        check_batch_size(phase, mesh)
    with process_workers(cores()) as workers:
        tokenizer, folder = parallel.first_alone(lambda: prepare(config, workers))
    inputs = models.family_of(config.model).inputs
    tokenizer = spelling.opened(tokenizer, inputs, config.model)
    reads = spelling.reader(tokenizer, inputs, config.model)
    if tokenizer.vocab_size > config.model.vocab_size and "tokens" in inputs:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, but model.vocab_size="
            f"{config.model.vocab_size}: raise it, or lower data.tokenizer.vocab_size"
        )
    opened = {split: shards.open_shards(folder, split) for split in shards.SPLITS}
    index, count = parallel.host_part(mesh)

    @functools.cache  # phases whose batch sizes alone differ share them
    def examples(
        objective: FrozenConfigDict, length: int
    ) -> Examples | Mapping[str, Examples]:
        return way.examples(objective, tokenizer, length)(opened["train"])

    def of_phase(phase: Phase) -> Examples | Mapping[str, Examples]:
        objective = FrozenConfigDict(phase.config.objective)
        return examples(objective, phase.config.data.sequence_length)

    return Data(
        tokenizer,
        folder,
        opened["train"],
        opened["heldout"],
        tuple(map(of_phase, phases)),
        tuple(
            windows.training_batches(
                of_phase(phase),
                batch_size=rows_of(phase.config),
                seed=phase.seed,
                visits_before=phase.visits,
                host_index=index,
                host_count=count,
                in_lanes=way.carry(config.objective) is not None,
            ).map(reads)
            for phase in phases
        ),
        heldout_batches(phases[-1].config, tokenizer, opened["heldout"], index, count),
    )


def words_of_updates(config: ConfigDict, data: Data) -> list[float]:
    """Words of the text that an update of each phase reads, on average: all examples
    together are all of them."""
    found = []
    for phase, examples in zip(course_of(config).phases, data.examples, strict=True):
        shares = jax.tree.map(
            lambda rows, own: rows / len(own), rows_of(phase.config), examples
        )
        found.append(data.train.num_words * sum(jax.tree.leaves(shares)))
    return found


def rows_of(config: ConfigDict) -> windows.Rows:
    """Of a batch of a config, or of each batch in it."""
    way = way_of(config.objective.name)
    return way.rows(config.objective, config.data.batch_size)


def heldout_batches(
    config: ConfigDict, tokenizer: Tokenizer, heldout: Shards, index: int, count: int
) -> dict[str, Any]:
    """A host's rows of the held-out text, in the shape of the config's: those that the
    loss is of, and those of each measure of the way to pre-train, by its name."""
    settings, way = config.data, way_of(config.objective.name)
    length = settings.sequence_length
    inputs = models.family_of(config.model).inputs
    reads = spelling.reader(tokenizer, inputs, config.model)
    examples_of = way.examples(config.objective, tokenizer, length)
    asked = {"loss": (examples_of, rows_of(config))}
    for name, measure in way.measures.items():
        asked[name] = (measure.examples(tokenizer, length), settings.batch_size)
    return {
        name: windows.evaluation_batches(
            examples_of(heldout),
            batch_size=rows,
            most=-(-settings.heldout_tokens // length),
            host_index=index,
            host_count=count,
        ).map(reads)
        for name, (examples_of, rows) in asked.items()
    }


def read_lines(path: Path) -> tuple[Line, ...]:
    return tuple(Line(**line) for line in json.loads(path.read_text()))


def lines_to_beat(config: ConfigDict, data: Data, workdir: Path) -> tuple[Line, ...]:
    """What models that only count come to on the held-out text; kept with the run."""
    target = workdir / "lines.json"
    if target.exists():
        return read_lines(target)
    last = course_of(config).phases[-1].config
    measured = heldout_batches(last, data.tokenizer, data.heldout, 0, 1)
    lines = way_of(config.objective.name).lines(
        config.objective,
        data.tokenizer,
        data.train,
        HeldOut(data.heldout, measured.pop("loss"), measured, config.model.vocab_size),
    )
    shown = [line._asdict() for line in lines]
    target.write_text(json.dumps(shown, indent=2) + "\n")
    return lines


def check_batch_size(phase: Phase, mesh: Mesh) -> None:
    """Raises UserError unless the devices can share the batches of a phase."""
    micro_batches = max(1, phase.config.run.micro_batches)
    try:
        parallel.check_batch_size(rows_of(phase.config), mesh, micro_batches)
    except UserError as error:
        if not phase.first:
            raise
        message = f"data.phases, from update {phase.first:,} on: {error}"
        raise UserError(message) from error


# Model + objective -> steps.


def make_mesh(config: ConfigDict) -> Mesh:
    """The devices of `run.mesh`, which can cut the model of the config."""
    start_jax(config)
    mesh = parallel.make_mesh(**config.run.mesh)
    models.check_cuts(config.model, mesh.shape)
    return mesh


def start_jax(config: ConfigDict) -> None:
    runs.start_jax(config.model.precision, cache.cache_folder() / "xla")


def make_job(config: ConfigDict, data: Data, mesh: Mesh) -> Job:
    """What the run trains, on what, and how it is judged."""
    course, optim, run = course_of(config), config.optim, config.run
    way, family = way_of(config.objective.name), models.family_of(config.model)
    model = models.build(config.model, run.remat, run.fused_attention)
    # Of several batches in one any will do: the weights are the same.
    batch = next(iter(windows.by_name(data.batches[0][0]).values()))
    params, carry = runs.shapes_of(model, batch), way.carry(config.objective)
    plan = runs.make_plan(
        params,
        (carry or way).loss_terms(config.objective, model, run.logit_chunks),
        assign_groups(
            params,
            parse_groups(optim.groups),
            weight_decay=optim.weight_decay,
            no_decay=optim.no_decay,
        ),
        optim=optim,
        warmup_steps=course.warmup_steps,
        total_steps=course.total_steps,
        placement=family.placement,
        mesh=mesh,
        carried=carry and carry.shapes(config.model, config.data.batch_size),
    )

    sizes = parameter_sizes(params)

    def feed(rows: windows.Rows, batches: Any) -> Feed:
        return Feed(batches, rows, is_whole=False)

    def evaluation(name: str, rows: windows.Rows, terms: Any) -> Evaluation:
        return Evaluation(
            feed(rows, data.heldout_batches[name]),
            lambda params, part: (terms(params, part, None), ()),
        )

    last = course.phases[-1].config
    asked = {"loss": (way.loss_terms, rows_of(last))}
    for name, measured in way.measures.items():
        asked[name] = (measured.loss_terms, last.data.batch_size)
    held_out = {}
    for name, (loss_terms, rows) in asked.items():
        terms = loss_terms(config.objective, model, run.logit_chunks)
        terms = parallel.gathering(terms, plan.state.params, mesh)
        held_out[name] = evaluation(name, rows, terms)
    return Job(
        run=run,
        seed=config.seed,
        plan=plan,
        phases=tuple(
            runs.Phase(
                phase.first,
                feed(rows_of(phase.config), batches),
                flops_of_an_update(phase.config, sizes),
            )
            for phase, batches in zip(course.phases, data.batches, strict=True)
        ),
        held_out=held_out,
        total_steps=course.total_steps,
        eval_every_steps=course.eval_every_steps,
        measure=lambda programs, params, stop: measure(
            config, data, held_out, mesh, programs, params, stop
        ),
        criterion=lambda values: values["loss"],
        patience=0,
        weights_kept=weights_kept(
            course, lambda: words_of_updates(config, data), run.keep_weights_at
        ),
        fresh=lambda: fresh_params(config, model, batch, plan),
    )


def flops_of_an_update(config: ConfigDict, sizes: Mapping[str, int]) -> float:
    """Of a model with parameters of these sizes; the backward pass costs two forward
    ones."""
    way, family = way_of(config.objective.name), models.family_of(config.model)
    length = config.data.sequence_length

    def forward(rows: int, predicted: int) -> float:
        of_token = family.forward_flops(config.model, sizes, length, predicted)
        return of_token * rows * length

    predicted = way.predicted(config.objective, length)
    found = jax.tree.map(forward, rows_of(config), predicted)
    return 3 * sum(jax.tree.leaves(found))


def fresh_params(
    config: ConfigDict, model: models.Model, batch: dict, plan: runs.Plan
) -> Any:
    """Fresh parameters, with the weights of `init_from` where the run names one."""
    planned = plan.state.params
    params = runs.init_params(model, batch, config.seed, parallel.places(planned))
    if not config.init_from:
        return params
    heads = models.family_of(config.model).pretraining_only
    source, at = checkpoints.load_params(Path(config.init_from))
    params, taken = checkpoints.take_weights(
        params,
        models.fill_vocabulary(source, config.model),
        config.init_from,
        may_be_new=(heads,),
        may_be_left=(heads, r"head/.*"),
    )
    print(f"weights of {config.init_from} (step {at}):\n{taken}")
    return parallel.place(params, planned)


def measure(
    config: ConfigDict,
    data: Data,
    held_out: dict[str, Evaluation],
    mesh: Mesh,
    programs: Programs,
    params: Any,
    stop: loop.StopSignal,
) -> dict[str, float] | None:
    """The held-out examples once; None when told to stop."""
    values: dict[str, float] = {}
    for name, one in held_out.items():
        terms = []
        for batch in one.feed.batches:
            if stop.received:
                return None
            placed = one.feed.placed(batch, mesh, programs.micro_batches)
            terms.append(programs.eval_steps[name](params, placed)[0])
        means = step.term_means(loop.sum_terms(terms))
        found = {name: float(value) for name, value in means.items()}
        values = found | values  # the loss is that of the first
    return values | way_of(config.objective.name).evaluation(values, data.heldout)


# Recording, reporting.


def record_origin(workdir: Path, data: Data) -> None:
    """Keeps with the run what it was made from: its tokenizer, the shards' key, and
    the version of the order of examples.

    Raises:
      UserError: the run was begun on other data; the differences are named.
    """
    target = workdir / "data.json"
    made_of = shards.read_key(data.folder) | {"draws_version": draws.VERSION}
    if target.exists():
        shards.check_same_key(
            json.loads(target.read_text()), made_of, f"the run in {workdir} was"
        )
        return
    data.tokenizer.save(workdir)
    target.write_text(json.dumps(made_of, indent=2) + "\n")


def describe(
    config: ConfigDict, job: Job, data: Data, first: int, lines: tuple[Line, ...]
) -> None:
    """Prints what is about to be trained, on what, and the lines to beat."""
    count = models.count(job.plan.state.params, config.model)
    if first < job.total_steps:
        for name, batch in windows.by_name(job.batch(first)).items():
            of = f"{name} " if name else ""
            shown = windows.describe(batch, data.tokenizer, rows=1)
            print(f"update {first}, {of}{windows.glimpse(shown)}")
            print(f"in its {of}batch {windows.predicted(batch)}")
        if way_of(config.objective.name).carry(config.objective):
            print("rows go on where the batch before ended; evaluations begin anew")
    groups = group_summary(
        job.plan.state.params, job.plan.groups, config.optim.learning_rate
    )
    kept = (
        f"weights after update {at:,}: kept/{name}\n"
        for at, names in sorted(job.weights_kept.items())
        for name in names
    )
    told = (f"\n  {line.metric} {line.value:.3f}: {line.name}" for line in lines)
    print(
        f"{config.name}: {count:,} parameters on "
        f"{parallel.describe(job.plan.mesh)}; {data.train.num_tokens:,} training and "
        f"{data.heldout.num_tokens:,} held-out tokens\n"
        f"{groups}\n(each parameter: parameters.txt in the run folder)\n"
        f"{describe_course(course_of(config))}\n{''.join(kept)}"
        f"lines to beat, by counting alone, on the held-out text:{''.join(told)}\n"
        f"{job.told(first)}",
        flush=True,
    )
    if reason := misfit(config.model):
        print(f"remark: convert.py cannot export this run: {reason}")


def report(config: ConfigDict, result: Result, lines: tuple[Line, ...]) -> None:
    """Draws the curves, prints best and last values and where everything is."""
    workdir = result.folder
    draw_curves(read_metrics(workdir / "metrics.jsonl"), workdir / "curves.png", lines)
    evaluations = runs.evaluations_of(workdir)
    if evaluations:
        # NaN is not less than anything, nor is anything less than NaN.
        best = min(
            evaluations, key=lambda row: np.nan_to_num(row["eval/loss"], nan=np.inf)
        )
        last = evaluations[-1]
        print(
            f"held-out loss: last {last['eval/loss']:.4f} (step {last['step']}), best "
            f"{best['eval/loss']:.4f} (step {best['step']})"
        )
        # An evaluation of an older version may lack a measure.
        lines = tuple(line for line in lines if f"eval/{line.metric}" in last)
        for line in lines:
            found = last[f"eval/{line.metric}"]
            print(f"  {line.metric} {found:.3f}; {line.name} {line.value:.3f}")
    print(f"run folder: {workdir} (checkpoints/, best/, metrics.jsonl, curves.png)")
    if result.signal is not None:
        print(runs.stopped(result))
        return
    if (
        evaluations
        and lines
        and (
            evaluations[-1][f"eval/{lines[0].metric}"]
            > FREQUENCIES_SHARE * lines[0].value
        )
    ):
        print(
            f"the run knows no more than {lines[0].name} ({lines[0].metric}): usual "
            "causes are too few steps (optim.total_steps), a rate too low or too high "
            "(optim.learning_rate), or too little text"
        )
    command = [*way_of(config.objective.name).commands, "embed"][0]
    print(f"use it: python predict.py {command} --workdir={workdir} --help")


if __name__ == "__main__":
    errors.run(main)
