"""ELMo as AllenNLP publishes it: options.json and the weights that bilm-tf dumps.

HDF5, without the softmax; a vocabulary (vocab*.txt, a word a line) may lie beside.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models

from configs import elmo
from data.tokenizer_training import COUNTED
from data.tokenizers import ELMO_SPECIAL_TOKENS, JsonTokenizer
from errors import UserError
from formats.names import Flat, Shape
from formats.source import read_object

DIRECTIONS = ("forward", "backward")


def read_allennlp(folder: Path) -> tuple[dict[str, Any], Flat, JsonTokenizer]:
    """`model` of a config, parameters by path and the tokenizer of a folder.

    Raises:
      UserError: files that are missing, damaged, or do not fit each other; an option
        that the model here does not have.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            f"reading {folder} needs h5py, which is not installed: uv sync --extra "
            "elmo, or pip install -e '.[elmo]'"
        ) from error
    fields = read_options(folder / "options.json")
    tokenizer = read_words(folder)
    fields["vocab_size"] = tokenizer.vocab_size
    found = sorted(folder.glob("*weights*.hdf5"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(f"{folder} must hold one *weights*.hdf5, and has {names}")
    params = {}
    try:
        with h5py.File(found[0]) as file:
            for path, name, shape in places(fields):
                if name not in file:
                    raise UserError(f"{found[0]} has no {name}")
                array = np.asarray(file[name], np.float32)
                if array.shape != shape:
                    raise UserError(
                        f"{found[0]}: {name} is {array.shape}, not {shape} as "
                        "options.json says"
                    )
                params[path] = array
    except OSError as error:
        raise UserError(f"{found[0]} is no HDF5 file: {error}") from error
    return fields, as_here(params, fields), tokenizer


def read_options(path: Path) -> dict[str, Any]:
    """`model` of a config, but for the size of the vocabulary."""
    options = read_object(path)
    try:
        lstm, cnn = options["lstm"], options["char_cnn"]
        fields = {
            "max_characters": cnn["max_characters_per_token"],
            "num_layers": lstm["n_layers"],
            "cell_size": lstm["dim"],
            "projection_size": lstm["projection_dim"],
            "cell_clip": float(lstm["cell_clip"]),
            "projection_clip": float(lstm["proj_clip"]),
            "character_size": cnn["embedding"]["dim"],
            "filters": tuple(map(tuple, cnn["filters"])),
            "num_highways": cnn["n_highway"],
            "activation": cnn["activation"],
        }
        has_skips, characters = lstm["use_skip_connections"], cnn["n_characters"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not complete or damaged: {error!r}") from error
    if not has_skips:
        raise UserError(f"{path}: use_skip_connections=false is not supported")
    if characters not in (261, 262):  # of training; of use, where 0 is no character
        raise UserError(f"{path}: n_characters={characters} must be 261 or 262")
    return (
        elmo.get_config().model.to_dict()
        | fields
        | {
            "softmax": False,
            "precision": "float32",  # the numbers of its release
        }
    )


def read_words(folder: Path) -> JsonTokenizer:
    """The words of a vocabulary, or the marks of a sentence alone: new words are known
    by their characters."""
    words = [*ELMO_SPECIAL_TOKENS]
    for path in sorted(folder.glob("vocab*.txt"))[:1]:
        lines = path.read_text(encoding="utf-8").split("\n")
        words += [line.strip() for line in lines if line.strip()]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    unknown = ELMO_SPECIAL_TOKENS[-1]
    library = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    library.pre_tokenizer = COUNTED["words"]
    library.add_special_tokens([*ELMO_SPECIAL_TOKENS])
    return JsonTokenizer(library.to_str())


def places(fields: dict[str, Any]) -> Iterator[tuple[str, str, Shape]]:
    """(path here, name there, shape there) of each array there."""
    size, inner = fields["character_size"], sum(n for _, n in fields["filters"])
    projected, cell = fields["projection_size"], fields["cell_size"]
    yield "embeddings/character/embedding", "char_embed", (261, size)
    for i, (width, count) in enumerate(fields["filters"]):
        own = f"embeddings/width_{width}"
        yield f"{own}/kernel", f"CNN/W_cnn_{i}", (1, width, size, count)
        yield f"{own}/bias", f"CNN/b_cnn_{i}", (count,)
    for i in range(fields["num_highways"]):
        for here, there in (("gate", "carry"), ("transform", "transform")):
            own = f"embeddings/{here}_{i}"
            yield f"{own}/kernel", f"CNN_high_{i}/W_{there}", (inner, inner)
            yield f"{own}/bias", f"CNN_high_{i}/b_{there}", (inner,)
    yield "embeddings/projection/kernel", "CNN_proj/W_proj", (inner, projected)
    yield "embeddings/projection/bias", "CNN_proj/b_proj", (projected,)
    for way, direction in enumerate(DIRECTIONS):
        for i in range(fields["num_layers"]):
            own = f"layer_{i}/{direction}"
            there = f"RNN_{way}/RNN/MultiRNNCell/Cell{i}/LSTMCell"
            # Input and recurrent kernel, one above the other.
            yield f"{own}/kernel", f"{there}/W_0", (2 * projected, 4 * cell)
            yield f"{own}/bias", f"{there}/B", (4 * cell,)
            yield f"{own}/projection_kernel", f"{there}/W_P_0", (cell, projected)


def as_here(params: Flat, fields: dict[str, Any]) -> Flat:
    """The arrays there as the model here has them."""
    found = {}
    for path, array in params.items():
        if "/width_" in path and path.endswith("kernel"):
            found[path] = array[0]
        elif path.endswith(tuple(f"{way}/kernel" for way in DIRECTIONS)):
            first = path.removesuffix("kernel")
            found[f"{first}input_kernel"], found[f"{first}recurrent_kernel"] = np.split(
                array, [fields["projection_size"]]
            )
        else:
            found[path] = array
    return found
