"""Pre-trains a model: config -> corpus -> tokens -> batches -> objective -> steps.

    python train.py --config=configs/bert_mini.py [--workdir=runs/bert_mini]
        [--config.optim.learning_rate=3e-4 ...] [--show_batch | --dry_run]
        [--distributed]

The same line again resumes the run in `--workdir`, or says that it is done.
"""

import json
import math
import platform
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

import configs
import errors
import models
from data import corpora, pretraining, shards
from data.shards import Shards
from data.tokenizers import Tokenizer
from errors import UserError
from models.transformer import tied_logits
from objectives.causal_lm import causal_lm
from objectives.cross_entropy import in_chunks
from objectives.masked_lm import masked_lm
from objectives.next_sentence import next_sentence
from prepare import prepare
from training import costs, loop, parallel, step
from training.checkpoints import (
    PRETRAINING_HEADS,
    Checkpoints,
    load_params,
    take_weights,
)
from training.lock import one_writer
from training.metrics import MetricsWriter, draw_curves, perplexity, read_metrics
from training.optimizers import (
    Groups,
    group_table,
    make_optimizer,
    make_schedule,
    parameter_sizes,
    stop_frozen,
)
from training.step import LossTerms, Term

MODEL_INPUTS = (
    "tokens",
    "segment_ids",
    "positions",
    "token_types",
    "predict_positions",
)


def main(argv: list[str]) -> int:
    flags = configs.parse(
        argv,
        {
            "show_batch": "Prints decoded examples and exits.",
            "dry_run": "Compiles a step, prints what it costs and exits.",
            "distributed": parallel.DISTRIBUTED_HELP,
        },
        {},
    )
    if flags.distributed:
        parallel.join_processes()
    if flags.show_batch:
        return show_batch(flags.config)
    with costs.memory_explained(costs.REMEDIES):
        if flags.dry_run:
            return dry_run(flags.config)
        return train(flags.config, Path(flags.workdir or f"runs/{flags.config.name}"))


def train(config: ConfigDict, workdir: Path) -> int:
    """Starts or resumes the run in `workdir`; returns the exit status."""
    start_jax(config.run.precision)
    with one_writer(workdir):
        return train_alone(config, workdir)


def train_alone(config: ConfigDict, workdir: Path) -> int:
    configs.check_run_folder(workdir, config)
    mesh = make_mesh(config)
    data = open_data(config, mesh)
    batch = data.batches[0]

    model = build_model(config)
    loss_terms = LOSS_TERMS[config.objective.name](model, config.run.logit_chunks)
    optimizer, plan = plan_state(config, model, batch, mesh)
    loss_terms = parallel.gathering(loss_terms, plan.params, mesh)
    train_step = compile_train_step(config, loss_terms, optimizer, plan, batch, mesh)
    checkpoints = Checkpoints(workdir)
    if checkpoints.latest_step() is not None:
        state = checkpoints.restore(plan)
    else:
        params = start_params(config, model, batch, plan.params)
        state = parallel.start_state(params, optimizer, plan)

    if parallel.is_first():
        configs.write_run_folder(workdir, config)
        record_origin(workdir, data)
        record_groups(workdir, plan.params, config.optim)
    first = int(state.step)
    entropy = unigram_entropy(data.train, data.tokenizer, config.objective.name)
    describe_start(config, state, mesh, data, first, entropy)

    writer = MetricsWriter(workdir, first, writes=parallel.is_first())
    with (
        loop.StopSignal() as stop,
        costs.memory_explained(costs.REMEDIES, train_step),
    ):
        state = loop.fit(
            state,
            device_batches(
                data.batches,
                first,
                config.run.data_threads,
                config.data.batch_size,
                mesh,
            ),
            train_step=train_step,
            evaluate=make_evaluate(config, data, loss_terms, mesh, stop),
            checkpoints=checkpoints,
            writer=writer,
            key=jax.random.key(config.seed),
            stop=stop,
            total_steps=config.optim.total_steps,
            throughput=costs.throughput(
                config.data.batch_size * config.data.sequence_length,
                step_flops(config, plan.params),
                mesh.size,
            ),
            log_every_steps=config.run.log_every_steps,
            eval_every_steps=config.run.eval_every_steps,
            save_every_minutes=config.run.save_every_minutes,
            criterion=lambda values: values["loss"],
            patience=0,
        )
    writer.close()
    checkpoints.close()
    if parallel.is_first():
        report(config, workdir, entropy, int(state.step), stop.received)
    return 0 if stop.received is None else 128 + stop.received


def step_flops(config: ConfigDict, params: Any) -> float:
    """Of an update; a backward pass costs two forward ones."""
    length = config.data.sequence_length
    is_masked = config.objective.name == "masked_lm"
    forward = costs.forward_flops(
        config.model.to_dict(),
        parameter_sizes(params),
        length,
        config.objective.max_predictions if is_masked else length,
    )
    return 3 * forward * config.data.batch_size * length


def dry_run(config: ConfigDict) -> int:
    """Compiles a step without making its state; prints its size and cost."""
    start_jax(config.run.precision)
    mesh = make_mesh(config)
    batch = open_data(config, mesh).batches[0]
    model = build_model(config)
    loss_terms = LOSS_TERMS[config.objective.name](model, config.run.logit_chunks)
    optimizer, plan = plan_state(config, model, batch, mesh)
    loss_terms = parallel.gathering(loss_terms, plan.params, mesh)
    compiled = compile_train_step(config, loss_terms, optimizer, plan, batch, mesh)
    count = sum(leaf.size for leaf in jax.tree.leaves(plan.params))
    print(
        f"{config.name}: {count:,} parameters on {parallel.describe(mesh)}\n"
        f"{costs.describe(costs.step_cost(compiled))}"
    )
    return 0


def make_mesh(config: ConfigDict) -> Mesh:
    """The devices of `run.mesh`, which can cut the model of the config."""
    mesh = parallel.make_mesh(**config.run.mesh)
    models.check_cuts(config.model.to_dict(), mesh.shape)
    return mesh


def build_model(config: ConfigDict) -> Any:
    """The model of a config, and how its `run` wants it computed."""
    run = config.run
    return models.build(
        config.model.to_dict(), run.precision, run.remat, run.fused_attention
    )


def plan_state(
    config: ConfigDict, model: Any, batch: dict, mesh: Mesh
) -> tuple[optax.GradientTransformation, step.TrainState]:
    """The optimizer of a config, and what its state will be and where."""
    params = jax.eval_shape(lambda: init_params(model, batch, config.seed))
    optim = config.optim
    optimizer = build_optimizer(params, optim, optim.groups, schedule_settings(optim))
    return optimizer, parallel.plan_state(params, optimizer, models.PLACEMENT, mesh)


def compile_train_step(
    config: ConfigDict,
    loss_terms: LossTerms,
    optimizer: optax.GradientTransformation,
    plan: step.TrainState,
    batch: dict,
    mesh: Mesh,
) -> Any:
    """The update as a compiled program, for states as planned and such batches.

    With `run.micro_batches` 0 it is cut into as few as fit the device's memory.

    Raises:
      UserError: not even one row at a time fits; a bad `run.parallel`.
    """
    groups = config.optim.groups
    schedule = make_schedule(**schedule_settings(config.optim))
    rows = config.data.batch_size // parallel.batch_parts(mesh)
    axis = parallel.mapped_axis(config.run.parallel, mesh)
    asked = config.run.micro_batches
    counts = [asked] if asked else [n for n in range(1, rows + 1) if rows % n == 0]
    for micro_batches in counts:
        train_step = step.make_train_step(
            lambda params, batch, key: loss_terms(
                stop_frozen(params, groups), batch, key
            ),
            optimizer,
            schedule,
            micro_batches=micro_batches,
            axis=axis,
        )
        planned = parallel.plan_batch(batch, config.data.batch_size, mesh)
        try:
            compiled = parallel.compile_train_step(
                train_step, plan, planned, mesh, axis
            )
        except jax.errors.JaxRuntimeError as error:  # a TPU's compiler sees it first
            if not costs.is_out_of_memory(error) or micro_batches == counts[-1]:
                raise
            continue
        if asked:
            return compiled
        cost = costs.step_cost(compiled)
        if cost.total <= costs.USABLE_SHARE * costs.device_memory():
            print(f"micro-batches: {micro_batches}")
            return compiled
    raise UserError(
        f"no number of micro-batches fits the device:\n{costs.describe(cost)}"
    )


# Objectives: each joint loss is the sum of the terms that its function returns.


def causal_lm_terms(model: Any, logit_chunks: int) -> LossTerms:
    """GPT: predict the next token of the document."""

    def terms(params: Any, batch: dict, dropout_key: Any) -> dict[str, Term]:
        out = apply(model, params, batch, dropout_key)
        return {"causal_lm": lm_term(causal_lm, out, batch, logit_chunks)}

    return terms


def masked_lm_terms(model: Any, logit_chunks: int) -> LossTerms:
    """BERT: predict the masked tokens, and whether sentence B follows sentence A."""

    def terms(params: Any, batch: dict, dropout_key: Any) -> dict[str, Term]:
        out = apply(model, params, batch, dropout_key)
        terms = {"masked_lm": lm_term(masked_lm, out, batch, logit_chunks)}
        if "next_sentence" in batch:
            terms["next_sentence"] = next_sentence(
                out["next_sentence_logits"],
                batch["next_sentence"],
                batch["next_sentence_weights"],
            )
        return terms

    return terms


LOSS_TERMS = {"causal_lm": causal_lm_terms, "masked_lm": masked_lm_terms}


def lm_term(objective: Callable, out: dict, batch: dict, logit_chunks: int) -> Term:
    """A language model's loss, its logits in parts (the model's own go unused then)."""

    def project(hidden: Any) -> Any:
        return tied_logits(hidden, out["logits_table"], out["logits_bias"])

    return in_chunks(
        objective,
        project,
        out["logits_hidden"],
        batch["targets"],
        batch["weights"],
        logit_chunks,
    )


def apply(model: Any, params: Any, batch: dict, dropout_key: Any) -> dict:
    """The model's outputs for a batch; dropout is off where `dropout_key` is None."""
    return model.apply(
        {"params": params},
        **{name: batch[name] for name in MODEL_INPUTS if name in batch},
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
    )


# What the objective needs of the data.


@dataclass(frozen=True)
class Data:
    """The corpus of a config as tokens in a folder, and its training batches, of each
    the rows that this process makes."""

    tokenizer: Tokenizer
    folder: Path
    train: Shards
    heldout: Shards
    batches: grain.MapDataset


def open_data(config: ConfigDict, mesh: Mesh) -> Data:
    """Prepares the data where it is missing.

    Raises:
      UserError: sizes that do not fit each other; see `prepare`.
    """
    micro_batches = max(1, config.run.micro_batches)
    parallel.check_batch_size(config.data.batch_size, mesh, micro_batches)
    tokenizer, folder = parallel.first_alone(lambda: prepare(config))
    check_sizes(config, tokenizer)
    train, heldout = (shards.open_shards(folder, s) for s in ("train", "heldout"))
    index, count = parallel.host_part(mesh)
    batches = pretraining.training_batches(
        make_examples(config, tokenizer, train),
        batch_size=config.data.batch_size,
        seed=config.seed,
        host_index=index,
        host_count=count,
    )
    return Data(tokenizer, folder, train, heldout, batches)


def make_examples(config: ConfigDict, tokenizer: Tokenizer, split: Shards) -> Any:
    """The examples of a split, by index, for the objective of the config."""
    objective, length = config.objective, config.data.sequence_length
    if objective.name == "causal_lm":
        return pretraining.CausalLmExamples(split, length)
    masking = {
        "mask_rate": objective.mask_rate,
        "mask_token_rate": objective.mask_token_rate,
        "random_token_rate": objective.random_token_rate,
        "max_predictions": objective.max_predictions,
        "whole_word": objective.whole_word,
    }
    if objective.next_sentence:
        return pretraining.NextSentenceExamples(
            split,
            tokenizer,
            length,
            **masking,
            short_seq_prob=objective.short_seq_prob,
            random_next_rate=objective.random_next_rate,
        )
    return pretraining.MaskedLmExamples(split, tokenizer, length, **masking)


def check_sizes(config: ConfigDict, tokenizer: Tokenizer) -> None:
    """Raises UserError where the data does not fit the model's tables."""
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, but model.vocab_size="
            f"{config.model.vocab_size}: raise it, or lower data.tokenizer.vocab_size"
        )
    if config.data.sequence_length > config.model.max_positions:
        raise UserError(
            f"data.sequence_length={config.data.sequence_length} is longer than "
            f"model.max_positions={config.model.max_positions}: lower the one or raise "
            "the other"
        )


def unigram_entropy(split: Shards, tokenizer: Tokenizer, objective: str) -> float:
    """Entropy in nats of the tokens that are predicted, drawn without any context.

    A model that has learnt only how frequent each token is has this loss.
    """
    counts = split.unigram_counts.astype(np.float64)
    if objective == "masked_lm":
        counts[list(tokenizer.special_ids.values())] = 0.0  # never masked
    shares = counts[counts > 0] / counts.sum()
    return float(-np.sum(shares * np.log(shares)))


def device_batches(
    batches: grain.MapDataset, first: int, threads: int, rows: int, mesh: Mesh
) -> Iterator[dict]:
    """The batches of so many rows from step `first` on, which the threads that make
    them put on the devices as well."""
    placed = batches.map(lambda batch: parallel.shard_batch(batch, rows, mesh))
    return pretraining.prefetch(placed, first, threads)


def make_evaluate(
    config: ConfigDict,
    data: Data,
    loss_terms: LossTerms,
    mesh: Mesh,
    stop: loop.StopSignal,
) -> Callable[[Any], dict[str, float] | None]:
    """`evaluate(params)`: every held-out example once; None when told to stop."""
    rows = config.data.batch_size
    index, count = parallel.host_part(mesh)
    batches = pretraining.evaluation_batches(
        make_examples(config, data.tokenizer, data.heldout),
        batch_size=rows,
        host_index=index,
        host_count=count,
    )
    eval_step = parallel.compile_eval_step(step.make_eval_step(loss_terms), mesh)
    # Every token is predicted but the first of a document, which its frame adds.
    predicted = data.heldout.num_tokens - (len(data.heldout.documents) - 1)
    bytes_per_token = data.heldout.text_bytes / predicted

    def evaluate(params: Any) -> dict[str, float] | None:
        terms = []
        for batch in batches:
            if stop.received:
                return None
            terms.append(eval_step(params, parallel.shard_batch(batch, rows, mesh)))
        means = step.term_means(loop.sum_terms(terms))
        values = {name: float(value) for name, value in means.items()}
        token_loss = values[f"{config.objective.name}_loss"]
        values["perplexity"] = perplexity(token_loss)
        if config.objective.name == "causal_lm":
            values["bits_per_byte"] = token_loss / math.log(2) / bytes_per_token
        return values

    return evaluate


# The run: starting, recording, reporting.


def start_jax(precision: str) -> None:
    """Compiled programs are kept on disk; float32 means float32 on every device."""
    parallel.keep_freed_memory()
    if jax.config.jax_compilation_cache_dir is None:
        folder = corpora.cache_folder() / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # The many small programs of a start count, too.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if precision == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")


def schedule_settings(optim: ConfigDict) -> dict[str, Any]:
    """The arguments of `make_schedule`."""
    return {
        "schedule": optim.schedule,
        "learning_rate": optim.learning_rate,
        "end_learning_rate": optim.end_learning_rate,
        "warmup_steps": optim.warmup_steps,
        "total_steps": optim.total_steps,
    }


def build_optimizer(
    params: Any, optim: ConfigDict, groups: Groups, schedule: dict[str, Any]
) -> optax.GradientTransformation:
    """The optimizer of a config's `optim`; `schedule` as `make_schedule` takes it."""
    return make_optimizer(
        params,
        groups,
        schedule,
        b1=optim.b1,
        b2=optim.b2,
        epsilon=optim.epsilon,
        weight_decay=optim.weight_decay,
        no_decay=optim.no_decay,
        clip_norm=optim.clip_norm,
        adam=optim.adam,
    )


def start_params(config: ConfigDict, model: Any, batch: dict, plan: Any) -> Any:
    """Fresh parameters, or the weights of `init_from` where the run names one."""
    params = init_params(model, batch, config.seed, parallel.places(plan))
    if not config.init_from:
        return params
    source, at = load_params(Path(config.init_from))
    params, taken = take_weights(params, source, (PRETRAINING_HEADS,), config.init_from)
    print(f"weights of {config.init_from} (step {at}):\n{taken}")
    return parallel.place(params, plan)


def init_params(
    model: Any,
    batch: dict,
    seed: int,
    places: Any = None,
    names: tuple[str, ...] = MODEL_INPUTS,
) -> Any:
    """Fresh parameters, float32, made at their `places`; None: on one device.

    They depend on the model and the seed; of the arrays in the batch that the model
    reads, which are of those `names`, only the shapes matter.
    """

    def init() -> Any:
        inputs = {
            name: jnp.zeros((1, *batch[name].shape[1:]), batch[name].dtype)
            for name in names
            if name in batch
        }
        variables = model.init(jax.random.key(seed), **inputs, deterministic=True)
        return variables["params"]

    return jax.jit(init, out_shardings=places)()


def record_origin(workdir: Path, data: Data) -> None:
    """Keeps with the run what it was made from: tokenizer, shards key, versions.

    Raises:
      UserError: the run was begun on other data; the differences are named.
    """
    target, key = workdir / "data.json", shards.read_key(data.folder)
    if target.exists():
        shards.check_same_key(
            json.loads(target.read_text()),
            key,
            f"the run in {workdir} was",
        )
    else:
        data.tokenizer.save(workdir)
        target.write_text(json.dumps(key, indent=2) + "\n")
    record_environment(workdir)


def record_environment(workdir: Path) -> None:
    """Writes versions, devices and git commit to `environment.json`."""
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


def record_groups(workdir: Path, params: Any, optim: ConfigDict) -> None:
    """Writes what the optimizer will do to each parameter."""
    table = group_table(
        params,
        optim.groups,
        schedule_settings(optim),
        weight_decay=optim.weight_decay,
        no_decay=optim.no_decay,
    )
    (workdir / "parameters.txt").write_text(table + "\n")


def describe_start(
    config: ConfigDict,
    state: step.TrainState,
    mesh: Mesh,
    data: Data,
    first: int,
    entropy: float,
) -> None:
    """Prints what is about to be trained, on what, and the line to beat."""
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(
        f"{config.name}: {count:,} parameters on {parallel.describe(mesh)}; "
        f"{data.train.num_tokens:,} training and {data.heldout.num_tokens:,} held-out "
        "tokens\n"
        "each parameter's rate and decay: parameters.txt in the run folder\n"
        f"line to beat: unigram entropy {entropy:.3f} nats; steps {first} to "
        f"{config.optim.total_steps}; the first one compiles",
        flush=True,
    )


def report(
    config: ConfigDict, workdir: Path, entropy: float, steps: int, received: int | None
) -> None:
    """Draws the curves, prints best and last values and where everything is."""
    rows = read_metrics(workdir / "metrics.jsonl")
    draw_curves(
        rows,
        workdir / "curves.png",
        line_to_beat=entropy,
        line_name="unigram entropy",
    )
    evaluations = [row for row in rows if "eval/loss" in row]
    if evaluations:
        best, last = min(evaluations, key=lambda row: row["eval/loss"]), evaluations[-1]
        print(
            f"held-out loss: last {last['eval/loss']:.4f} (step {last['step']}), best "
            f"{best['eval/loss']:.4f} (step {best['step']}); unigram entropy "
            f"{entropy:.3f}"
        )
    print(f"run folder: {workdir} (checkpoints/, metrics.jsonl, curves.png)")
    if received is not None:
        name = signal.Signals(received).name
        print(f"stopped by {name} after step {steps}: the same line again resumes")
        return
    command = "generate" if config.objective.name == "causal_lm" else "fill_mask"
    print(f"use it: python predict.py {command} --workdir={workdir} --help")


def show_batch(config: ConfigDict) -> int:
    """Prints the first rows of the first batch, decoded."""
    tokenizer, folder = prepare(config)
    batches = pretraining.training_batches(
        make_examples(config, tokenizer, shards.open_shards(folder, "train")),
        batch_size=config.data.batch_size,
        seed=config.seed,
    )
    print(pretraining.describe(batches[0], tokenizer, rows=4))
    return 0


if __name__ == "__main__":
    errors.run(main)
