"""Folders of google-research/bert: bert_config.json, vocab.txt, a TF1 checkpoint."""

import collections
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data import tokenizers
from errors import UserError
from formats.names import ARCHITECTURES, FORMATS, IF_ABSENT, normal_name
from formats.source import Source, Weight, read_object
from formats.transformers import model_fields

# Names of google-research/bert -> those of transformers, applied in turn.
GOOGLE_NAMES = (
    (r"/kernel$", "/weight"),
    (r"_embeddings$", "_embeddings/weight"),
    (r"^output_", "classifier/"),  # run_classifier.py
    (r"^cls/squad/output_", "qa_outputs/"),  # run_squad.py
    (r"^(cls/\w+)/output_", r"\1/"),
    (r"/weights$", "/weight"),
    (r"/layer_(\d+)/", r"/layer/\1/"),
    (r"/", "."),
)
OPTIMIZER = r"global_step|.*/adam_[mv]|.*_power"


def read_google(folder: Path) -> Source:
    """A folder of google-research/bert, as released or trained by its scripts."""
    indexes = sorted(folder.glob("*.index"))
    if len(indexes) != 1:
        raise UserError(
            f"{folder} has {len(indexes)} TF1 checkpoints (files *.index): leave one"
        )
    weights, left = google_weights(open_checkpoint(indexes[0].with_suffix("")))
    name = "BertForPreTraining"
    if "classifier.weight" in weights:
        name = "BertForSequenceClassification"
    elif "qa_outputs.weight" in weights:
        name = "BertForQuestionAnswering"
    path = folder / "bert_config.json"
    return Source(
        next(a for a in ARCHITECTURES if a.name == name),
        model_fields(path, IF_ABSENT | read_object(path), FORMATS["bert"]),
        (),
        0.1,  # run_classifier.py
        weights,
        left,
        tokenizers.load(str(folder)),
    )


def google_weights(
    found: dict[str, Weight],
) -> tuple[dict[str, Weight], tuple[str, ...]]:
    """The weights under transformers' names, and what is the optimizer's."""
    weights, left = {}, collections.Counter()
    for name, weight in found.items():
        if re.fullmatch(OPTIMIZER, name):
            left[name.split("/")[-1]] += 1
            continue
        renamed = name
        for pattern, new in GOOGLE_NAMES:
            renamed = re.sub(pattern, new, renamed)
        is_kernel = name.endswith("/kernel")  # [in, out]
        weights[normal_name(renamed, FORMATS["bert"])] = (
            Weight(weight.shape[::-1], partial(read_transposed, weight))
            if is_kernel
            else weight
        )
    return weights, tuple(f"{name} ({count})" for name, count in left.items())


def open_checkpoint(prefix: Path) -> dict[str, Weight]:
    try:
        import tensorflow
    except ImportError as error:
        raise UserError(
            f"{prefix} is a TF1 checkpoint, which TensorFlow reads: install the extra "
            "tf1"
        ) from error
    damaged = tensorflow.errors.OpError, IndexError, RuntimeError, ValueError

    def attempt(read: Callable, *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except damaged as error:
            raise UserError(
                f"{prefix} is damaged or truncated ({error}): copy or download it again"
            ) from error

    reader = attempt(tensorflow.train.load_checkpoint, str(prefix))
    return {
        name: Weight(tuple(shape), partial(attempt, reader.get_tensor, name))
        for name, shape in reader.get_variable_to_shape_map().items()
    }


def read_transposed(weight: Weight) -> np.ndarray:
    return weight.read().T
