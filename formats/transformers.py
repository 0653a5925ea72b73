"""Folders of transformers: reading one, and writing a run as one."""

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import tokenizers as tokenizers_library
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import models
from data import tokenizers
from data.tokenizers import JsonTokenizer, Tokenizer
from errors import UserError
from formats.names import (
    ARCHITECTURES,
    BARE,
    FORMATS,
    IF_ABSENT,
    TYPES,
    WRAPPERS,
    Architecture,
    Flat,
    Format,
    find,
    normal_name,
    rows_of,
)
from formats.source import Source, Weight, read_object
from settings import Setting

HEAD = {"pooling": "readout", "layers": "last", "kind": "linear"}  # of its classes
HEAD_DROPOUT = Setting("classifier_dropout", float, "Of a task's head.", ">=0 <1")


def read_transformers(folder: Path) -> Source:
    """A folder of `save_pretrained`."""
    config = read_config(folder / "config.json")
    model_type = config["model_type"]
    if model_type not in FORMATS:
        raise UserError(
            f"{folder}/config.json has model_type {model_type!r}; supported are "
            f"{', '.join(FORMATS)}"
        )
    form = FORMATS[model_type]
    architecture = find_architecture(folder, config)
    weights = unwrapped(read_weights(folder))
    named = {normal_name(name, form): weight for name, weight in weights.items()}
    if len(named) < len(weights):
        raise UserError(f"{folder} has weights that differ in '{form.prefix}' only")
    fields = model_fields(folder / "config.json", config, form)
    dropout = config["classifier_dropout"]
    return Source(
        architecture,
        fields,
        label_names(folder / "config.json", config["id2label"] or {}),
        fields["residual_dropout"] if dropout is None else dropout,
        named,
        (),
        tokenizers.load(str(folder)),
    )


def read_config(path: Path) -> dict[str, Any]:
    """A config.json, with what it need not say.

    Raises:
      UserError: it is damaged, or says something in a type that it cannot have.
    """
    config = IF_ABSENT | read_object(path)
    for key, (kind, words) in TYPES.items():
        value = config[key]
        if value is not None and not isinstance(value, kind):
            raise UserError(f"{path} has {key}={value!r}: it must be {words}")
    dropout = config[HEAD_DROPOUT.name]
    if dropout is not None and not HEAD_DROPOUT.allows(dropout):
        raise UserError(
            f"{path} has {HEAD_DROPOUT.name}={dropout!r}: it must be "
            f"{HEAD_DROPOUT.wanted()}"
        )
    return config


def label_names(path: Path, labels: dict[str, Any]) -> tuple[str, ...]:
    """The names of `id2label` by number, which counts from 0."""
    names = tuple(labels.get(str(number)) for number in range(len(labels)))
    if not all(isinstance(name, str) for name in names) or len({*names}) < len(names):
        raise UserError(
            f"{path} has id2label={labels!r}: it must have a name of its own for each "
            'number from "0" on'
        )
    return names


def find_architecture(folder: Path, config: dict[str, Any]) -> Architecture:
    """The class that the config names; one label means a number, as there."""
    names = config["architectures"] or [None]
    known = [a for a in ARCHITECTURES if a.model_type == config["model_type"]]
    found = [a for a in known if a.name == names[0]]
    if not found:
        supported = dict.fromkeys(a.name for a in known)
        raise UserError(
            f"{folder}/config.json names the architecture {names[0]!r}; supported for "
            f"{config['model_type']} are {', '.join(supported)}"
        )
    if config["problem_type"] == "multi_label_classification":
        raise UserError(
            f"{folder}/config.json has problem_type 'multi_label_classification': the "
            "heads here choose one label"
        )
    one_label = len(config["id2label"] or ()) == 1
    return found[-1] if one_label else found[0]


def model_fields(path: Path, config: dict[str, Any], form: Format) -> dict[str, Any]:
    """`model` of a config here, without heads, from a config.json."""
    for key, value in form.fixed.items():
        if key in config and config[key] != value:
            raise UserError(
                f"{path} has {key}={config[key]!r}; the model here has {value!r} only"
            )
    key, activations = form.activations
    needed = {*form.settings.values(), key}
    if missing := sorted(needed - config.keys()):
        raise UserError(f"{path} does not say {', '.join(missing)}")
    if config[key] not in [*activations]:
        raise UserError(
            f"{path} has {key}={config[key]!r}; supported are {', '.join(activations)}"
        )
    fields = form.config().model.to_dict() | form.fields
    rows = {row.name: row for row in models.family_of(fields).settings}
    for here, there in form.settings.items():
        row, value = rows[f"model.{here}"], config[there]
        if there == "n_inner" and value is None:
            value = 4 * fields["hidden_size"]
        if not row.allows(value):
            raise UserError(f"{path} has {there}={value!r}: it must be {row.wanted()}")
        fields[here] = value
    fields["activation"] = activations[config[key]]
    if fields["hidden_size"] % fields["num_heads"]:
        raise UserError(
            f"{path}: the width {fields['hidden_size']} is not divisible by "
            f"{fields['num_heads']} heads"
        )
    fields["head_dim"] = fields["hidden_size"] // fields["num_heads"]
    if "ffn_size" not in form.settings:
        fields["ffn_size"] = 4 * fields["hidden_size"]
    return fields


def unwrapped(weights: dict[str, Weight]) -> dict[str, Weight]:
    """The weights without a wrapper's name, where all begin with it."""
    for wrapper in WRAPPERS * 2:  # in either order
        if all(name.startswith(wrapper) for name in weights):
            weights = {name.removeprefix(wrapper): w for name, w in weights.items()}
    return weights


def read_weights(folder: Path) -> dict[str, Weight]:
    """The weights of one file, or of the files that an index names.

    Raises:
      UserError: no weights, or a file that is missing, truncated or damaged.
    """
    readers = {"model.safetensors": open_safetensors, "pytorch_model.bin": open_torch}
    for name, read in readers.items():
        if (folder / name).is_file():
            return read(folder / name)
        index = folder / f"{name}.index.json"
        if not index.is_file():
            continue
        weights: dict[str, Weight] = {}
        places = read_object(index).get("weight_map")
        if not isinstance(places, dict):
            raise UserError(f"{index} has no weight_map: download it again")
        for file in sorted({*map(str, places.values())}):
            if Path(file).name != file:
                raise UserError(
                    f"{index} names {file}, which is not a file beside it: such an "
                    "index is not read"
                )
            weights |= read(folder / file)
        if lacking := sorted(places.keys() - weights.keys()):
            raise UserError(f"{index} names {lacking[0]}, which its file does not have")
        return weights
    raise UserError(f"{folder} has no weights: none of {', '.join(readers)}")


def open_safetensors(path: Path) -> dict[str, Weight]:
    if not path.is_file():
        raise UserError(f"{path} is missing; the index beside it names it")
    try:
        with safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: Weight(
                    tuple(part.get_shape()),
                    partial(read_safetensor, path, name, part.get_dtype()),
                )
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged or truncated ({error}): copy or download it again"
        ) from error


def read_safetensor(path: Path, name: str, dtype: str) -> np.ndarray:
    if dtype not in ("F64", "F32", "F16", "BF16"):
        raise UserError(
            f"{path}: {name} is {dtype}; quantised weights are not supported"
        )
    # NumPy alone does not know bfloat16.
    with safe_open(path, "flax" if dtype == "BF16" else "numpy") as file:
        return np.asarray(file.get_tensor(name))


def open_torch(path: Path) -> dict[str, Weight]:
    """PyTorch's own format, without the code that it may carry."""
    if not path.is_file():
        raise UserError(f"{path} is missing; the index beside it names it")
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} can only be read by PyTorch, which is not installed: install the "
            "extra parity, or bring model.safetensors"
        ) from error
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, OSError, UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it ends early"
        raise UserError(f"{path} cannot be read: {reason}") from error
    if strange := [name for name, x in tensors.items() if not torch.is_tensor(x)]:
        raise UserError(f"{path} cannot be read: {strange[0]!r} in it is no tensor")
    return {
        name: Weight(tuple(tensor.shape), partial(read_tensor, tensor))
        for name, tensor in tensors.items()
    }


def read_tensor(tensor: Any) -> np.ndarray:
    return tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()


def write_transformers(
    target: Path,
    architecture: Architecture,
    fields: dict[str, Any],
    flat: Flat,
    tokenizer: Tokenizer,
    task: dict[str, Any],
) -> list[str]:
    """Writes the folder; returns the paths that the class has no place for.

    `fields` is `model` of the config; `task` is `exported_task`.

    Raises:
      UserError: the class cannot represent the model.
    """
    form = FORMATS[architecture.model_type]
    config = (
        {"architectures": [architecture.name], "model_type": architecture.model_type}
        | exported_settings(fields, form)
        | task
        | exported_ids(tokenizer, architecture.model_type)
    )
    weights, left = exported_weights(flat, architecture)
    target.mkdir(parents=True, exist_ok=True)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(tokenizer, fields["max_positions"], architecture.model_type, target)
    write_json(target / "config.json", config)
    return left


def write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def exported_architecture(
    fields: dict[str, Any], kind: str, paths: Iterable[str]
) -> Architecture:
    """The class for a run: by its kind of task, or by the pre-training heads it has."""
    model_type = exported_type(fields)
    if not model_type:
        raise UserError(f"the run cannot be exported: {misfit(fields)}")
    modules = {path.split("/")[0] for path in paths}
    known = [a for a in ARCHITECTURES if a.model_type == model_type]
    for architecture in known:
        if architecture.kind == kind and (kind or modules >= {*architecture.modules}):
            return architecture
    if not kind:  # a BERT without so much as a pooler
        return next(a for a in known if a.name in BARE)
    raise UserError(
        f"the run has a head for {kind}: transformers has no such class for "
        f"{model_type}, but for {', '.join(a.kind for a in known if a.kind)}; the run "
        "that it was fine-tuned from can be exported"
    )


def exported_type(fields: Mapping[str, Any]) -> str:
    """The model_type of a model; "" where transformers has none."""
    if fields["family"] == "gpt":
        return "gpt2" if fields["pre_norm"] else "openai-gpt"
    return "bert" if fields["family"] == "bert" else ""


def misfit(fields: Mapping[str, Any]) -> str:
    """Why transformers cannot represent a model, whatever its weights; "" if it can."""
    model_type = exported_type(fields)
    if not model_type:
        return f"transformers has no model of the family {fields['family']!r}"
    form = FORMATS[model_type]
    width, inner = fields["hidden_size"], fields["num_heads"] * fields["head_dim"]
    found = ""
    if fields["activation"] not in form.activations[1].values():
        found = f"model.activation={fields['activation']!r}"
    elif width != inner:
        found = f"model.hidden_size={width}, but heads of {inner} in all"
    elif "ffn_size" not in form.settings and fields["ffn_size"] != 4 * width:
        found = f"model.ffn_size={fields['ffn_size']}, not 4 * hidden_size"
    return found and f"transformers cannot represent {found}"


def exported_settings(fields: dict[str, Any], form: Format) -> dict[str, Any]:
    """What config.json says of the model's form.

    Of several settings that are one there it is the last, and the others are told.

    Raises:
      UserError: transformers cannot make the model so.
    """
    if reason := misfit(fields):
        raise UserError(f"the run cannot be exported: {reason}")
    settings = {there: fields[here] for here, there in form.settings.items()}
    for here, there in form.settings.items():
        if fields[here] != settings[there]:
            print(
                f"model.{here}={fields[here]} is not exported: transformers has one "
                f"{there}, which is {settings[there]}"
            )
    key, activations = form.activations
    names = [name for name, here in activations.items() if here == fields["activation"]]
    return settings | {key: names[0], "dtype": "float32"}


def unlike(head: Mapping[str, Any]) -> str:
    """Why transformers cannot represent a task's head; "" if it can."""
    others = [f"head.{n}={head[n]!r}" for n, same in HEAD.items() if head[n] != same]
    return f"transformers has no class with {' and '.join(others)}" if others else ""


def exported_task(
    kind: str, labels: tuple[str, ...], head: Mapping[str, Any]
) -> dict[str, Any]:
    """What config.json says of a task.

    Raises:
      UserError: transformers has no such head.
    """
    if reason := unlike(head):
        raise UserError(f"the run cannot be exported: {reason}")
    described: dict[str, Any] = {"classifier_dropout": head["dropout"]}
    if kind == "similarity":
        return described | {"id2label": {"0": "score"}, "problem_type": "regression"}
    if labels:
        described["id2label"] = {str(i): name for i, name in enumerate(labels)}
        described["label2id"] = {name: i for i, name in enumerate(labels)}
    return described


def exported_ids(tokenizer: Tokenizer, model_type: str) -> dict[str, int | None]:
    """The ids that transformers would otherwise take from the released vocabularies."""
    if model_type == "bert":
        return {"pad_token_id": tokenizer.special_ids.get("pad")}
    end = tokenizer.special_ids.get("end_of_text")
    return {"bos_token_id": end, "eos_token_id": end}


def exported_weights(
    flat: Flat, architecture: Architecture
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The weights by their names there, and the paths that the class lacks."""
    form, rows = FORMATS[architecture.model_type], rows_of(architecture)
    prefix = "" if architecture.name in BARE else form.prefix
    has_place = {*architecture.modules, "head", "embeddings", "final_norm"}
    weights, thirds, left = {}, {}, []
    for path, array in flat.items():
        module = path.split("/")[0]
        if module not in has_place and not module.startswith("layer_"):
            left.append(path)
            continue
        place = find(path, rows)
        own = place.name.startswith(("cls.", architecture.head or "cls."))
        name = place.name if own else prefix + place.name
        if place.third is None:
            there = array.T if place.transposed else array
            weights[name] = np.ascontiguousarray(there)
        else:
            thirds.setdefault(name, {})[place.third] = array
    for name, parts in thirds.items():
        weights[name] = np.concatenate([parts[i] for i in range(3)], axis=-1)
    return weights, left


# Role here -> name in tokenizer_config.json.
TOKEN_NAMES = {
    "bert": {
        "unk": "unk_token",
        "sep": "sep_token",
        "pad": "pad_token",
        "cls": "cls_token",
        "mask": "mask_token",
    },
    "gpt2": {"end_of_text": "eos_token", "unk": "unk_token"},
    "openai-gpt": {"end_of_text": "eos_token", "unk": "unk_token"},
}


def save_tokenizer(
    tokenizer: Tokenizer, max_positions: int, model_type: str, target: Path
) -> None:
    """tokenizer.json and what transformers wants to know beside it."""
    if not isinstance(tokenizer, JsonTokenizer):
        tokenizer.save(target)
        print(f"{target} has a SentencePiece tokenizer: transformers does not read it")
        return
    special = tokenizer.special_ids
    framed = json.loads(tokenizer.serialized)["post_processor"] is not None
    if model_type == "bert" and not framed and special.keys() >= {"cls", "sep"}:
        # There the tokenizer puts the frame around the text.
        library = tokenizers_library.Tokenizer.from_str(tokenizer.serialized)
        cls, sep = (tokenizer.pieces[special[role]] for role in ("cls", "sep"))
        library.post_processor = tokenizers_library.processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:1 {sep}:1",
            special_tokens=[(cls, special["cls"]), (sep, special["sep"])],
        )
        tokenizer = JsonTokenizer(library.to_str())
    tokenizer.save(target)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is
        "model_max_length": max_positions,
        "clean_up_tokenization_spaces": False,
    }
    for role, name in TOKEN_NAMES[model_type].items():
        if role in special:
            settings[name] = tokenizer.pieces[special[role]]
    write_json(target / "tokenizer_config.json", settings)
