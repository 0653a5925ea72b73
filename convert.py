"""Checkpoints in and out: Hugging Face folders, Google's BERT, OpenAI's GPT-1, ELMo.

    python convert.py import --source=FOLDER_OR_HUB_NAME --workdir=runs/bert_base
    python convert.py export --workdir=runs/bert_base --target=FOLDER

`import` takes a folder of transformers (model_type bert, gpt2 or openai-gpt), a folder
of google-research/bert (bert_config.json, vocab.txt and a TF1 checkpoint; needs the
extra tf1), the folder `model` of finetune-transformer-lm (params_0.npy ...), a folder
of AllenNLP's ELMo (options.json and its weights), or the name of a model on the Hugging
Face hub. It makes a run folder for finetune.py and predict.py. `export` writes a folder
that transformers loads.
"""

import argparse

import errors


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="convert.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    importing = commands.add_parser("import", help="a checkpoint into a run folder")
    importing.add_argument("--source", required=True, help="a folder, or a hub name")
    importing.add_argument("--workdir", required=True, help="the new run folder")
    exporting = commands.add_parser("export", help="a run into a transformers folder")
    exporting.add_argument("--workdir", required=True, help="a run folder")
    exporting.add_argument("--target", required=True, help="the new folder")
    return parser.parse_args(argv)


if __name__ == "__main__":  # mistakes in flags and --help need no jax
    errors.check(lambda argv: parse_arguments(argv[1:]))

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers as tokenizers_library
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

import configs
import models
from configs import elmo
from configs.finetune import OF_KIND
from data import tokenizers
from data.tokenizers import JsonTokenizer, Tokenizer
from errors import UserError
from formats.allennlp import read_allennlp
from formats.google import read_google
from formats.names import (
    BUFFERS,
    FORMATS,
    Architecture,
    Flat,
    Shape,
    find,
    pretraining_heads,
    rows_of,
)
from formats.openai import read_openai
from formats.source import Source, Weight
from formats.transformers import (
    exported_architecture,
    exported_task,
    read_transformers,
    write_transformers,
)
from pretraining import way_of
from tasks import KINDS, splits
from training.checkpoints import Checkpoints, load_params
from training.step import TrainState

READERS = {  # by the file that describes the folder
    "config.json": read_transformers,
    "bert_config.json": read_google,
    "params_shapes.json": read_openai,
}
ELMO_FILE = "options.json"


class Unchanging(np.ndarray):
    """Saved without the copy by which orbax guards against changes meanwhile.

    With that copy bert-large took three times the memory of its file, without it two.
    """

    def __deepcopy__(self, memo: dict) -> "Unchanging":
        return self


def import_model(source: str, workdir: Path) -> None:
    """Makes the run folder `workdir` of a checkpoint from elsewhere.

    Raises:
      UserError: names what is missing, too much, misshapen or not supported.
    """
    check_is_new("workdir", workdir)
    folder = find_folder(source)
    if (folder / ELMO_FILE).is_file():
        import_elmo(folder, workdir)
        return
    given = read_source(folder)
    tokenizer = given.tokenizer
    fields = given.fields | pretraining_heads(given.architecture, given.weights)
    fields["precision"] = "float32"  # the numbers of its release
    if tokenizer.vocab_size > fields["vocab_size"]:
        raise UserError(
            f"the tokenizer of {source} has {tokenizer.vocab_size} pieces, but its "
            f"model {fields['vocab_size']}: they do not belong together"
        )
    params, left = take(given, fields, source)
    form = FORMATS[given.architecture.model_type]
    if form.lacks:
        tokenizer, new = add_special_tokens(tokenizer, form.lacks)
        table, rows = grown(params["embeddings/token/embedding"], tokenizer.vocab_size)
        params["embeddings/token/embedding"] = table
        fields["vocab_size"] = len(table)
        print(
            f"special tokens added: {', '.join(new) or 'none'}; rows added to the "
            f"table, N(0, 0.02): {rows}"
        )
    labels = label_names(given, params)

    write_weights(workdir, tokenizer, params, fields)
    config = make_config(given, fields, labels, workdir)
    if given.architecture.kind:
        task = splits.make_task(config, KINDS[config.task.kind])
        splits.save_task(workdir, task, labels)
    configs.write_run_folder(workdir, config)  # last: a folder that has it is whole
    count = sum(array.size for array in params.values())
    print(
        f"{source} -> {workdir}: {given.architecture.name}, {count:,} parameters, "
        f"labels: {', '.join(labels) or 'none'}\n"
        f"weights left: {', '.join(left) or 'none'}"
    )


def import_elmo(folder: Path, workdir: Path) -> None:
    """Makes the run folder `workdir` of an ELMo, which comes without its softmax.

    Raises:
      UserError: see `formats/allennlp.py`.
    """
    fields, params, tokenizer = read_allennlp(folder)
    write_weights(workdir, tokenizer, params, fields)
    config = elmo.get_config()
    config.name = workdir.name
    config.data.tokenizer.path = str(workdir)
    config.model = ConfigDict(fields)
    configs.write_run_folder(workdir, config)
    count = sum(array.size for array in params.values())
    print(
        f"{folder} -> {workdir}: ELMo, {count:,} parameters, without a softmax; "
        f"{tokenizer.vocab_size:,} words of a vocabulary"
    )


def write_weights(
    workdir: Path, tokenizer: Tokenizer, params: Flat, fields: dict[str, Any]
) -> None:
    """The tokenizer and the one checkpoint of an import."""
    workdir.mkdir(parents=True, exist_ok=True)
    tokenizer.save(workdir)
    checkpoints = Checkpoints(workdir)
    filled = models.fill_vocabulary(params, fields)
    uncopied = {path: array.view(Unchanging) for path, array in filled.items()}
    state = TrainState(np.zeros((), np.int32), unflatten_dict(uncopied, sep="/"), ())
    checkpoints.save(state)
    checkpoints.wait()
    checkpoints.close()


def check_is_new(flag: str, folder: Path) -> None:
    """Raises UserError unless there is nothing, or an empty folder to be written to."""
    errors.check_folder(folder, f"--{flag}")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--{flag}={folder} is not empty: name a new folder")


def make_config(
    given: Source, fields: dict[str, Any], labels: tuple[str, ...], workdir: Path
) -> ConfigDict:
    """A whole config: the paper's of train.py, or that of a kind of task."""
    if given.architecture.kind:
        config = OF_KIND[given.architecture.kind]()
        config.head.dropout = given.head_dropout
        config.task.labels = labels
        config.task.null_position = "first"  # as transformers' run_qa.py trains it
    else:
        form = FORMATS[given.architecture.model_type]
        config = form.config()
        length = min(config.data.sequence_length, fields["max_positions"])
        config.data.update(sequence_length=length, phases=())
        if not {*way_of(config.objective.name).outputs} <= models.outputs_of(fields):
            config.objective.name = form.lesser_objective
            configs.keep_objective(config)
    config.name = workdir.name
    config.data.tokenizer.path = str(workdir)
    config.model = ConfigDict(fields | {"precision": config.model.precision})
    return config


def find_folder(source: str) -> Path:
    """The folder, or that of a model that is fetched from the hub.

    Raises:
      UserError: there is none, or the hub cannot be reached.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source):
        raise UserError(f"--source={source} is neither a folder nor a hub name")
    import huggingface_hub

    texts = ["*.json", "vocab.txt", "merges.txt"]
    try:
        for weights in ("*.safetensors", "pytorch_model*.bin"):
            folder = Path(
                huggingface_hub.snapshot_download(
                    source, allow_patterns=[*texts, weights], ignore_patterns="*/*"
                )
            )
            if any(folder.glob(weights)):
                break
    except (*hub_errors(), OSError) as error:  # the network's are OSErrors, too
        if errors.system_fault(error, []):  # of its cache
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--source={source} is no folder here, and the hub gives no model of that "
            f"name: {reason}. Check the name and the network, or bring the folder"
        ) from error
    return folder


def hub_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises: its own errors, and its HTTP library's, which is
    another one in each of its versions."""
    from huggingface_hub import errors as hub

    named = (each for each in vars(hub).values() if isinstance(each, type))
    return tuple(each for each in named if issubclass(each, Exception))


def read_source(folder: Path) -> Source:
    """What the folder holds, by the file that describes it."""
    for name, read in READERS.items():
        if (folder / name).is_file():
            return read(folder)
    raise UserError(
        f"{folder} holds no checkpoint that is known: it has none of "
        f"{', '.join(READERS)}, {ELMO_FILE}"
    )


def take(
    given: Source, fields: dict[str, Any], source: str
) -> tuple[Flat, tuple[str, ...]]:
    """The parameters, float32, and the names of the weights that were left.

    Raises:
      UserError: weights that are missing, misshapen, or have no place here.
    """
    form, weights = FORMATS[given.architecture.model_type], dict(given.weights)
    left = [*given.left, *(name for name in weights if re.fullmatch(BUFFERS, name))]
    for name in left:
        weights.pop(name, None)
    for copy, original in form.tied.items():
        if copy in weights:
            left.append(copy)
            same = weights.setdefault(original, weights[copy])
            if not np.array_equal(same.read(), weights.pop(copy).read()):
                raise UserError(
                    f"{source}: {copy} differs from {original}; the model here has one "
                    "array for both"
                )
    rows, params, wrong, used = rows_of(given.architecture), {}, [], set()
    for path, shape in expected_shapes(fields, given.architecture, weights).items():
        place = find(path, rows)
        used.add(place.name)
        if place.name not in weights:
            wrong.append(f"{place.name} is missing")
        elif weights[place.name].shape != place.shape(shape):
            wrong.append(
                f"{place.name} is {weights[place.name].shape}, not {place.shape(shape)}"
            )
        elif not wrong:
            array = weights[place.name].read()
            array = array.T if place.transposed else array
            if place.third is not None:
                array = np.split(array, 3, axis=-1)[place.third]
            params[path] = np.ascontiguousarray(array, np.float32)
    extra = sorted(weights.keys() - used)
    if wrong or extra:
        wrong = list(dict.fromkeys(wrong))  # three parts of one weight say it once
        shown = [*wrong[:3], *(f"{name} has no place here" for name in extra[:3])]
        raise UserError(
            f"the weights of {source} are not those of {given.architecture.name} as "
            f"its config describes it: {'; '.join(shown)} ({len(wrong) + len(extra)} "
            "in all)"
        )
    return params, tuple(left)


def expected_shapes(
    fields: dict[str, Any], architecture: Architecture, weights: dict[str, Weight]
) -> dict[str, Shape]:
    """The parameters that the model has here, unpadded, and its head's."""
    batch = {"tokens": np.zeros((1, 1), np.int32)}

    def init(key: Any, batch: Any) -> Any:
        params = models.build(fields).init(key, batch)
        return models.cut_vocabulary(flatten_dict(params, sep="/"), fields)

    abstract = jax.eval_shape(init, jax.random.key(0), batch)
    flat = {path: leaf.shape for path, leaf in abstract.items()}
    if architecture.kind:
        name = f"{architecture.head}.weight"
        labels = weights[name].shape[0] if name in weights else 1
        count = KINDS[architecture.kind].head.num_outputs(labels)
        flat["head/dense/kernel"] = (fields["hidden_size"], count)
        flat["head/dense/bias"] = (count,)
    return flat


def add_special_tokens(
    tokenizer: Tokenizer, names: tuple[str, ...]
) -> tuple[Tokenizer, list[str]]:
    """With those of the names at the end that it lacks, and which these are."""
    new = [name for name in names if name not in tokenizer.pieces]
    if not new or not isinstance(tokenizer, JsonTokenizer):
        return tokenizer, []
    library = tokenizers_library.Tokenizer.from_str(tokenizer.serialized)
    library.add_special_tokens(new)
    return JsonTokenizer(library.to_str(), tokenizer.roles), new


def grown(table: np.ndarray, rows: int) -> tuple[np.ndarray, int]:
    """The table with at least so many rows, and how many are new: N(0, 0.02)."""
    new = max(0, rows - len(table))
    fresh = np.random.default_rng(0).normal(0, 0.02, (new, table.shape[1]))
    return np.concatenate([table, fresh.astype(np.float32)]) if new else table, new


def label_names(given: Source, params: Flat) -> tuple[str, ...]:
    """The labels of the task; where config.json has none, LABEL_0, ... as there."""
    name = given.architecture.kind
    if not name or KINDS[name].labels is None:
        return ()
    if KINDS[name].head.num_outputs(2) == 1:  # the head does not tell how many
        return given.labels or ("LABEL_0", "LABEL_1")
    count = len(params["head/dense/bias"])
    labels = given.labels or tuple(f"LABEL_{i}" for i in range(count))
    if len(labels) != count:
        raise UserError(
            f"config.json has {len(labels)} labels in id2label, but the head "
            f"{given.architecture.head} has {count}"
        )
    return labels


def export_model(workdir: Path, target: Path) -> None:
    """Writes the best weights of a run as a folder of transformers.

    Raises:
      UserError: transformers has no such model, or the folder is not empty.
    """
    check_is_new("target", target)
    config = configs.read_config(workdir)
    params, step = load_params(workdir)
    fields = config.model.to_dict()
    flat = models.cut_vocabulary(flatten_dict(params, sep="/"), fields)
    kind, task = "", {}
    if splits.is_task_run(workdir):
        kind, labels = splits.load_task(workdir)
        task = exported_task(kind, labels, config.head)
    architecture = exported_architecture(fields, kind, flat)
    tokenizer = tokenizers.load(str(workdir))
    left = write_transformers(target, architecture, fields, flat, tokenizer, task)
    print(
        f"{workdir} (step {step}) -> {target}: {architecture.name}\n"
        f"parameters left, which it has no place for: {', '.join(left) or 'none'}"
    )


# The command line.


def main(argv: list[str]) -> int:
    arguments = parse_arguments(argv[1:])
    jax.config.update("jax_platforms", "cpu")  # leave accelerators to who trains
    if arguments.command == "import":
        import_model(arguments.source, Path(arguments.workdir))
    else:
        export_model(Path(arguments.workdir), Path(arguments.target))
    return 0


if __name__ == "__main__":
    errors.run(main)
