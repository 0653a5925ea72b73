"""Uses a run: continues text, fills in masked words, does the task it was tuned for.

    python predict.py generate   --workdir=runs/gpt_mini  --prompt="Returns a list"
    python predict.py fill_mask  --workdir=runs/bert_mini --text="The [MASK] of a list"

    python predict.py classify   --workdir=runs/topic --input=new.txt --output=new.jsonl
        --format=jsonl
    python predict.py similarity --workdir=runs/sts --text="A dog." --text_b="A cat."
    python predict.py tag        --workdir=runs/names < sentences.txt
    python predict.py answer     --workdir=runs/squad --question="Who?" --text="Ada."
    python predict.py choose     --workdir=runs/quiz --text="It rained." --answers="dry"
        --answers="wet"
    python predict.py embed      --workdir=runs/bert_mini --input=new.txt
        --output=new.npy
    python predict.py classify   --workdir=runs/glue_rte --input=tfds:glue/rte@test
        --format=glue --output=submission/

Texts come from --text, from the file of --input or from stdin. A labelled file (.tsv,
.csv, .jsonl, .parquet, .conll, SQuAD's .json) or tfds:NAME@SPLIT has the columns of the
run's task; the labels are not needed, and shown beside ("gold") where they are there.
Anything else is text, a record a line, its parts apart by tabs: the text or the two of
a pair; the words of a sentence, apart by spaces; question, context; context, question
(if the task has one), answers.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from data.pretraining import framing
from data.tasks import Task
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

import configs
import errors
import models
from data import inputs, packing, predictions, tasks, tokenizers
from data.labelled import Record
from data.tokenizers import Tokenizer
from errors import UserError
from models import heads
from training.checkpoints import load_params

KINDS = {
    "classify": "classification",
    "similarity": "similarity",
    "tag": "tagging",
    "answer": "span",
    "choose": "choice",
}
PRETRAINING = {"causal_lm": "generate", "masked_lm": "fill_mask"}
EMBEDDED_ROWS, EMBEDDED_STEP = 32, 32  # texts in a batch; its length is a multiple


def main(argv: list[str]) -> int:
    arguments = parse_arguments(argv[1:])
    folder = Path(arguments.workdir)
    return arguments.run_command(folder, configs.read_config(folder), arguments)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="predict.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    generation = commands.add_parser("generate", help="continue a text (GPT)")
    generation.add_argument("--prompt", default="", help="the text to continue")
    generation.add_argument("--max_tokens", type=int, default=100)
    generation.add_argument("--samples", type=int, default=1)
    generation.add_argument("--temperature", type=float, default=0.8, help="0: greedy")
    generation.add_argument("--top_k", type=int, default=0, help="0: all tokens")
    generation.add_argument("--top_p", type=float, default=1.0, help="nucleus; 1: all")
    generation.add_argument("--seed", type=int, default=0)
    generation.set_defaults(run_command=generate_command)

    filling = commands.add_parser("fill_mask", help="fill in [MASK] (BERT)")
    filling.add_argument("--top", type=int, default=5, help="candidates shown")
    filling.set_defaults(run_command=fill_mask_command)

    classify = commands.add_parser("classify", help="the label of a text or a pair")
    similarity = commands.add_parser("similarity", help="how much alike two texts are")
    for command in (classify, similarity):
        command.add_argument("--text_b", help="the second text of a pair")
    tag = commands.add_parser("tag", help="a tag for each word, apart by spaces")
    answer = commands.add_parser("answer", help="the words of a context that answer")
    answer.add_argument("--question", help="what is asked of --text")
    choose = commands.add_parser("choose", help="which of the answers is right")
    choose.add_argument("--question", help="if the task has questions")
    choose.add_argument("--answers", action="append", help="an answer; for each again")
    tuned = (classify, similarity, tag, answer, choose)
    for command in tuned:
        formats = ["table", "jsonl"]
        if command in (classify, similarity):
            formats.append("glue")
        command.add_argument(
            "--format",
            choices=formats,
            default="table",
            help="a table, the default, cuts long texts; glue is for GLUE's server",
        )
        command.add_argument("--workdir", required=True, help="a run of finetune.py")
        command.set_defaults(run_command=task_command)

    embed = commands.add_parser(
        "embed",
        help="a vector for each text",
        description="The final hidden states of each text, pooled to one vector: a "
        "JSON object a line, {place, embedding}, or with --output=NAME.npy a float32 "
        "array [texts, hidden size], in the order of the texts. What is longer than "
        "the model's positions is cut.",
    )
    embed.add_argument(
        "--pooling",
        choices=("mean", "first", "last"),
        default="mean",
        help="over all tokens of the text, [CLS] and the like included; or the first "
        "or last token's",
    )
    embed.add_argument("--column", default="text", help="of a labelled file [text]")
    embed.set_defaults(run_command=embed_command)

    embed.add_argument("--workdir", required=True, help="any run")
    for command in (generation, filling):
        command.add_argument("--workdir", required=True, help="a run of train.py")
    for command in (*tuned, embed):
        command.add_argument("--output", help="a file; without it, stdout")
    for command in (filling, *tuned, embed):
        source = command.add_mutually_exclusive_group()
        source.add_argument("--text", help="one text; without it, those of --input")
        source.add_argument("--input", help="a file or tfds:NAME@SPLIT; or else stdin")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Run:
    """What a run folder holds: the config, the tokenizer, the model, the weights."""

    folder: Path
    config: ConfigDict
    tokenizer: Tokenizer
    model: Any
    params: Any


def load_run(folder: Path, config: ConfigDict, model: Any) -> Run:
    """A run with its best parameters: of the lowest held-out loss, or best metric."""
    tokenizer = tokenizers.load(str(folder))
    params, _ = load_params(folder)
    return Run(folder, config, tokenizer, model, jax.device_put(params))


def load_pretrained(
    folder: Path, config: ConfigDict, objective: str, command: str
) -> Run:
    """A run of train.py.

    Raises:
      UserError: it was not trained for what is asked of it.
    """
    if (folder / "task.json").exists():
        task, _ = read_task(folder)
        raise UserError(
            f"{command} needs a {objective} run of train.py, but {folder} was "
            f"fine-tuned for {task.kind}: use predict.py {command_for(task.kind)}"
        )
    if config.objective.name != objective:
        raise UserError(
            f"{command} needs a {objective} run, but {folder} was trained with "
            f"objective.name={config.objective.name!r}: use predict.py "
            f"{PRETRAINING[config.objective.name]}"
        )
    if objective == "masked_lm" and not config.model.masked_lm_head:
        raise UserError(
            f"{command} needs a masked LM head, and the model of {folder} has none "
            "(model.masked_lm_head is False): fine-tune it, or use predict.py embed"
        )
    return load_run(folder, config, models.build(config.model.to_dict(), "float32"))


# Lines out.


def check_output(output: str | None) -> None:
    """Raises UserError where the file cannot be written, before anything is loaded."""
    if output is None:
        return
    path = Path(output)
    if path.is_dir():
        raise UserError(f"--output={path} is a folder: name a file in it")
    if not path.parent.is_dir():
        raise UserError(f"--output={path}: there is no folder {path.parent}: make it")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Any]:
    """A file to write bytes to that gets its name when all has been written."""
    partial_path = path.with_name(path.name + ".partial")
    try:
        with partial_path.open("wb") as file:
            yield file
        partial_path.replace(path)
    finally:
        partial_path.unlink(missing_ok=True)


def write(lines: Iterable[str], output: str | None) -> None:
    if output is None:
        for line in lines:
            print(line)
        return
    with whole_file(Path(output)) as file:
        for line in lines:
            file.write(line.encode() + b"\n")


# Continuing a text.


def generate_command(
    folder: Path, config: ConfigDict, arguments: argparse.Namespace
) -> int:
    check_sampling(arguments)
    run = load_pretrained(folder, config, "causal_lm", "generate")
    tokenizer = run.tokenizer
    prompt = tokenizer.encode_batch([arguments.prompt])[0]
    start = framing("causal_lm", False, tokenizer).document_start
    if start is not None:
        prompt = np.concatenate([np.array([start], np.int32), prompt])
    limit = run.config.model.max_positions
    if len(prompt) == 0:
        raise UserError(
            "--prompt is empty, and this run's tokenizer has no start token: write a "
            "few words to continue"
        )
    if len(prompt) + arguments.max_tokens > limit:
        raise UserError(
            f"the prompt has {len(prompt)} tokens and --max_tokens="
            f"{arguments.max_tokens}, but the model has {limit} positions: "
            "shorten one of them"
        )
    end = tokenizer.special_ids.get("end_of_text")
    never = [i for i in tokenizer.special_ids.values() if i != end]
    samples = generate(
        run.model,
        run.params,
        jnp.tile(prompt, (arguments.samples, 1)),
        jax.random.key(arguments.seed),
        num_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_k=min(arguments.top_k, tokenizer.vocab_size),
        top_p=arguments.top_p,
        banned=np.array([*never, *range(tokenizer.vocab_size, run.model.vocab_size)]),
    )
    for sample in np.asarray(samples):
        stops = np.flatnonzero(sample == end)
        kept = sample[: stops[0]] if len(stops) else sample
        print(arguments.prompt + tokenizer.decode(kept.tolist()))
        if arguments.samples > 1:
            print("-" * 40)
    return 0


def check_sampling(arguments: argparse.Namespace) -> None:
    """Raises UserError on sampling settings out of range."""
    for name, value, fine in (
        ("max_tokens", arguments.max_tokens, arguments.max_tokens >= 1),
        ("samples", arguments.samples, arguments.samples >= 1),
        ("temperature", arguments.temperature, arguments.temperature >= 0),
        ("top_k", arguments.top_k, arguments.top_k >= 0),
        ("top_p", arguments.top_p, 0 < arguments.top_p <= 1),
    ):
        if not fine:
            raise UserError(f"--{name}={value} is out of range: see generate --help")


@partial(
    jax.jit, static_argnames=("model", "num_tokens", "temperature", "top_k", "top_p")
)
def generate(
    model: Any,
    params: Any,
    prompt: Int[Array, "B T"],
    key: Any,
    *,
    num_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    banned: Int[Array, " N"],
) -> Int[Array, "B num_tokens"]:
    """Samples `num_tokens` after each prompt, with a key-value cache of static size.

    `banned` ids are never drawn.
    """
    batch, length = prompt.shape
    cache = model.empty_cache(batch, length + num_tokens)

    def logits_of(tokens: Array, cache: Any) -> tuple[Array, Any]:
        out = model.apply({"params": params}, tokens, deterministic=True, cache=cache)
        return out["logits"][:, -1].at[:, banned].set(-jnp.inf), out["cache"]

    def draw(carry: tuple, key: Any) -> tuple[tuple, Array]:
        logits, cache = carry
        token = sample_token(logits, key, temperature, top_k, top_p)
        return logits_of(token[:, None], cache), token

    keys = jax.random.split(key, num_tokens)
    return jax.lax.scan(draw, logits_of(prompt, cache), keys)[1].T


def sample_token(
    logits: Float[Array, "B V"],
    key: Any,
    temperature: float,
    top_k: int,
    top_p: float,
) -> Int[Array, " B"]:
    """One token a row: greedy at temperature 0, else drawn from the kept ones.

    `top_k` keeps the k most probable; `top_p` keeps the most probable ones whose share
    first reaches p (Holtzman et al. 2020, 3.1). 0 and 1 keep all.
    """
    if temperature == 0:
        return jnp.argmax(logits, axis=-1)
    logits = logits / temperature
    if top_k:
        kth = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        shares = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(shares, axis=-1) - shares
        last = jnp.where(before < top_p, ordered, jnp.inf).min(axis=-1, keepdims=True)
        logits = jnp.where(logits < last, -jnp.inf, logits)
    return jax.random.categorical(key, logits, axis=-1)


# Filling in masked words.


def fill_mask_command(
    folder: Path, config: ConfigDict, arguments: argparse.Namespace
) -> int:
    run = load_pretrained(folder, config, "masked_lm", "fill_mask")
    texts = [("--text", arguments.text)]
    if arguments.text is None:
        texts = inputs.read_lines(arguments.input)
    for _, text in texts:
        ids, masked = encode_masked(run, text)
        probabilities = fill_mask(run.model, run.params, ids, masked)
        print(text)
        for position, row in enumerate(probabilities):
            best = np.argsort(row)[::-1][: arguments.top]
            words = [f"{run.tokenizer.decode([i])} {row[i]:.3f}" for i in best]
            name = f"[MASK] {position + 1}" if len(masked) > 1 else "[MASK]"
            print(f"  {name}: " + "   ".join(words))
    return 0


def encode_masked(run: Run, text: str) -> tuple[np.ndarray, np.ndarray]:
    """`[CLS] text [SEP]`, the mask token's id at each [MASK], and where those are."""
    special = run.tokenizer.special_ids
    name = run.tokenizer.pieces[special["mask"]]
    if name not in text:
        raise UserError(f"no {name} in {text!r}: write {name} where a word is missing")
    parts = run.tokenizer.encode_batch(text.split(name))
    ids = [special["cls"], *parts[0]]
    for part in parts[1:]:
        ids += [special["mask"], *part]
    ids.append(special["sep"])
    if len(ids) > run.config.model.max_positions:
        raise UserError(
            f"the text has {len(ids)} tokens, but the model has "
            f"{run.config.model.max_positions} positions: shorten it ({text[:60]!r}...)"
        )
    ids = np.asarray(ids, np.int32)
    return ids, np.flatnonzero(ids == special["mask"])


def fill_mask(
    model: Any, params: Any, ids: np.ndarray, masked: np.ndarray
) -> np.ndarray:
    """Probabilities `[number of masks, V]` of the tokens at the masked positions."""
    out = model.apply(
        {"params": params},
        jnp.asarray(ids[None]),
        predict_positions=jnp.asarray(masked[None], jnp.int32),
        deterministic=True,
    )
    return np.asarray(jax.nn.softmax(out["logits"][0], axis=-1))


# The task that a run was fine-tuned for.


def command_for(kind: str) -> str:
    return next(command for command, own in KINDS.items() if own == kind)


def read_task(folder: Path) -> tuple[Task, tuple[str, ...]]:
    """The task of a run of finetune.py, and its labels in the order of their ids."""
    spec = json.loads((folder / "task.json").read_text())
    labels = tuple(spec["labels"])
    task = Task(
        spec["kind"],
        tuple(spec["text_columns"]),
        spec["label_column"],
        labels or None,
        tuple(spec["question_columns"]),
        tuple(spec["answer_columns"]),
    )
    return task, labels


def task_command(
    folder: Path, config: ConfigDict, arguments: argparse.Namespace
) -> int:
    """classify, similarity, tag, answer and choose."""
    check_task(folder, arguments.command)
    task, labels = read_task(folder)
    if not inputs.is_labelled(arguments.input):
        task = inputs.line_task(task)
    output, glue_name = arguments.output, ""
    if arguments.format == "glue":
        glue_name = glue_task(folder, config)
        output = glue_output(output, glue_name, arguments.input)
    check_output(output)
    records = records_of(arguments, task, labels)
    if config.run.precision == "float32":  # on every device, as finetune.py has it
        jax.config.update("jax_default_matmul_precision", "highest")
    model = heads.build(
        config.model.to_dict(),
        config.run.precision,
        kind=task.kind,
        num_labels=len(labels),
        head_dropout=config.head.dropout,
        auxiliary_lm=False,
    )
    predicted = predict(load_run(folder, config, model), task, labels, records)
    if arguments.format == "glue":
        write(predictions.glue(glue_name, labels, predicted), output)
    elif arguments.format == "jsonl":
        write(predictions.json_lines(predicted), output)
    else:
        write(predictions.table(task, labels, predicted), output)
    return 0


def check_task(folder: Path, command: str) -> None:
    """Raises UserError where the run was not fine-tuned for a command."""
    if not (folder / "task.json").exists():
        raise UserError(
            f"{command} needs a run of finetune.py with a {KINDS[command]} task, but "
            f"{folder} has no task.json: fine-tune it first, finetune.py "
            f"--config.init_from={folder}"
        )
    task, _ = read_task(folder)
    if task.kind != KINDS[command]:
        raise UserError(
            f"{command} is for {KINDS[command]}, but {folder} was fine-tuned for "
            f"{task.kind}: use predict.py {command_for(task.kind)}"
        )


def records_of(
    arguments: argparse.Namespace, task: Task, labels: tuple[str, ...]
) -> Iterator[Record]:
    """The record of `--text` and the flags beside it, or those of `--input` or stdin.

    Raises:
      UserError: flags that do not go together; see `inputs.read_records`.
    """
    flags = vars(arguments)
    given = {
        name: flags[name]
        for name in ("text", "text_b", "question", "answers")
        if name in flags and flags[name] is not None
    }
    if not given:
        yield from inputs.read_records(arguments.input, task, labels)
        return
    if "text" not in given:
        raise UserError(f"--{next(iter(given))} goes with --text, which is missing")
    if ("question" in given) != bool(task.question_columns):
        raise UserError(
            "--question is missing: the run's task has questions"
            if task.question_columns
            else "--question is given, but the run's task has none: remove it"
        )
    order = ("question", "text") if task.kind == "span" else ("text", "question")
    texts = [given[name] for name in (*order, "text_b") if name in given]
    if "answers" in given:
        texts += given["answers"]
    yield inputs.line_record(texts, task, labels, "--text")


def predict(
    run: Run, task: Task, labels: tuple[str, ...], records: Iterable[Record]
) -> Iterator[tuple[Record, dict[str, Any]]]:
    """Each record with its prediction, as finetune.py writes it, in order.

    Says on stderr which texts were cut.

    Raises:
      UserError: see `tasks.encode`.
    """
    data, shape = run.config.data, None
    for chunk in inputs.in_chunks(records):
        examples = tasks.encode(
            chunk,
            task,
            run.tokenizer,
            family=heads.FAMILIES[run.config.model.family],
            labels=labels,
            labelled=False,
            max_length=data.max_length,
            max_question_length=data.max_question_length,
            window_stride=data.window_stride,
        )
        if examples.cuts:
            print(tasks.cut_report(examples, data.max_length), file=sys.stderr)
        longest = int(examples.lengths.max())
        if shape is None or longest > shape.length:  # else what is compiled serves
            shape = packing.row_shape(
                examples,
                examples_per_batch=min(data.batch_size, len(examples.encoded)),
                longest_row=max(2 * data.max_length, longest),
                rows_multiple=1,
                packed=data.packed,
                read_once=True,
            )
        found: dict[int, Any] = {}
        for batch in packing.evaluation_batches(examples, shape):
            read = {name: batch[name] for name in heads.MODEL_INPUTS if name in batch}
            scores = np.asarray(task_scores(run.model, run.params, read))
            found |= dict(predictions.examples_of(task.kind, batch, scores))
        predicted = predictions.predict(
            task.kind,
            examples,
            chunk,
            found,
            text_column=task.text_columns[0],
            null_answers=run.config.task.null_answers,
        )
        for record, prediction in zip(chunk, predicted, strict=True):
            if record.fields.get(task.label_column):
                prediction["gold"] = record.fields[task.label_column]
            yield record, prediction


@partial(jax.jit, static_argnames="model")
def task_scores(
    model: heads.FineTuned, params: Any, batch: dict[str, Array]
) -> Float[Array, "..."]:
    return heads.scores_of(heads.apply(model, params, batch, None))


def glue_task(folder: Path, config: ConfigDict) -> str:
    """The name of the GLUE task of a run of configs/finetune/glue.py."""
    name = config.name.removeprefix("glue_").split("_")[0]
    if not config.name.startswith("glue_") or name not in predictions.GLUE:
        raise UserError(
            f"--format=glue is for runs of configs/finetune/glue.py, but {folder} has "
            f"config.name={config.name!r}: use --format=jsonl"
        )
    return name


def glue_output(output: str | None, name: str, source: str | None) -> str | None:
    """In a folder the file gets the name that GLUE wants."""
    if output is None or not (output.endswith("/") or Path(output).is_dir()):
        return output
    Path(output).mkdir(parents=True, exist_ok=True)
    file, _ = predictions.GLUE[name]
    if name == "mnli" and "mismatched" in (source or ""):
        file = "MNLI-mm.tsv"
    return str(Path(output) / file)


# Vectors of texts.


def embed_command(
    folder: Path, config: ConfigDict, arguments: argparse.Namespace
) -> int:
    check_output(arguments.output)
    fields = config.model.to_dict()
    if heads.FAMILIES[fields["family"]] == "encoder":
        fields |= heads.NO_HEADS
    run = load_run(folder, config, models.build(fields, "float32"))
    texts = [("--text", arguments.text)]
    if arguments.text is None:
        texts = inputs.read_texts(arguments.input, arguments.column)
    embedded = embed(run, texts, arguments.pooling)
    if arguments.output is not None and arguments.output.endswith(".npy"):
        vectors = np.array([vector for _, vector in embedded], np.float32)
        vectors = vectors.reshape(-1, run.config.model.hidden_size)  # of no texts, too
        with whole_file(Path(arguments.output)) as file:
            np.save(file, vectors)
        return 0
    lines = (
        json.dumps({"place": place, "embedding": vector.tolist()}, ensure_ascii=False)
        for place, vector in embedded
    )
    write(lines, arguments.output)
    return 0


def text_frame(run: Run) -> tuple[list[int], list[int]]:
    """The tokens before and after a text: as in the task, or as in pre-training."""
    family = heads.FAMILIES[run.config.model.family]
    if family == "encoder" or (run.folder / "task.json").exists():
        frame = tasks.make_frame(run.tokenizer, family)
        return [frame.first], [frame.last]
    start = framing("causal_lm", False, run.tokenizer).document_start
    return ([] if start is None else [start]), []


def embed(
    run: Run, texts: Iterable[tuple[str, str]], pooling: str
) -> Iterator[tuple[str, Float[np.ndarray, " D"]]]:
    """Place and vector of each text, float32, in order.

    Says on stderr which texts were cut to the model's positions.

    Raises:
      UserError: a text has no tokens, with its place.
    """
    before, after = text_frame(run)
    limit = run.config.model.max_positions
    room = limit - len(before) - len(after)
    for chunk in inputs.in_chunks(texts):
        places = [place for place, _ in chunk]
        pieces = run.tokenizer.encode_batch([text for _, text in chunk])
        for place, ids in zip(places, pieces, strict=True):
            if not len(ids):
                raise UserError(f"{place} has no text: write some, or remove it")
            if len(ids) > room:
                print(f"{place}: cut from {len(ids)} to {room} pieces", file=sys.stderr)
        framed = [[*before, *ids[:room].tolist(), *after] for ids in pieces]
        order = sorted(range(len(framed)), key=lambda index: len(framed[index]))
        rows = min(EMBEDDED_ROWS, len(framed))
        vectors = np.zeros((len(framed), run.config.model.hidden_size), np.float32)
        for begin in range(0, len(order), rows):
            chosen = order[begin : begin + rows]
            longest = len(framed[chosen[-1]])
            length = min(-(-longest // EMBEDDED_STEP) * EMBEDDED_STEP, limit)
            tokens = np.zeros((rows, length), np.int32)
            lengths = np.ones(rows, np.int32)  # of the rows that stay empty, too
            for row, index in enumerate(chosen):
                lengths[row] = len(framed[index])
                tokens[row, : lengths[row]] = framed[index]
            pooled = pooled_states(run.model, run.params, tokens, lengths, pooling)
            vectors[chosen] = np.asarray(pooled)[: len(chosen)]
        yield from zip(places, vectors, strict=True)


@partial(jax.jit, static_argnames=("model", "pooling"))
def pooled_states(
    model: Any,
    params: Any,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    pooling: str,
) -> Float[Array, "B D"]:
    """The final hidden states: the first, the last, or the mean over `lengths`."""
    is_token = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
    segments = is_token.astype(jnp.int32)
    out = model.apply({"params": params}, tokens, segments, deterministic=True)
    hidden = out["hidden"].astype(jnp.float32)
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "last":
        return jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
    return jnp.where(is_token[..., None], hidden, 0).sum(axis=1) / lengths[:, None]


if __name__ == "__main__":
    errors.run(main)
