"""Pre-trains a model: config -> corpus -> tokens -> batches -> objective -> steps.

    python train.py --config=configs/bert_mini.py [--workdir=runs/bert_mini]
        [--config.optim.learning_rate=3e-4 ...]
        [--show_config | --show_batch | --dry_run] [--distributed]

The same line again resumes the run in `--workdir`, or says that it is done.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

import configs
import errors
import models
from data import cache, draws, shards, windows
from data.shards import Shards
from data.tokenizers import Tokenizer
from data.workers import cores, process_workers
from errors import UserError
from pretraining import way_of
from pretraining.corpus import prepare
from pretraining.record import Line
from training import checkpoints, costs, loop, parallel, runs, step
from training.lock import one_writer
from training.metrics import draw_curves, read_metrics
from training.optimizers import (
    assign_groups,
    group_summary,
    parameter_sizes,
    parse_groups,
)
from training.runs import Feed, Job, Programs, Result


def main(argv: list[str]) -> int:
    flags = configs.parse(
        argv,
        {
            "show_batch": "Prints decoded examples and exits.",
            "dry_run": "Compiles the steps, prints what they cost and exits.",
            "distributed": parallel.DISTRIBUTED_HELP,
        },
        {},
        kind="pretraining",
    )
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


def train(config: ConfigDict, workdir: Path) -> Result:
    """Starts or resumes the run in `workdir`, and tells of it.

    Raises:
      UserError: settings, data or a run folder that do not fit each other.
    """
    configs.check(config, workdir)
    if (workdir / "data.json").exists():
        draws.check_version(json.loads((workdir / "data.json").read_text()), workdir)
    with costs.memory_explained(costs.REMEDIES):
        mesh = make_mesh(config)
        data = open_data(config, mesh)
        job = make_job(config, data, mesh)
        line = way_of(config.objective.name).line(data.train, data.tokenizer)
        with one_writer(workdir), loop.StopSignal() as stop:
            if parallel.is_first():
                configs.write_run_folder(workdir, config)
                record_origin(workdir, data)
                runs.record(workdir, job.plan, config.optim.learning_rate)
            result = runs.execute(
                job,
                workdir,
                stop,
                lambda first: describe(config, job, data, first, line),
            )
            if parallel.is_first():
                report(config, result, line)
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
    return windows.describe(data.batches[0], data.tokenizer, rows=4)


# Corpus -> tokens -> batches.


class Data(NamedTuple):
    """The corpus of a config as tokens in a folder, and its training and held-out
    batches, of each the rows that this process makes."""

    tokenizer: Tokenizer
    folder: Path
    train: Shards
    heldout: Shards
    batches: Any
    heldout_batches: Any


def open_data(config: ConfigDict, mesh: Mesh) -> Data:
    """Prepares the data where it is missing.

    Raises:
      UserError: data that does not fit the model's tables, or the devices; see
        `prepare`.
    """
    settings, objective = config.data, config.objective
    micro_batches = max(1, config.run.micro_batches)
    parallel.check_batch_size(settings.batch_size, mesh, micro_batches)
    with process_workers(cores()) as workers:
        tokenizer, folder = parallel.first_alone(lambda: prepare(config, workers))
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, but model.vocab_size="
            f"{config.model.vocab_size}: raise it, or lower data.tokenizer.vocab_size"
        )
    train, heldout = (
        shards.open_shards(folder, split) for split in ("train", "heldout")
    )
    examples_of = way_of(objective.name).examples(
        objective, tokenizer, settings.sequence_length
    )
    index, count = parallel.host_part(mesh)
    return Data(
        tokenizer,
        folder,
        train,
        heldout,
        windows.training_batches(
            examples_of(train),
            batch_size=settings.batch_size,
            seed=config.seed,
            host_index=index,
            host_count=count,
        ),
        windows.evaluation_batches(
            examples_of(heldout),
            batch_size=settings.batch_size,
            most=-(-settings.heldout_tokens // settings.sequence_length),
            host_index=index,
            host_count=count,
        ),
    )


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
    settings, optim, run = config.data, config.optim, config.run
    way, family = way_of(config.objective.name), models.family_of(config.model)
    model = models.build(config.model, run.remat, run.fused_attention)
    batch = data.batches[0]
    params = runs.shapes_of(model, batch)
    plan = runs.make_plan(
        params,
        way.loss_terms(model, run.logit_chunks),
        assign_groups(
            params,
            parse_groups(optim.groups),
            weight_decay=optim.weight_decay,
            no_decay=optim.no_decay,
        ),
        optim=optim,
        warmup_steps=optim.warmup_steps,
        total_steps=optim.total_steps,
        placement=family.placement,
        mesh=mesh,
    )
    length = settings.sequence_length
    forward = family.forward_flops(
        config.model,
        parameter_sizes(params),
        length,
        way.predicted(config.objective, length),
    )
    held_out = Feed(data.heldout_batches, settings.batch_size, is_whole=False)
    return Job(
        run=run,
        seed=config.seed,
        plan=plan,
        train=Feed(data.batches, settings.batch_size, is_whole=False),
        held_out=held_out,
        total_steps=optim.total_steps,
        eval_every_steps=optim.eval_every_steps,
        evaluate=lambda params, part: (plan.loss_terms(params, part, None), ()),
        measure=lambda programs, params, stop: measure(
            config, data, held_out, mesh, programs, params, stop
        ),
        criterion=lambda values: values["loss"],
        patience=0,
        fresh=lambda: fresh_params(config, model, batch, plan),
        flops=3 * forward * settings.batch_size * length,  # backward: two forward ones
    )


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
    held_out: Feed,
    mesh: Mesh,
    programs: Programs,
    params: Any,
    stop: loop.StopSignal,
) -> dict[str, float] | None:
    """The held-out examples once; None when told to stop."""
    terms = []
    for batch in held_out.batches:
        if stop.received:
            return None
        placed = held_out.placed(batch, mesh, programs.micro_batches)
        terms.append(programs.eval_step(params, placed)[0])
    totals = loop.sum_terms(terms)
    means = step.term_means(totals)
    values = {name: float(value) for name, value in means.items()}
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


def describe(config: ConfigDict, job: Job, data: Data, first: int, line: Line) -> None:
    """Prints what is about to be trained, on what, and the line to beat."""
    count = models.count(job.plan.state.params, config.model)
    groups = group_summary(
        job.plan.state.params, job.plan.groups, config.optim.learning_rate
    )
    print(
        f"{config.name}: {count:,} parameters on "
        f"{parallel.describe(job.plan.mesh)}; {data.train.num_tokens:,} training and "
        f"{data.heldout.num_tokens:,} held-out tokens; in the first batch "
        f"{windows.predicted(data.batches[0])}\n"
        f"{groups}\n(each parameter: parameters.txt in the run folder)\n"
        f"line to beat: {line.name} {line.loss:.3f} nats; {job.told(first)}",
        flush=True,
    )


def report(config: ConfigDict, result: Result, line: Line) -> None:
    """Draws the curves, prints best and last values and where everything is."""
    workdir = result.folder
    draw_curves(
        read_metrics(workdir / "metrics.jsonl"),
        workdir / "curves.png",
        line_to_beat=line.loss,
        line_name=line.name,
    )
    evaluations = runs.evaluations_of(workdir)
    if evaluations:
        # NaN is not less than anything, nor is anything less than NaN.
        best = min(
            evaluations, key=lambda row: np.nan_to_num(row["eval/loss"], nan=np.inf)
        )
        last = evaluations[-1]
        print(
            f"held-out loss: last {last['eval/loss']:.4f} (step {last['step']}), best "
            f"{best['eval/loss']:.4f} (step {best['step']}); {line.name} "
            f"{line.loss:.3f}"
        )
    print(f"run folder: {workdir} (checkpoints/, best/, metrics.jsonl, curves.png)")
    if result.signal is not None:
        print(runs.stopped(result))
        return
    command = [*way_of(config.objective.name).commands, "embed"][0]
    print(f"use it: python predict.py {command} --workdir={workdir} --help")


if __name__ == "__main__":
    errors.run(main)
