"""Fine-tunes a pre-trained model on a labelled task.

    python finetune.py --config=configs/finetune/topic.py
        --config.init_from=runs/bert_mini --config.data.train=topics.tsv
        [--workdir=runs/topic] [--config.optim.learning_rate=1e-4 ...]
        [--seeds=5 | --show_config | --show_batch | --dry_run] [--distributed]

The same line again resumes the run in `--workdir`, or says that it is done; `--seeds=5`
makes five runs there and summarises them. Without `init_from` `config.model` is trained
from scratch with a tokenizer learnt from the texts; `--config.load_weights=False` is
the model of `init_from` from scratch, with its tokenizer.
"""

import configs
import errors

if __name__ == "__main__":  # mistakes in flags and --help need no jax
    errors.check(lambda argv: configs.parse(argv, "finetune.py"))

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

import models
from data import cache, draws, spelling, tokenizer_training, tokenizers, windows
from data.labelled import Record
from data.tokenizers import Tokenizer
from errors import UserError
from formats.transformers import misfit, unlike
from models import heads
from models.family import Family
from pretraining import PRETRAININGS
from tasks import KINDS, counts, packing, predictions, splits
from tasks.auxiliary_lm import AuxiliaryLm, auxiliary_lm
from tasks.encoding import Examples, Task, cut_report, make_frame
from tasks.record import Kind
from tasks.splits import Splits
from training import checkpoints, costs, loop, parallel, runs, step
from training.lock import one_writer
from training.metrics import Watch, draw_curves, read_metrics
from training.optimizers import (
    assign_groups,
    group_summary,
    layerwise_groups,
    parameter_sizes,
    parse_groups,
)
from training.runs import Evaluation, Feed, Job, Phase, Plan, Programs, Result
from training.step import LossTerms, Term


def main(argv: list[str]) -> int:
    flags = configs.parse(argv, "finetune.py")
    config = flags.config
    if flags.distributed:
        parallel.join_processes()
    if config.init_from == "None":
        config.init_from = ""
    workdir = Path(flags.workdir or f"runs/{config.name}")
    if flags.show_batch:
        print(show_batch(config))
    elif flags.dry_run:
        print(dry_run(config))
    elif flags.seeds:
        return finetune_seeds(config, workdir, flags.seeds)[-1].exit_status
    else:
        return finetune(config, workdir).exit_status
    return 0


def finetune(config: ConfigDict, workdir: Path, watch: Watch | None = None) -> Result:
    """Starts or resumes the run in `workdir`, tells of it, and predicts at its end;
    `watch`: `runs.execute`.

    Raises:
      UserError: settings, data or a run folder that do not fit each other.
    """
    configs.check(config)
    errors.check_folder(workdir, "--workdir")
    with costs.memory_explained(costs.REMEDIES):
        mesh = make_mesh(config)
        tuning = open_task(config, workdir)
        configs.check(tuning.config, workdir)
        job = make_job(tuning, mesh)
        with one_writer(workdir), loop.StopSignal() as stop:
            if parallel.is_first():
                configs.write_run_folder(workdir, tuning.config)
                record_origin(workdir, tuning)
                runs.record(workdir, job.plan, config.optim.learning_rate)
            result = runs.execute(
                job, workdir, stop, lambda first: describe(tuning, job, first), watch
            )
            if result.signal is None:
                write_results(tuning, job, workdir, stop)
                parallel.wait_for_all()
                result = dataclasses.replace(result, signal=stop.received)
            report(tuning, job, result)
    return result


def dry_run(config: ConfigDict) -> str:
    """Compiles the steps without making a state; what they cost, in words."""
    configs.check(config)
    with costs.memory_explained(costs.REMEDIES):
        mesh = make_mesh(config)
        job = make_job(open_task(config, None), mesh)
        count = models.count(job.plan.state.params, config.model)
        cost = runs.dry_run(job)
    return f"{config.name}: {count:,} parameters on {parallel.describe(mesh)}\n{cost}"


def show_batch(config: ConfigDict) -> str:
    """The first rows of the first batch, decoded."""
    configs.check(config)
    tuning = open_task(config, None)
    return described(tuning, tuning.feed("train").batches[0], rows=4)


def rates(config: ConfigDict) -> dict[str, Float[np.ndarray, " steps"]]:
    """Of each group of parameters, by its pattern, the rate of every update."""
    configs.check(config)
    job = make_job(open_task(config, None), make_mesh(config))
    steps = np.arange(job.total_steps)
    return {name: np.asarray(rate(steps)) for name, rate in job.plan.rates.items()}


def finetune_seeds(config: ConfigDict, workdir: Path, count: int) -> list[Result]:
    """Runs the seeds from `config.seed` on; writes and prints their summary.

    Small data sets differ much from seed to seed, and some runs fail: they predict one
    thing for all (BERT, section 5.1; Mosbach et al. 2021).
    """
    results, outcomes = [], {}
    for seed in range(config.seed, config.seed + count):
        own = ConfigDict(config.to_dict() | {"seed": seed})
        folder = workdir / f"seed_{seed}"
        print(f"\nseed {seed}: {folder}")
        results.append(finetune(own, folder))
        if results[-1].signal is not None:
            return results
        outcomes[seed] = json.loads((folder / "results.json").read_text())
    summary = summarize_seeds(outcomes)
    if parallel.is_first():
        target = workdir / "seeds.json"
        cache.write_whole(target, f"{json.dumps(summary, indent=2)}\n".encode())
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
    return results


def summarize_seeds(outcomes: dict[int, dict]) -> dict[str, Any]:
    """Median, mean and sample standard deviation of each metric over the seeds."""
    first = next(iter(outcomes.values()))
    summary: dict[str, Any] = {
        "failed_seeds": [s for s, outcome in outcomes.items() if outcome["failed"]],
        "splits": {},
    }
    for split, metrics in first["splits"].items():
        summary["splits"][split] = {}
        for name in metrics:
            values = [outcome["splits"][split][name] for outcome in outcomes.values()]
            summary["splits"][split][name] = {
                "median": statistics.median(values),
                "mean": statistics.fmean(values),
                "standard_deviation": (
                    statistics.stdev(values) if len(values) > 1 else 0.0
                ),
                "values": values,
            }
    return summary


# The task, its data, and where the weights come from.


@dataclasses.dataclass(frozen=True)
class Origin:
    """What fine-tuning starts from; without `params` fresh weights, or its own."""

    model: dict[str, Any]
    tokenizer: Tokenizer
    params: Any | None
    step: int

    @property
    def family(self) -> Family:
        return models.family_of(self.model)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A task read and encoded for the model that is to learn it.

    Attributes:
        config: with the model as it is, whatever run it came from.
        auxiliary: a language model that is trained beside the task.
    """

    config: ConfigDict
    task: Task
    kind: Kind
    origin: Origin
    splits: Splits
    auxiliary: AuxiliaryLm | None

    def feed(self, split: str) -> Feed:
        """The batches of a split; those of "train" have no end.

        Every process makes all rows, which is cheap, and its devices take theirs.
        """
        batches = self.splits.batches(split, self.config.seed)
        if self.auxiliary is not None:
            batches = self.auxiliary.added(batches, self.config.seed)
        inputs = self.origin.family.inputs
        reads = spelling.reader(self.origin.tokenizer, inputs, self.origin.model)
        return Feed(batches.map(reads), self.splits.shapes[split].rows, is_whole=True)


def open_task(config: ConfigDict, workdir: Path | None) -> Tuning:
    """Reads and encodes the task for the model of `init_from`, of `config`, or of the
    run that resumes in `workdir`.

    Raises:
      UserError: training data that nothing can be learnt from, or which the tokenizer
        mostly does not know; see `splits.read`,
        `read_origin` and `splits.encode`.
    """
    kind = KINDS[config.task.kind]
    task = splits.make_task(config, kind)
    records, labels = parallel.first_alone(
        lambda: splits.read(config.data, config.seed, kind, task)
    )
    why = kind.misfit(records["train"], task, labels, config.task.metric)
    if why:
        raise UserError(why)
    origin = read_origin(config, task, records["train"], workdir)
    frame = make_frame(origin.tokenizer, origin.model)
    encoded = splits.encode_all(
        config.data, kind, task, origin.tokenizer, frame, records, labels
    )
    for name, examples in encoded.examples.items():
        cut = cut_report(examples, config.data.max_length)
        print(f"{name}: {len(records[name])} examples; {cut}")
        if repeated := splits.repeated_id(records[name]):
            print(f"{name}: {repeated}")
        unknown = unknown_share(origin.tokenizer, examples)
        told = (
            f"{name}: {unknown:.1%} of the pieces are unknown to the tokenizer: begin "
            f"from a run on such text, or from one that knows all: {tokenizers.FITTING}"
        )
        if name == "train" and unknown > tokenizers.UNKNOWN_LIMIT:
            raise UserError(told)
        if unknown > tokenizers.UNKNOWN_SHARE:
            print(told)
    auxiliary = None
    if config.objective.lm_weight:
        auxiliary = auxiliary_lm(
            models.outputs_of(origin.model, new_heads=True),
            origin.tokenizer,
            per_sequence=config.objective.lm_per_sequence,
            mask_rate=config.objective.mask_rate,
            longest_row=max(shape.length for shape in encoded.shapes.values()),
        )
    whole = ConfigDict(config.to_dict() | {"model": origin.model})
    return Tuning(whole, task, kind, origin, encoded, auxiliary)


def unknown_share(tokenizer: Tokenizer, examples: Examples) -> float:
    """Of the pieces of encoded texts."""
    tokens = [example.arrays["tokens"] for example in examples.encoded]
    unknown, pieces = tokenizers.count_pieces(tokenizer, np.concatenate(tokens))
    return unknown / max(1, pieces)


def read_origin(
    config: ConfigDict, task: Task, train: list[Record], workdir: Path | None
) -> Origin:
    """Model and tokenizer of `init_from`, else what the config says.

    A run that resumes in `workdir` has its own. Dropout and precision are always the
    config's.

    Raises:
      UserError: no such run, or texts longer than the model's table of positions.
    """
    resumes = workdir is not None and checkpoints.has_checkpoint(workdir)
    if resumes or config.init_from:
        folder = workdir if resumes else Path(config.init_from)
        fields = configs.read_config(folder).model.to_dict()
        own = ("precision", *models.family_of(fields).dropouts)
        fields |= {name: config.model[name] for name in own}
        with_weights = config.load_weights and not resumes
        params, at = checkpoints.load_params(folder) if with_weights else (None, 0)
        roles = tokenizers.parse_roles(config.data.tokenizer.special_tokens)
        origin = Origin(fields, tokenizers.load(str(folder), roles), params, at)
    else:
        tokenizer = load_or_train_tokenizer(config, task, train)
        origin = Origin(config.model.to_dict(), tokenizer, None, 0)
    origin = opened(origin)
    if config.data.max_length > origin.model["max_positions"]:
        raise UserError(
            f"data.max_length={config.data.max_length} is longer than the model's "
            f"{origin.model['max_positions']} positions: lower it"
        )
    reads_words = "tokens" in origin.family.inputs
    if reads_words and origin.tokenizer.vocab_size > origin.model["vocab_size"]:
        raise UserError(
            f"the tokenizer has {origin.tokenizer.vocab_size} pieces, but model."
            f"vocab_size={origin.model['vocab_size']}: raise it"
        )
    return origin


def opened(origin: Origin) -> Origin:
    """Its tokenizer, where the model reads characters, knows every word."""
    inputs = origin.family.inputs
    tokenizer = spelling.opened(origin.tokenizer, inputs, origin.model)
    return dataclasses.replace(origin, tokenizer=tokenizer)


def load_or_train_tokenizer(
    config: ConfigDict, task: Task, train: list[Record]
) -> Tokenizer:
    """For a model from scratch: of `data.tokenizer.path`, or learnt from the texts."""
    settings = config.data.tokenizer.to_dict()
    path, roles, casing = (settings.pop(name) for name in tokenizers.OF_BROUGHT)
    if path:
        found = tokenizers.load(path, tokenizers.parse_roles(roles), casing)
        print(f"tokenizer {path}: {tokenizers.case_note(found)}")
        return found
    return tokenizer_training.train(
        splits.texts(train, task),
        **settings,
        vocab_size=config.model.vocab_size,
        special_tokens=next(
            way.special_tokens
            for way in PRETRAININGS.values()
            if {*way.outputs} <= models.outputs_of(config.model, new_heads=True)
        ),
    )


# Model + head + loss -> steps.


def make_mesh(config: ConfigDict) -> Mesh:
    runs.start_jax(config.model.precision, cache.cache_folder() / "xla")
    return parallel.make_mesh(**config.run.mesh)


def make_job(tuning: Tuning, mesh: Mesh) -> Job:
    """What the run trains, on what, and how it is judged."""
    config, origin = tuning.config, tuning.origin
    optim, run = config.optim, config.run
    models.check_cuts(origin.model, mesh.shape)
    train = tuning.feed("train")
    steps_per_epoch = tuning.splits.steps_per_epoch
    total_steps = max(1, round(optim.epochs * steps_per_epoch))
    model = heads.build(
        origin.model,
        tuning.kind.head,
        num_labels=len(tuning.splits.labels),
        head=config.head.to_dict(),
        keep=() if tuning.auxiliary is None else (tuning.auxiliary.output,),
        remat=run.remat,
        fused_attention=run.fused_attention,
    )
    params = runs.shapes_of(model, train.batches[0])
    plan = runs.make_plan(
        params,
        make_loss_terms(tuning, model),
        make_groups(tuning, params),
        optim=optim,
        warmup_steps=warmup_steps(optim, total_steps),
        total_steps=total_steps,
        placement=origin.family.placement,
        mesh=mesh,
    )

    def evaluate(params: Any, part: dict) -> tuple[dict[str, Term], Any]:
        scores = model.apply(params, part)["scores"]
        return plan.loss_terms(params, part, None), scores

    return Job(
        run=run,
        seed=config.seed,
        plan=plan,
        phases=(Phase(0, train, flops_of_an_update(tuning, params)),),
        held_out={"eval": Evaluation(tuning.feed("eval"), evaluate)},
        total_steps=total_steps,
        eval_every_steps=max(1, round(optim.eval_every_epochs * steps_per_epoch)),
        measure=lambda programs, params, stop: measure(
            tuning, "eval", mesh, programs, params, stop
        )[0],
        criterion=lambda values: -values[config.task.metric],
        patience=optim.patience,
        weights_kept={},
        fresh=lambda: fresh_params(tuning, model, train.batches[0], plan),
    )


def make_loss_terms(tuning: Tuning, model: models.Model) -> LossTerms:
    """The task's loss + lm_weight * a language model's (GPT-1, section 3.2) +
    mix_penalty * the squared weights of the layers (ELMo, section 3.2)."""
    head = tuning.config.head
    weight, chunks = tuning.config.objective.lm_weight, tuning.config.run.logit_chunks

    def terms(params: Any, batch: dict, dropout_key: Any) -> dict[str, Term]:
        output = model.apply(params, batch, dropout_key)
        terms = {tuning.task.kind: tuning.kind.loss(output["scores"], batch)}
        if tuning.auxiliary is not None:
            loss, count, metrics = tuning.auxiliary.loss(
                model, params, batch, output, dropout_key, chunks
            )
            terms["auxiliary_lm"] = weight * loss, count, metrics | {"nats": loss}
        if head.layers == "mix":
            mix = params["head"]["features"]["mix"]["weights"]
            terms["mix"] = head.mix_penalty * (mix**2).sum(), np.float32(1.0), {}
        return terms

    return terms


def make_groups(tuning: Tuning, params: Any) -> Any:
    """Of each parameter the group in `optim.groups`.

    With `optim.layerwise` its rates for what no group before names; a last group ".*"
    gives way to them.
    """
    optim, fields = tuning.config.optim, tuning.origin.model
    groups, layers = parse_groups(optim.groups), optim.layerwise
    if layers.decay != 1.0 or layers.thaw_every:
        if groups and groups[-1].pattern == ".*":
            groups = groups[:-1]
        groups = layerwise_groups(
            params,
            lambda path: tuning.origin.family.depth(fields, path),
            fields["num_layers"],
            decay=layers.decay,
            top_exponent=layers.top_exponent,
            thaw_every=layers.thaw_every,
            first=groups,
        )
    return assign_groups(
        params, groups, weight_decay=optim.weight_decay, no_decay=optim.no_decay
    )


def warmup_steps(optim: ConfigDict, total_steps: int) -> int:
    """A warm-up takes at least one step, and leaves one."""
    steps = round(optim.warmup_fraction * total_steps)
    return min(max(steps, int(optim.warmup_fraction > 0)), total_steps - 1)


def flops_of_an_update(tuning: Tuning, params: Any) -> float:
    """Those of the base, as if nothing were frozen."""
    shape, fields = tuning.splits.shapes["train"], tuning.origin.model
    above = tuning.origin.family.depth(fields, "head/")
    sizes = {
        path: size
        for path, size in parameter_sizes(params).items()
        if 0 < tuning.origin.family.depth(fields, path) < above
    }
    forward = tuning.origin.family.forward_flops(fields, sizes, shape.length, 0)
    return 3 * forward * shape.rows * shape.length


def fresh_params(tuning: Tuning, model: models.Model, batch: dict, plan: Plan) -> Any:
    """Fresh parameters, with the weights of the origin where it brings some."""
    config, origin, planned = tuning.config, tuning.origin, plan.state.params
    params = runs.init_params(model, batch, config.seed, parallel.places(planned))
    if origin.params is None:
        return params
    check_head(tuning, Path(config.init_from))
    params, report = checkpoints.take_weights(
        params,
        models.fill_vocabulary(origin.params, origin.model),
        config.init_from,
        may_be_new=(*config.allow_missing, r"head/.*"),
        may_be_left=(*config.allow_missing, r"head/.*", origin.family.pretraining_only),
    )
    print(f"weights of {config.init_from} (step {origin.step}):\n{report}")
    return parallel.place(params, planned)


def check_head(tuning: Tuning, folder: Path) -> None:
    """A head that was trained before must be for the same kind and labels.

    Raises:
      UserError: lists both, unless `allow_missing` lets all of `head/` be new.
    """
    if not splits.is_task_run(folder) or "head/.*" in tuning.config.allow_missing:
        return
    kind, labels = splits.load_task(folder)
    mine = tuning.splits.labels
    if (kind, labels) != (tuning.task.kind, mine):
        raise UserError(
            f"{folder} has a head for {kind} with the labels "
            f"{', '.join(labels) or 'none'}; this task is {tuning.task.kind} with "
            f"{', '.join(mine) or 'none'}: start from the pre-trained run"
        )


# Evaluation and predictions.


def measure(
    tuning: Tuning,
    split: str,
    mesh: Mesh,
    programs: Programs,
    params: Any,
    stop: loop.StopSignal,
) -> tuple[dict[str, float] | None, list[dict]]:
    """Every example of a split once: its values, and a prediction for every record.

    The values are None when told to stop, and {} without labels.
    """
    feed, kind, task = tuning.feed(split), tuning.kind, tuning.task
    examples, records = tuning.splits.examples[split], tuning.splits.records[split]
    terms, found = [], {}
    for batch in feed.batches:
        if stop.received:
            return None, []
        placed = feed.placed(batch, mesh, programs.micro_batches)
        term, scores = programs.eval_steps[split](params, placed)
        terms.append(term)
        found |= dict(kind.found(batch, np.asarray(scores)[: len(batch["tokens"])]))
    predicted = predictions.predict(kind, examples, records, found, task)
    if not tuning.splits.is_labelled(split):
        return {}, predicted
    for prediction, record in zip(predicted, records, strict=True):
        prediction["gold"] = record.fields[task.label_column]
    means = step.term_means(loop.sum_terms(terms))
    values = {name: float(value) for name, value in means.items()}
    return values | kind.measure(predicted, examples.labels, task), predicted


def write_results(
    tuning: Tuning, job: Job, workdir: Path, stop: loop.StopSignal
) -> None:
    """Predicts with the best weights: results.json, predictions_SPLIT.jsonl."""
    best, at = checkpoints.load_params(workdir)
    before = workdir / "results.json"
    if before.exists() and json.loads(before.read_text())["best_step"] == at:
        print(f"results of step {at}: {before}")
        return
    best = models.fill_vocabulary(best, tuning.origin.model)
    params = parallel.place(best, job.plan.state.params)
    results: dict[str, Any] = {"best_step": at, "failed": False}
    results |= {"splits": {}, "lines": {}}
    for split in tuning.splits.records:
        if split == "train":
            continue
        asked = Evaluation(tuning.feed(split), job.held_out["eval"].evaluate)
        programs = runs.compile_evaluations(job, {split: asked})
        values, predicted = measure(
            tuning, split, job.plan.mesh, programs, params, stop
        )
        if values is None:  # told to stop
            return
        target = workdir / f"predictions_{split}.jsonl"
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in predicted)
        if parallel.is_first():
            cache.write_whole(target, "".join(lines).encode())
        results["splits"][split] = values
        shown = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
        print(f"{split} (weights of step {at}): {shown or 'no labels'}; {target}")
        if split == "eval" and tuning.kind.is_constant(predicted):
            results["failed"] = True
            print(
                "FAILED: the run predicts the same for every example. Usual causes:\n"
                f"{usual_causes(tuning, job.total_steps)}"
            )
    if parallel.is_first():
        results["lines"] = lines_to_beat(tuning)
        for split, lines in results["lines"].items():
            metric = tuning.config.task.metric
            own = f"{split} {metric} {results['splits'][split][metric]:.4g}"
            for name, line in lines.items():
                print(f"  {own}; {name} {line[metric]:.4g}")
        cache.write_whole(before, f"{json.dumps(results, indent=2)}\n".encode())


def lines_to_beat(tuning: Tuning) -> dict[str, dict[str, dict[str, float]]]:
    """What those come to who only count the words of the same examples, by name, on
    each split that has labels; learnt once for all of them."""
    kind, task, labels = tuning.kind, tuning.task, tuning.splits.labels
    records = {
        split: own
        for split, own in tuning.splits.records.items()
        if split != "train" and tuning.splits.is_labelled(split)
    }
    train = counts.thinned(tuning.splits.records["train"])
    asked = [one for own in records.values() for one in own]
    found = kind.lines(task, labels, train, asked)
    lines: dict[str, dict[str, dict[str, float]]] = {}
    first = 0
    for split, own in records.items():
        lines[split] = {}
        for name, predicted in found.items():
            mine = predicted[first : first + len(own)]
            for prediction, record in zip(mine, own, strict=True):
                prediction["gold"] = record.fields[task.label_column]
            lines[split][name] = kind.measure(mine, labels, task)
        first += len(own)
    return lines


def usual_causes(tuning: Tuning, steps: int) -> str:
    """Of a run that failed, and how it is with them here."""
    optim, data = tuning.config.optim, tuning.splits.examples["train"]
    unknown = unknown_share(tuning.origin.tokenizer, data)
    return (
        f"  too few updates: {steps} in {optim.epochs:g} epochs; raise optim.epochs\n"
        f"  the rate: optim.learning_rate={optim.learning_rate:g}; try a third of it, "
        "and three times as much\n"
        f"  text that the tokenizer does not know: {unknown:.1%} of the pieces are "
        "unknown; above a few percent begin from a run on such text\n"
        "  chance: --seeds=5 shows how often it fails"
    )


# Recording, reporting.


def record_origin(workdir: Path, tuning: Tuning) -> None:
    """Keeps with the run its task, labels, tokenizer and the digests of its data.

    Raises:
      UserError: the run was begun on other data, or with masks drawn otherwise.
    """
    digests, target = tuning.splits.digests(), workdir / "data.json"
    if target.exists():
        before = json.loads(target.read_text())
        if tuning.auxiliary is not None and tuning.auxiliary.draws:
            draws.check_version(before, workdir)
        changed = [name for name in digests if digests[name] != before[name]]
        if changed:
            raise UserError(
                f"the {' and '.join(changed)} data of the run in {workdir} is not what "
                "it was when the run began: use another --workdir"
            )
        return
    tuning.origin.tokenizer.save(workdir)
    splits.save_task(workdir, tuning.task, tuning.splits.labels)
    made_of = digests | {"draws_version": draws.VERSION}
    target.write_text(json.dumps(made_of, indent=2) + "\n")


def describe(tuning: Tuning, job: Job, first: int) -> None:
    """Prints what is about to be trained, on what, and the line to beat."""
    config, plan = tuning.config, job.plan
    count = models.count(plan.state.params, config.model)
    shape = tuning.splits.shapes["train"]
    tokens = tuning.splits.examples["train"].lengths.sum()
    steps_per_epoch = tuning.splits.steps_per_epoch
    padding = 1 - tokens / (steps_per_epoch * shape.rows * shape.length)
    if first < job.total_steps:
        shown = described(tuning, job.batch(first), rows=1)
        print(f"update {first}, {windows.glimpse(shown)}")
    print(
        f"{group_summary(plan.state.params, plan.groups, config.optim.learning_rate)}\n"
        "(each parameter: parameters.txt in the run folder)\n"
        f"{config.name}: {count:,} parameters on {parallel.describe(plan.mesh)}; "
        f"labels: {', '.join(tuning.splits.labels) or 'none'}\n"
        f"batches of {shape.rows} rows of {shape.length} tokens, {padding:.1%} "
        f"padding; {steps_per_epoch:.1f} steps an epoch\n"
        f"line to beat: {floor(tuning):.3f} without reading the text; "
        f"{job.told(first)}",
        flush=True,
    )
    if reason := misfit(config.model) or unlike(config.head):
        print(f"remark: convert.py cannot export this run: {reason}")


def described(tuning: Tuning, batch: dict, rows: int) -> str:
    """The first rows of a training batch, decoded."""
    examples, tokenizer = tuning.splits.examples["train"], tuning.origin.tokenizer
    return packing.describe(tuning.kind, batch, examples, tokenizer, rows)


def floor(tuning: Tuning) -> float:
    """The loss of who does not look at the text."""
    return tuning.kind.floor(tuning.splits.examples["train"])


def report(tuning: Tuning, job: Job, result: Result) -> None:
    """Draws the curves, and says how the run ended."""
    if parallel.is_first():
        draw_curves(
            read_metrics(result.folder / "metrics.jsonl"),
            result.folder / "curves.png",
            [("without reading the text", "loss", floor(tuning))],
            ("loss", tuning.config.task.metric),  # the one that chooses the checkpoint
        )
    if result.signal is not None:
        print(runs.stopped(result))
    elif result.step < job.total_steps:
        print(f"no better evaluation in {job.patience}: stopped early")


if __name__ == "__main__":
    errors.run(main)
