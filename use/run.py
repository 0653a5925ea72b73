"""A run folder, opened: config, tokenizer, model, its best weights."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import configs
import models
from data import tokenizers
from data.tokenizers import Tokenizer
from errors import UserError
from models import heads
from models.family import Family
from pretraining import PRETRAININGS
from pretraining.record import Pretraining
from tasks import KINDS
from tasks.encoding import Task
from tasks.record import Kind
from training.checkpoints import load_params

PRETRAINED_PRECISION = "float32"  # whatever it was trained in


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Attributes:
        params: of the best held-out evaluation.
        step: of these parameters.
        task, labels: what it was fine-tuned for; None and () where it was not.
    """

    folder: Path
    config: ConfigDict
    tokenizer: Tokenizer
    params: Any
    step: int
    task: Task | None
    labels: tuple[str, ...]

    @property
    def family(self) -> Family:
        return models.family_of(self.config.model)

    @property
    def way(self) -> Pretraining:
        """Of a run of train.py."""
        return PRETRAININGS[self.config.objective.name]

    @property
    def kind(self) -> Kind:
        """Of a run of finetune.py."""
        assert self.task is not None
        return KINDS[self.task.kind]

    @property
    def commands(self) -> tuple[str, ...]:
        """What predict.py can do with it."""
        own = self.way.commands if self.task is None else (self.kind.command,)
        return (*own, "embed")

    @functools.cached_property
    def model(self) -> models.Model:
        """The whole model, with all its heads."""
        fields = self.config.model.to_dict()
        if self.task is None:
            return models.build(fields | {"precision": PRETRAINED_PRECISION})
        return heads.build(
            fields,
            self.kind.head,
            num_labels=len(self.labels),
            dropout=self.config.head.dropout,
        )

    @functools.cached_property
    def base(self) -> models.Model:
        """The model without any head."""
        fields = self.config.model.to_dict() | {"precision": PRETRAINED_PRECISION}
        return models.build(models.only_with(fields, ()))

    def check(self, command: str) -> None:
        """Raises UserError where a command of predict.py is not for this run."""
        if command in self.commands:
            return
        was = f"trained with objective.name={self.config.objective.get('name')!r}"
        if self.task is not None:
            was = f"fine-tuned for {self.task.kind}"
        raise UserError(
            f"{command} is not for {self.folder}, which was {was}: use predict.py "
            f"{' or '.join(self.commands)}, or another run"
        )


def open_run(folder: str | Path) -> Run:
    """A run of train.py, finetune.py or convert.py, with its best weights.

    Raises:
      UserError: no such run, or one without a checkpoint.
    """
    folder = Path(folder)
    config = configs.read_config(folder)
    task, labels = None, ()
    if (folder / "task.json").exists():
        task, labels = read_task(folder)
    params, step = load_params(folder)
    if config.model.precision == "float32":  # as it was trained, on every device
        jax.config.update("jax_default_matmul_precision", "highest")
    return Run(
        folder,
        config,
        tokenizers.load(str(folder)),
        jax.device_put(params),
        step,
        task,
        labels,
    )


def read_task(folder: Path) -> tuple[Task, tuple[str, ...]]:
    """The task of a run of finetune.py, and its labels in the order of their ids."""
    spec = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    labels = tuple(spec["labels"])
    return Task.of(spec | {"labels": labels}), labels
