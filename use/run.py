"""A run folder, opened: config, tokenizer, model, its best weights."""

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Integer
from ml_collections import ConfigDict

import configs
import models
from data import spelling, tokenizers
from data.tokenizers import Tokenizer, count_pieces
from data.windows import Batch
from errors import UserError
from models import heads
from models.family import Family
from pretraining import PRETRAININGS
from pretraining.record import Pretraining
from tasks import KINDS, splits
from tasks.encoding import Task
from tasks.record import Kind
from training.checkpoints import load_params

PRETRAINED_PRECISION = "float32"  # whatever it was trained in


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run folder holds; weights are read when they are asked for.

    Attributes:
        task, labels: what it was fine-tuned for; None and () where it was not.
    """

    folder: Path
    config: ConfigDict
    tokenizer: Tokenizer
    task: Task | None
    labels: tuple[str, ...]

    @property
    def family(self) -> Family:
        return models.family_of(self.config.model)

    @property
    def way(self) -> Pretraining:
        """Of a run that was pre-trained."""
        return PRETRAININGS[self.config.objective.name]

    @property
    def start(self) -> list[int]:
        """The tokens before a text in pre-training: one, or none."""
        start = self.way.framing(self.tokenizer).document_start
        return [] if start is None else [start]

    @property
    def end(self) -> int | None:
        """The token after a text in pre-training, if there is one."""
        return self.way.framing(self.tokenizer).document_end

    @property
    def kind(self) -> Kind:
        """Of a run that was fine-tuned."""
        assert self.task is not None
        return KINDS[self.task.kind]

    @property
    def commands(self) -> tuple[str, ...]:
        """What predict.py can do with it."""
        own = self.way.commands if self.task is None else (self.kind.command,)
        return (*own, "embed", "inspect")

    @functools.cached_property
    def params(self) -> Any:
        """The best weights, on a device."""
        params, _ = load_params(self.folder)
        if self.config.model.precision == "float32":  # on every device, as trained
            jax.config.update("jax_default_matmul_precision", "highest")
        return jax.device_put(models.fill_vocabulary(params, self.config.model))

    @functools.cached_property
    def model(self) -> models.Model:
        """With all that it can predict, or the head of its task."""
        fields = self.config.model.to_dict()
        if self.task is None:
            return models.build(fields | {"precision": PRETRAINED_PRECISION})
        return heads.build(
            fields,
            self.kind.head,
            num_labels=len(self.labels),
            head=self.config.head.to_dict(),
        )

    @functools.cached_property
    def reads(self) -> Callable[[Batch], Batch]:
        """Makes a batch one for its model."""
        inputs = self.family.inputs
        return spelling.reader(self.tokenizer, inputs, self.config.model)

    @functools.cached_property
    def base(self) -> models.Model:
        """The model without any head."""
        fields = self.config.model.to_dict() | {"precision": PRETRAINED_PRECISION}
        return models.build(models.only_with(fields, ()))

    def check(self, command: str) -> None:
        """Raises UserError where a command of predict.py is not for this run."""
        if command in self.commands:
            return
        if self.task is None:
            was = f"was trained with objective.name={self.config.objective.name!r}"
        else:
            was = f"was fine-tuned for {self.task.kind}"
        raise UserError(
            f"{command} is not for {self.folder}, which {was}: use predict.py "
            f"{' or '.join(self.commands)}, or another run"
        )

    def count_unpredictable(self, pieces: Integer[np.ndarray, " N"]) -> int:
        """Of the pieces of a text those that it can only predict as unknown."""
        unknown, _ = count_pieces(self.tokenizer, pieces)
        return unknown + int((pieces >= self.config.model.vocab_size).sum())

    def tell_unknown(self, unknown: int, pieces: int) -> None:
        """Says on stderr where many of the pieces of its texts are unknown to it."""
        if unknown > tokenizers.UNKNOWN_SHARE * pieces:
            print(
                f"{unknown / pieces:.1%} of the pieces are unknown to the tokenizer of "
                f"{self.folder}, and what is said of them means little: take a run "
                "whose tokenizer was learnt from such text, or knows every byte",
                file=sys.stderr,
            )


def open_run(folder: str | Path) -> Run:
    """A run of train.py, finetune.py or convert.py.

    Raises:
      UserError: no such run, or one of what is not known here.
    """
    folder = Path(folder)
    config = configs.read_config(folder)
    task, labels = None, ()
    if splits.is_task_run(folder):
        kind, labels = splits.load_task(folder)
        task = splits.make_task(config, KINDS[kind])
    inputs = models.family_of(config.model).inputs
    tokenizer = spelling.opened(tokenizers.load(str(folder)), inputs, config.model)
    return Run(folder, config, tokenizer, task, labels)
