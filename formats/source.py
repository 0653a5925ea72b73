"""What every reader of a foreign checkpoint returns."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.tokenizers import Tokenizer
from errors import UserError
from formats.names import Architecture, Shape


class Weight(NamedTuple):
    """An array of a file, not read yet."""

    shape: Shape
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
    """What is imported, in transformers' terms; weights without their prefix.

    Attributes:
        fields: `model` of the config here, its heads aside.
        labels: the names of the classes; () where config.json has none.
        left: names of weights that are not model's.
    """

    architecture: Architecture
    fields: dict[str, Any]
    labels: tuple[str, ...]
    head_dropout: float
    weights: dict[str, Weight]
    left: tuple[str, ...]
    tokenizer: Tokenizer


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a JSON object")
    return content
