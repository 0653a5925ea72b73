"""Fine-tunes a pre-trained model on a labelled task.

    python finetune.py --config=configs/finetune/topic.py
        --config.init_from=runs/bert_mini --config.data.train=topics.tsv
        [--workdir=runs/topic] [--config.optim.learning_rate=1e-4 ...]
        [--seeds=5 | --show_batch] [--distributed]

The same line again resumes the run in `--workdir`, or says that it is done; `--seeds=5`
makes five runs there and summarises them. Without `init_from` `config.model` is trained
from scratch with a tokenizer learnt from the texts; `--config.load_weights=False` is
the model of `init_from` from scratch, with its tokenizer.
"""

import dataclasses
import hashlib
import json
import signal
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

import configs
import errors
import models
import train
from data import labelled, packing, predictions, tasks, tokenizers
from data.labelled import Record
from data.packing import Batch, RowShape
from data.pretraining import Masking
from data.tasks import Examples, Task
from data.tokenizers import Tokenizer
from errors import UserError
from models import heads
from models.heads import FineTuned
from objectives.causal_lm import causal_lm
from objectives.classification import classification
from objectives.masked_lm import masked_lm
from objectives.regression import regression
from objectives.span import span
from train import device_batches, record_environment, start_jax
from training import costs, loop, parallel, step
from training.checkpoints import Checkpoints, has_checkpoint, load_params, take_weights
from training.lock import one_writer
from training.metrics import MetricsWriter, draw_curves, read_metrics
from training.optimizers import (
    Groups,
    group_table,
    layerwise_groups,
    make_schedule,
    parameter_sizes,
    stop_frozen,
)
from training.step import LossTerms, Term
from training.task_metrics import METRICS, is_constant, metrics_of

EVALUATION_SEED = 0
DROPOUTS = ("embedding_dropout", "attention_dropout", "residual_dropout")
MEMORY_REMEDIES = (
    "run.micro_batches doubled halves the activations; data.max_length and "
    "data.batch_size change the results"
)


def main(argv: list[str]) -> int:
    flags = configs.parse(
        argv,
        {
            "show_batch": "Prints decoded examples and exits.",
            "distributed": parallel.DISTRIBUTED_HELP,
        },
        {"seeds": "Runs so many seeds, in WORKDIR/seed_0 and on, and summarises them."},
    )
    if flags.distributed:
        parallel.join_processes()
    if flags.config.init_from == "None":
        flags.config.init_from = ""
    workdir = Path(flags.workdir or f"runs/{flags.config.name}")
    if flags.show_batch:
        return show_batch(flags.config)
    with costs.memory_explained(MEMORY_REMEDIES):
        if flags.seeds:
            return finetune_seeds(flags.config, workdir, flags.seeds)
        return finetune(flags.config, workdir)


def finetune(config: ConfigDict, workdir: Path) -> int:
    """Starts or resumes the run in `workdir`; returns the exit status."""
    check_settings(config)
    start_jax(config.run.precision)
    with one_writer(workdir):
        return finetune_alone(config, workdir)


def finetune_alone(config: ConfigDict, workdir: Path) -> int:
    mesh = parallel.make_mesh(**config.run.mesh)
    task = make_task(config)
    splits, labels = parallel.first_alone(lambda: read_splits(config, task))
    origin = read_origin(config, task, splits["train"], workdir)
    # The run folder holds the model as it is, whatever run it came from.
    config = ConfigDict(config.to_dict() | {"model": origin.model})
    configs.check_run_folder(workdir, config)
    models.check_cuts(origin.model, mesh.shape)
    data = encode_splits(config, task, origin, splits, labels, mesh)
    total_steps = max(1, round(config.optim.epochs * data.steps_per_epoch))

    model = heads.build(
        origin.model,
        config.run.precision,
        kind=task.kind,
        num_labels=len(data.labels),
        head_dropout=config.head.dropout,
        auxiliary_lm=config.objective.lm_weight > 0,
    )
    batches = data.batches("train", config.seed)
    shapes = jax.eval_shape(lambda: init_params(model, batches[0], config.seed))
    groups = make_groups(config.optim, shapes)
    schedule = schedule_settings(config.optim, total_steps)
    optimizer = train.build_optimizer(shapes, config.optim, groups, schedule)
    plan = parallel.plan_state(shapes, optimizer, models.PLACEMENT, mesh)
    checkpoints = Checkpoints(workdir)
    if checkpoints.latest_step() is not None:
        state = checkpoints.restore(plan)
    else:
        params = start_params(
            config, task, origin, data.labels, model, batches[0], plan.params
        )
        state = parallel.start_state(params, optimizer, plan)

    if parallel.is_first():
        record_run(config, workdir, task, origin, data)
    table = record_groups(workdir, plan.params, groups, schedule, config.optim)
    first, floor = int(state.step), uninformed_loss(data.examples["train"])
    if first < total_steps:
        print(table)
        describe_start(config, state, data, first, total_steps, floor)

    terms = parallel.gathering(
        make_loss_terms(model, config.objective.lm_weight, groups), plan.params, mesh
    )
    compiled = compile_train_step(
        config, terms, optimizer, schedule, plan, batches[0], mesh
    )
    writer = MetricsWriter(workdir, first, writes=parallel.is_first())
    with (
        loop.StopSignal() as stop,
        costs.memory_explained(MEMORY_REMEDIES, compiled),
    ):
        evaluate = make_evaluate(config, task, data, model, terms, mesh, stop)

        def evaluate_held_out(params: Any) -> dict[str, float] | None:
            result = evaluate(params, "eval")
            return None if result is None else result[0]

        state = loop.fit(
            state,
            device_batches(
                batches,
                first,
                config.run.data_threads,
                data.shapes["train"].rows,
                mesh,
            ),
            train_step=compiled,
            evaluate=evaluate_held_out,
            checkpoints=checkpoints,
            writer=writer,
            key=jax.random.key(config.seed),
            stop=stop,
            total_steps=total_steps,
            throughput=throughput(
                origin.model, data.shapes["train"], plan.params, mesh
            ),
            log_every_steps=config.run.log_every_steps,
            eval_every_steps=max(
                1, round(config.optim.eval_every_epochs * data.steps_per_epoch)
            ),
            save_every_minutes=config.run.save_every_minutes,
            criterion=lambda values: -values[config.task.metric],
            patience=config.optim.patience,
        )
        writer.close()
        checkpoints.close()
        draw(workdir, floor)
        if stop.received is None:
            if int(state.step) < total_steps:
                print(f"no better evaluation in {config.optim.patience}: stopped early")
            write_results(workdir, task, data, plan.params, evaluate)
            parallel.wait_for_all()
    if stop.received is not None:
        name = signal.Signals(stop.received).name
        print(f"stopped by {name} after step {int(state.step)}: the same line resumes")
        return 128 + stop.received
    return 0


def compile_train_step(
    config: ConfigDict,
    terms: LossTerms,
    optimizer: optax.GradientTransformation,
    schedule: dict[str, Any],
    plan: step.TrainState,
    batch: Batch,
    mesh: Mesh,
) -> Any:
    """The update as a compiled program, for states as planned and such batches."""
    axis = parallel.mapped_axis(config.run.parallel, mesh)
    train_step = step.make_train_step(
        terms,
        optimizer,
        make_schedule(**schedule),
        micro_batches=config.run.micro_batches,
        axis=axis,
    )
    planned = parallel.plan_batch(batch, len(batch["tokens"]), mesh)
    return parallel.compile_train_step(train_step, plan, planned, mesh, axis)


def throughput(
    model: dict[str, Any], shape: RowShape, params: Any, mesh: Mesh
) -> Callable[[float, dict], dict[str, float]]:
    """The measures of speed; of FLOPs those of the base, as if nothing were frozen."""
    sizes = parameter_sizes(params).items()
    sizes = {path: size for path, size in sizes if path.startswith("layer_")}
    tokens = shape.rows * shape.length
    forward = costs.forward_flops(model, sizes, shape.length, 0)
    return costs.throughput(tokens, 3 * forward * tokens, mesh.size)


def finetune_seeds(config: ConfigDict, workdir: Path, count: int) -> int:
    """Runs the seeds from `config.seed` on; writes and prints their summary.

    Small data sets differ much from seed to seed, and some runs fail: they predict one
    thing for all (BERT, section 5.1; Mosbach et al. 2021).
    """
    results = {}
    for seed in range(config.seed, config.seed + count):
        own = ConfigDict(config.to_dict() | {"seed": seed})
        folder = workdir / f"seed_{seed}"
        print(f"\nseed {seed}: {folder}")
        status = finetune(own, folder)
        if status:
            return status
        results[seed] = json.loads((folder / "results.json").read_text())
    summary = summarize_seeds(results)
    if parallel.is_first():
        target = workdir / "seeds.json"
        target.write_text(json.dumps(summary, indent=2) + "\n")
    print(f"\n{config.name}, {count} seeds ({workdir / 'seeds.json'})")
    for split, metrics in summary["splits"].items():
        for name, values in metrics.items():
            print(
                f"  {split} {name}: median {values['median']:.4g}, mean "
                f"{values['mean']:.4g}, standard deviation "
                f"{values['standard_deviation']:.2g}"
            )
    failed = ", ".join(map(str, summary["failed_seeds"]))
    print(f"  failed (one prediction for all): {failed or 'none'}")
    return 0


def summarize_seeds(results: dict[int, dict]) -> dict[str, Any]:
    """Median, mean and sample standard deviation of each metric over the seeds."""
    first = next(iter(results.values()))
    summary: dict[str, Any] = {
        "failed_seeds": [s for s, result in results.items() if result["failed"]],
        "splits": {},
    }
    for split, metrics in first["splits"].items():
        summary["splits"][split] = {}
        for name in metrics:
            values = [result["splits"][split][name] for result in results.values()]
            summary["splits"][split][name] = {
                "median": statistics.median(values),
                "mean": statistics.fmean(values),
                "standard_deviation": (
                    statistics.stdev(values) if len(values) > 1 else 0.0
                ),
                "values": values,
            }
    return summary


# Settings, data, and where the weights come from.


def check_settings(config: ConfigDict) -> None:
    """Raises UserError on settings that make no sense, before anything is read."""
    kind, metric = config.task.kind, config.task.metric
    if kind in METRICS and metric not in METRICS[kind]:
        raise UserError(
            f"task.metric={metric!r}: a task of kind {kind!r} is measured by one of "
            f"{', '.join(METRICS[kind])}"
        )
    if not config.data.train:
        raise UserError(
            "config.data.train is empty: name the labelled file, as in "
            "--config.data.train=topics.tsv, and its columns in config.task"
        )
    if config.optim.epochs <= 0:
        raise UserError(f"optim.epochs={config.optim.epochs} must be more than 0")
    if not 0 <= config.optim.warmup_fraction < 1:
        raise UserError(
            f"optim.warmup_fraction={config.optim.warmup_fraction} must be at least 0 "
            "and less than 1"
        )
    if not config.data.eval and not 0 < config.data.eval_fraction < 1:
        raise UserError(
            "config.data.eval is empty, so a part of the training data is held out: "
            f"data.eval_fraction={config.data.eval_fraction} must be between 0 and 1"
        )


@dataclasses.dataclass(frozen=True)
class Origin:
    """What fine-tuning starts from; without `params` fresh weights, or its own."""

    model: dict[str, Any]
    tokenizer: Tokenizer
    params: Any | None
    step: int

    @property
    def family(self) -> str:
        return heads.FAMILIES[self.model["family"]]


def read_origin(
    config: ConfigDict, task: Task, train: list[Record], workdir: Path | None
) -> Origin:
    """Model and tokenizer of `init_from`, else what the config says.

    A run that resumes in `workdir` has its own. Dropout is always the config's.

    Raises:
      UserError: no such run, or texts longer than the model's table of positions.
    """
    resumes = workdir is not None and has_checkpoint(workdir)
    if resumes or config.init_from:
        folder = workdir if resumes else Path(config.init_from)
        fields = configs.read_config(folder).model.to_dict()
        fields |= {name: config.model[name] for name in DROPOUTS}
        with_weights = config.load_weights and not resumes
        params, at = load_params(folder) if with_weights else (None, 0)
        origin = Origin(fields, tokenizers.load(str(folder)), params, at)
    else:
        tokenizer = load_or_train_tokenizer(config, task, train)
        origin = Origin(config.model.to_dict(), tokenizer, None, 0)
    if origin.model["family"] not in heads.FAMILIES:
        raise UserError(
            f"model.family={origin.model['family']!r} cannot be fine-tuned: use "
            f"{' or '.join(heads.FAMILIES)}"
        )
    if config.data.max_length > origin.model["max_positions"]:
        raise UserError(
            f"data.max_length={config.data.max_length} is longer than the model's "
            f"{origin.model['max_positions']} positions: lower it"
        )
    if origin.tokenizer.vocab_size > origin.model["vocab_size"]:
        raise UserError(
            f"the tokenizer has {origin.tokenizer.vocab_size} pieces, but model."
            f"vocab_size={origin.model['vocab_size']}: raise it"
        )
    return origin


def load_or_train_tokenizer(
    config: ConfigDict, task: Task, train: list[Record]
) -> Tokenizer:
    """For a model from scratch: of `data.tokenizer.path`, or learnt from the texts."""
    settings = config.data.tokenizer.to_dict()
    path = settings.pop("path")
    if path:
        return tokenizers.load(path)
    is_encoder = heads.FAMILIES[config.model.family] == "encoder"
    return tokenizers.train(
        tasks.texts(train, task),
        **settings,
        vocab_size=config.model.vocab_size,
        special_tokens=(
            tokenizers.BERT_SPECIAL_TOKENS
            if is_encoder
            else tokenizers.GPT_SPECIAL_TOKENS
        ),
    )


def make_task(config: ConfigDict) -> Task:
    """The task of a config; no labels means that they are learnt from the data."""
    spec = config.task
    return Task(
        spec.kind,
        tuple(spec.text_columns),
        spec.label_column,
        tuple(spec.labels) or None,
        tuple(spec.question_columns),
        tuple(spec.answer_columns),
    )


def read_splits(
    config: ConfigDict, task: Task
) -> tuple[dict[str, list[Record]], tuple[str, ...]]:
    """The records of "train" and "eval", and of "test" where one is named; the labels.

    Labels are learnt from all training records, not only from `train_examples`.

    Raises:
      UserError: see `labelled.read`; too few records to hold some out.
    """
    data = config.data
    train = labelled.read(data.train)
    generator = np.random.default_rng([config.seed, 1])
    if data.eval:
        held_out = labelled.read(data.eval)
    else:
        # Its own seed: the same records are held out whatever the run's seed.
        order = np.random.default_rng(0).permutation(len(train)).tolist()
        count = max(1, round(data.eval_fraction * len(train)))
        held_out = [train[i] for i in sorted(order[:count])]
        train = [train[i] for i in sorted(order[count:])]
        if not train:
            raise UserError(f"{data.train} has one record: too few to hold one out")
    labels = tasks.label_names(train, task)
    if data.train_examples:
        if data.train_examples > len(train):
            raise UserError(
                f"data.train_examples={data.train_examples}, but {data.train} has "
                f"{len(train)} training records: lower it, or 0 for all"
            )
        chosen = generator.permutation(len(train))[: data.train_examples]
        train = [train[i] for i in sorted(chosen.tolist())]
    splits = {"train": train, "eval": held_out}
    if data.test:
        splits["test"] = labelled.read(data.test)
    return splits, labels


@dataclasses.dataclass(frozen=True)
class Data:
    """The splits "train", "eval" and perhaps "test", encoded, and their batches."""

    records: dict[str, list[Record]]
    labels: tuple[str, ...]
    examples: dict[str, Examples]
    shapes: dict[str, RowShape]
    masking: Masking | None  # of an encoder's auxiliary language model
    lm_per_sequence: bool  # a decoder's is averaged within each sequence first

    @property
    def steps_per_epoch(self) -> float:
        shape = self.shapes["train"]
        return len(packing.pack_all(self.examples["train"].lengths, shape)) / shape.rows

    def batches(self, split: str, seed: int) -> grain.MapDataset:
        """Training batches without end; of other splits every example once.

        Every process makes all rows, which is cheap, and its devices take theirs.
        """
        examples, shape = self.examples[split], self.shapes[split]
        if split == "train":
            batches = packing.training_batches(examples, shape, seed=seed)
        else:
            batches = packing.evaluation_batches(examples, shape)
        if self.masking is not None:
            return packing.with_masked_tokens(batches, self.masking, seed)
        if self.lm_per_sequence:
            return packing.with_sequence_weights(batches)
        return batches


def encode_splits(
    config: ConfigDict,
    task: Task,
    origin: Origin,
    records: dict[str, list[Record]],
    labels: tuple[str, ...],
    mesh: Mesh,
) -> Data:
    """Encodes the splits, and says how much text was cut."""
    examples = {}
    for name, split in records.items():
        examples[name] = tasks.encode(
            split,
            task,
            origin.tokenizer,
            family=origin.family,
            labels=labels,
            labelled=is_labelled(split, task, name),
            max_length=config.data.max_length,
            max_question_length=config.data.max_question_length,
            window_stride=config.data.window_stride,
        )
        cut = tasks.cut_report(examples[name], config.data.max_length)
        print(f"{name}: {len(split)} examples; {cut}")
    shapes = {
        name: make_shape(config, split, mesh, read_once=name != "train")
        for name, split in examples.items()
    }
    masking = None
    if config.objective.lm_weight and origin.family == "encoder":
        longest = max(shape.length for shape in shapes.values())
        masking = Masking(
            origin.tokenizer,
            mask_rate=config.objective.mask_rate,
            mask_token_rate=0.8,
            random_token_rate=0.1,
            max_predictions=max(1, round(config.objective.mask_rate * longest)),
            whole_word=False,
        )
    per_sequence = config.objective.lm_per_sequence and origin.family == "decoder"
    return Data(records, labels, examples, shapes, masking, per_sequence)


def is_labelled(records: list[Record], task: Task, split: str) -> bool:
    """A test split may come without the column of labels."""
    return split != "test" or task.label_column in records[0].fields


def make_shape(
    config: ConfigDict, examples: Examples, mesh: Mesh, read_once: bool
) -> RowShape:
    return packing.row_shape(
        examples,
        examples_per_batch=config.data.batch_size,
        longest_row=max(2 * config.data.max_length, int(examples.lengths.max())),
        rows_multiple=parallel.batch_parts(mesh) * config.run.micro_batches,
        packed=config.data.packed,
        read_once=read_once,
    )


def start_params(
    config: ConfigDict,
    task: Task,
    origin: Origin,
    labels: tuple[str, ...],
    model: FineTuned,
    batch: Batch,
    plan: Any,
) -> Any:
    """Fresh parameters, with the weights of `origin` where it brings some."""
    params = init_params(model, batch, config.seed, parallel.places(plan))
    if origin.params is None:
        return params
    check_head(Path(config.init_from), task, labels, config.allow_missing)
    params, report = take_weights(
        params, origin.params, config.allow_missing, config.init_from
    )
    print(f"weights of {config.init_from} (step {origin.step}):\n{report}")
    return parallel.place(params, plan)


def init_params(model: FineTuned, batch: Batch, seed: int, places: Any = None) -> Any:
    """As `train.init_params`."""
    return train.init_params(model, batch, seed, places, heads.MODEL_INPUTS)


def check_head(
    folder: Path, task: Task, labels: tuple[str, ...], allow_missing: tuple[str, ...]
) -> None:
    """A head that was trained before must be for the same kind and labels.

    Raises:
      UserError: lists both, unless `allow_missing` lets all of `head/` be new.
    """
    path = folder / "task.json"
    if not path.exists() or "head/.*" in allow_missing:
        return
    before = json.loads(path.read_text())
    if (before["kind"], tuple(before["labels"])) != (task.kind, labels):
        raise UserError(
            f"{folder} has a head for {before['kind']} with the labels "
            f"{', '.join(before['labels']) or 'none'}; this task is {task.kind} with "
            f"{', '.join(labels) or 'none'}: start from the pre-trained run"
        )


def make_groups(optim: ConfigDict, params: Any) -> Groups:
    """`optim.groups`; with `optim.layerwise` its rates for what no group before names.

    A last group ".*" gives way to the layers.
    """
    groups, layers = tuple(optim.groups), optim.layerwise
    if layers.decay == 1.0 and not layers.thaw_every:
        return groups
    if groups and groups[-1][0] == ".*":
        groups = groups[:-1]
    return layerwise_groups(
        params,
        decay=layers.decay,
        top_exponent=layers.top_exponent,
        thaw_every=layers.thaw_every,
        first=groups,
    )


def schedule_settings(optim: ConfigDict, total_steps: int) -> dict[str, Any]:
    """The arguments of `make_schedule`; a warm-up takes at least one step."""
    warmup_steps = round(optim.warmup_fraction * total_steps)
    if optim.warmup_fraction > 0:
        warmup_steps = max(1, warmup_steps)
    warmup_steps = min(warmup_steps, total_steps - 1)
    return {
        "schedule": optim.schedule,
        "learning_rate": optim.learning_rate,
        "end_learning_rate": optim.end_learning_rate,
        "warmup_steps": warmup_steps,
        "total_steps": total_steps,
    }


# The loss.


def make_loss_terms(model: FineTuned, lm_weight: float, groups: Groups) -> LossTerms:
    """The task's loss + lm_weight * a language model's (GPT-1, section 3.2)."""

    def terms(params: Any, batch: dict, dropout_key: Any) -> dict[str, Term]:
        params = stop_frozen(params, groups)
        out = heads.apply(model, params, batch, dropout_key)
        terms = {model.kind: task_term(model.kind, out["scores"], batch)}
        if lm_weight:
            loss, weight, metrics = auxiliary_lm(model, params, batch, out, dropout_key)
            terms["auxiliary_lm"] = lm_weight * loss, weight, metrics | {"nats": loss}
        return terms

    return terms


def auxiliary_lm(
    model: FineTuned, params: Any, batch: dict, output: dict, dropout_key: Any
) -> Term:
    """Decoders predict the next token of what they read for the task; encoders read
    the batch once more with some of its tokens masked, and predict those."""
    if "masked_tokens" not in batch:
        return causal_lm(output["logits"], batch["lm_targets"], batch["lm_weights"])
    masked = batch | {"tokens": batch["masked_tokens"]}
    key = None if dropout_key is None else jax.random.fold_in(dropout_key, 1)
    logits = heads.apply(model, params, masked, key)["logits"]
    return masked_lm(logits, batch["lm_targets"], batch["lm_weights"])


def task_term(kind: str, scores: Any, batch: dict) -> Term:
    """The loss of a kind."""
    if kind == "similarity":
        return regression(scores, batch["scores"], batch["weights"])
    if kind == "span":
        return span(scores, batch["starts"], batch["ends"], batch["weights"])
    return classification(scores, batch["labels"], batch["weights"])


def uninformed_loss(examples: Examples) -> float:
    """The loss of the best prediction that does not look at the text."""
    if examples.kind == "span":
        return float(np.mean(np.log(examples.lengths)))
    slots = [example.slot for example in examples.encoded]
    if examples.kind == "similarity":
        return float(np.var([slot["scores"] for slot in slots]))
    if examples.kind == "tagging":
        arrays = [example.arrays for example in examples.encoded]
        labels = np.concatenate([a["labels"][a["weights"] > 0] for a in arrays])
    else:
        labels = np.array([slot["labels"] for slot in slots])
    shares = np.bincount(labels) / len(labels)
    return float(-np.sum(shares[shares > 0] * np.log(shares[shares > 0])))


# Evaluation and predictions.


def make_evaluate(
    config: ConfigDict,
    task: Task,
    data: Data,
    model: FineTuned,
    loss_terms: LossTerms,
    mesh: Mesh,
    stop: loop.StopSignal,
) -> Callable[[Any, str], tuple[dict[str, float], list[dict]] | None]:
    """`evaluate(params, split)`: every example once.

    It returns (values, a prediction for every record), or None when told to stop.
    Without labels there are no values.
    """
    run_model = parallel.compile_eval_step(
        lambda params, batch: (
            loss_terms(params, batch, None),
            heads.scores_of(heads.apply(model, params, batch, None)),
        ),
        mesh,
    )

    def evaluate(params: Any, split: str) -> tuple[dict[str, float], list[dict]] | None:
        examples, records = data.examples[split], data.records[split]
        rows = data.shapes[split].rows
        terms, found = [], {}
        for batch in data.batches(split, EVALUATION_SEED):
            if stop.received:
                return None
            term, scores = run_model(params, parallel.shard_batch(batch, rows, mesh))
            terms.append(term)
            scores = np.asarray(scores)
            found |= dict(predictions.examples_of(task.kind, batch, scores))
        predicted = predictions.predict(
            task.kind,
            examples,
            records,
            found,
            text_column=task.text_columns[0],
            null_answers=config.task.null_answers,
        )
        if not is_labelled(records, task, split):
            return {}, predicted
        for prediction, record in zip(predicted, records, strict=True):
            prediction["gold"] = record.fields[task.label_column]
        means = step.term_means(loop.sum_terms(terms))
        values = {name: float(value) for name, value in means.items()}
        return values | metrics_of(task.kind, predicted, examples.labels), predicted

    return evaluate


# The run: starting, recording, reporting.


def record_run(
    config: ConfigDict, workdir: Path, task: Task, origin: Origin, data: Data
) -> None:
    """Keeps with the run its config, task, labels, tokenizer, data and versions.

    Raises:
      UserError: the run was begun on other data.
    """
    digests = {
        name: hashlib.blake2b(
            json.dumps([record.fields for record in records]).encode(), digest_size=8
        ).hexdigest()
        for name, records in data.records.items()
    }
    target = workdir / "data.json"
    if target.exists():
        before = json.loads(target.read_text())
        changed = [name for name in digests if digests[name] != before[name]]
        if changed:
            raise UserError(
                f"the {' and '.join(changed)} data of the run in {workdir} is not what "
                "it was when the run began: use another --workdir"
            )
    else:
        configs.write_run_folder(workdir, config)
        origin.tokenizer.save(workdir)
        spec = dataclasses.asdict(task) | {"labels": data.labels}
        (workdir / "task.json").write_text(json.dumps(spec, indent=2) + "\n")
        target.write_text(json.dumps(digests, indent=2) + "\n")
    record_environment(workdir)


def record_groups(
    workdir: Path, params: Any, groups: Groups, schedule: dict, optim: ConfigDict
) -> str:
    """Writes, and returns, what the optimizer will do to each parameter."""
    table = group_table(
        params,
        groups,
        schedule,
        weight_decay=optim.weight_decay,
        no_decay=optim.no_decay,
    )
    if parallel.is_first():
        (workdir / "parameters.txt").write_text(table + "\n")
    return table


def describe_start(
    config: ConfigDict,
    state: step.TrainState,
    data: Data,
    first: int,
    total_steps: int,
    floor: float,
) -> None:
    """Prints what is about to be trained, on what, and the line to beat."""
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    shape = data.shapes["train"]
    tokens = data.examples["train"].lengths.sum()
    padding = 1 - tokens / (data.steps_per_epoch * shape.rows * shape.length)
    print(
        f"{config.name}: {count:,} parameters; labels: "
        f"{', '.join(data.labels) or 'none'}\n"
        f"batches of {shape.rows} rows of {shape.length} tokens, {padding:.1%} "
        f"padding; {data.steps_per_epoch:.1f} steps an epoch\n"
        f"line to beat: {floor:.3f} without reading the text; steps {first} to "
        f"{total_steps}; the first one compiles",
        flush=True,
    )


def draw(workdir: Path, floor: float) -> None:
    if parallel.is_first():
        draw_curves(
            read_metrics(workdir / "metrics.jsonl"),
            workdir / "curves.png",
            line_to_beat=floor,
            line_name="without reading the text",
        )


def write_results(
    workdir: Path, task: Task, data: Data, plan: Any, evaluate: Callable
) -> None:
    """Predicts with the best weights: results.json, predictions_SPLIT.jsonl."""
    best, at = load_params(workdir)
    params = parallel.place(best, plan)
    results: dict[str, Any] = {"best_step": at, "failed": False, "splits": {}}
    for split in data.records:
        if split == "train":
            continue
        outcome = evaluate(params, split)
        if outcome is None:  # told to stop
            return
        values, predicted = outcome
        target = workdir / f"predictions_{split}.jsonl"
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in predicted)
        if parallel.is_first():
            target.write_text("".join(lines), encoding="utf-8")
        results["splits"][split] = values
        shown = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
        print(f"{split} (weights of step {at}): {shown or 'no labels'}; {target}")
        if split == "eval" and is_constant(task.kind, predicted):
            results["failed"] = True
            print("FAILED: the run predicts the same for every example")
    if parallel.is_first():
        target = workdir / "results.json"
        target.write_text(json.dumps(results, indent=2) + "\n")


def show_batch(config: ConfigDict) -> int:
    """Prints the first rows of the first batch, decoded."""
    check_settings(config)
    mesh = parallel.make_mesh(**config.run.mesh)
    task = make_task(config)
    splits, labels = read_splits(config, task)
    origin = read_origin(config, task, splits["train"], None)
    train = {"train": splits["train"]}
    data = encode_splits(config, task, origin, train, labels, mesh)
    batch = data.batches("train", config.seed)[0]
    print(packing.describe(batch, data.examples["train"], origin.tokenizer, rows=4))
    return 0


if __name__ == "__main__":
    errors.run(main)
