"""Conversion: the same numbers as transformers, strict reading, and the way back.

The golden files are made by tests/golden/make.py.
"""

import errno
import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from huggingface_hub import errors as hub_errors
from safetensors import flax
from safetensors.numpy import load_file, save_file

import configs
import convert
import finetune
import models
from data import tokenizers
from errors import UserError
from formats import google, transformers
from formats.names import ARCHITECTURES
from models import heads
from models.transformer import Block, logits
from objectives.cross_entropy import weighted_cross_entropy
from objectives.span import span
from tasks.encoding import make_frame
from tasks.record import HeadSpec
from tests.task_examples import head_of
from training.checkpoints import load_params
from training.optimizers import (
    assign_groups,
    make_optimizer,
    make_schedule,
    parse_groups,
)
from training.step import create_state, make_train_step

GOLDEN = Path(__file__).parent / "golden"
CONFIGS = Path(__file__).parents[1] / "configs/finetune"
CASES = [path.name for path in sorted(GOLDEN.iterdir()) if path.is_dir()]
HEADS = {  # of the golden cases' kinds of task
    "classification": HeadSpec("examples", lambda num_labels: num_labels),
    "tagging": HeadSpec("tokens", lambda num_labels: num_labels),
    "span": HeadSpec("tokens", lambda _: 2, drops=False),
}
TOKENS = json.loads((GOLDEN / "tokens.json").read_text(encoding="utf-8"))


@pytest.fixture
def imported(tmp_path):
    """`imported(case)` is the run folder of a golden case."""

    def make(case):
        workdir = tmp_path / f"run_{case}"
        convert.import_model(str(GOLDEN / case), workdir)
        return workdir

    return make


# The same numbers


def open_run(workdir, vocab_size):
    """(model, parameters, inputs of a golden batch) of a run.

    Without the tokens that the import added, whose rows the softmax would count.
    """
    config = configs.read_config(workdir)
    params, step = load_params(workdir)
    assert step == 0
    fields = config.model.to_dict() | {"vocab_size": vocab_size, "precision": "float32"}
    flat = models.cut_vocabulary(flatten_dict(params, sep="/"), fields)
    params = unflatten_dict(models.fill_vocabulary(flat, fields), sep="/")
    if not (workdir / "task.json").exists():
        return models.build(fields), params
    spec = json.loads((workdir / "task.json").read_text())
    head, dropout = HEADS[spec["kind"]], config.head.dropout
    labels = len(spec["labels"])
    return heads.build(fields, head, num_labels=labels, head=head_of(dropout)), params


def inputs_of(batch, padded, is_task):
    rows, length = batch["tokens"].shape
    inputs = {"tokens": batch["tokens"], "segment_ids": np.ones_like(batch["tokens"])}
    if padded:
        inputs["segment_ids"] = batch["mask"]
    if "token_types" in batch:
        inputs["token_types"] = batch["token_types"]
    if is_task:
        inputs["positions"] = np.arange(length) * np.ones((rows, 1), int)
        inputs["readout_positions"] = np.zeros((rows, 1, 1), int)
    return {name: jnp.asarray(array, jnp.int32) for name, array in inputs.items()}


def outputs_of(model, params, inputs, vocab_size):
    """The outputs by the names in expected.npz."""
    out, state = model.module.apply(
        {"params": params},
        **{name: inputs[name] for name in model.inputs if name in inputs},
        capture_intermediates=lambda module, _: isinstance(module, Block),
        mutable=["intermediates"],
    )
    if "hidden_layers" in out:
        layers = dict(enumerate(out["hidden_layers"]))
    else:  # transformers counts the last one after the final norm
        inner = state["intermediates"]
        layers = {
            i + 1: inner[f"layer_{i}"]["__call__"][0][0] for i in range(len(inner))
        }
        layers[len(inner)] = out["hidden"]
    found = {f"hidden_{i}": layer for i, layer in layers.items()}
    found |= {name: out[name] for name in ("pooled", "scores") if name in out}
    if "next_sentence" in out:
        found["next_sentence_logits"] = logits(out["next_sentence"])
    if words := out.keys() & {"masked_lm", "causal_lm"}:
        found["logits"] = logits(out[words.pop()])[..., :vocab_size]
    return found


def mean(term):
    return term[0] / term[1]


def objective(out, batch):
    """transformers' loss by the objectives here."""
    if "starts" in batch:
        places = (batch[name][:, None] for name in ("starts", "ends"))
        return mean(span(out["scores"][:, None], *places, jnp.ones((2, 1))))
    labels = jnp.maximum(batch["labels"], 0)
    weights = jnp.where(batch["labels"] >= 0, 1.0, 0.0)
    if "next_sentence_label" in batch:
        answers = batch["next_sentence_label"]
        pairs = weighted_cross_entropy(
            out["next_sentence_logits"], answers, jnp.ones(2)
        )
        words = weighted_cross_entropy(out["logits"], labels, weights)
        return mean(words) + mean(pairs)
    if "scores" in out:
        scores = out["scores"]
        shape = scores.shape[:-1]
        return mean(
            weighted_cross_entropy(
                scores, labels.reshape(shape), weights.reshape(shape)
            )
        )
    return mean(
        weighted_cross_entropy(out["logits"][:, :-1], labels[:, 1:], weights[:, 1:])
    )


def compare(folder, workdir):
    """Asserts that a run computes what expected.npz of the folder says."""
    expected = dict(np.load(folder / "expected.npz"))
    batch = {
        name.removeprefix("batch/"): jnp.asarray(array, jnp.int32)
        for name, array in expected.items()
        if name.startswith("batch/")
    }
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    model, params = open_run(workdir, vocab_size)

    @partial(jax.value_and_grad, has_aux=True)
    def loss(params, inputs):
        out = outputs_of(model, params, inputs, vocab_size)
        return objective(out, batch), out

    loss, is_task = jax.jit(loss), (workdir / "task.json").exists()
    for padded in (True, False):
        (value, out), gradients = loss(params, inputs_of(batch, padded, is_task))
        for name, array in out.items():
            found, there = array, expected[name if padded else f"unpadded/{name}"]
            if padded and there.ndim == 3:  # padding computes what it likes
                real = np.asarray(batch["mask"])[..., None] > 0
                found, there = np.where(real, array, 0), np.where(real, there, 0)
            assert_close(np.reshape(found, there.shape), there, name)
        if padded == ("starts" not in batch):
            assert_close(value, expected["loss"], "loss")
            compare_gradients(workdir, gradients, expected, vocab_size)


def compare_gradients(workdir, gradients, expected, vocab_size):
    task = workdir / "task.json"
    kind = json.loads(task.read_text())["kind"] if task.exists() else ""
    fields = configs.read_config(workdir).model.to_dict() | {"vocab_size": vocab_size}
    flat = models.cut_vocabulary(flatten_dict(gradients, sep="/"), fields)
    flat = {name: np.asarray(gradient) for name, gradient in flat.items()}
    architecture = transformers.exported_architecture(fields, kind, flat)
    found, left = transformers.exported_weights(flat, architecture)
    assert not left
    there = {
        name.removeprefix("gradient/"): array
        for name, array in expected.items()
        if name.startswith("gradient/")
    }
    assert found.keys() == there.keys()
    for name, array in there.items():
        assert_close(found[name], array, f"gradient of {name}")


def assert_close(found, expected, name):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_same_numbers_as_transformers(case, imported):
    compare(GOLDEN / case, imported(case))


def test_tokenizers_give_the_ids_of_transformers(imported):
    for case, ids in TOKENS["ids"].items():
        tokenizer = tokenizers.load(str(imported(case)))
        for text, found, expected in zip(
            TOKENS["texts"], tokenizer.encode_batch(TOKENS["texts"]), ids, strict=True
        ):
            assert found.tolist() == expected, (case, text)


# In and out again


def flat_params(workdir):
    return flatten_dict(load_params(workdir)[0], sep="/")


@pytest.mark.parametrize("case", CASES)
def test_import_export_import_is_exact(case, imported, tmp_path):
    first, second = imported(case), tmp_path / "again"
    folders = tmp_path / "export", tmp_path / "export_again"
    convert.export_model(first, folders[0])
    convert.import_model(str(folders[0]), second)
    convert.export_model(second, folders[1])
    before, after = flat_params(first), flat_params(second)
    assert before.keys() == after.keys()
    for path, array in before.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, after[path], err_msg=path)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    fields = [configs.read_config(run).model.to_dict() for run in (first, second)]
    assert fields[0] == fields[1]
    texts = [
        tokenizers.load(str(run)).encode_batch(["the 文 runs"])
        for run in (first, second)
    ]
    np.testing.assert_array_equal(*texts)


def test_export_keeps_the_names_of_the_weights(imported, tmp_path):
    for case in CASES:
        convert.export_model(imported(case), tmp_path / case)
        before = load_file(GOLDEN / case / "model.safetensors")
        after = load_file(tmp_path / case / "model.safetensors")
        assert before.keys() == after.keys()
        for name, array in before.items():  # of the tables the rows it had
            np.testing.assert_array_equal(array, after[name][: len(array)])


def test_export_describes_task_and_vocabulary(imported, tmp_path):
    convert.export_model(imported("bert_tagging"), tmp_path / "tagging")
    config = json.loads((tmp_path / "tagging/config.json").read_text())
    assert config["id2label"] == {"0": "sport", "1": "art", "2": "news"}
    assert config["architectures"] == ["BertForTokenClassification"]
    convert.export_model(imported("gpt2"), tmp_path / "gpt2")
    config = json.loads((tmp_path / "gpt2/config.json").read_text())
    weights = load_file(tmp_path / "gpt2/model.safetensors")
    assert config["vocab_size"] == len(weights["transformer.wte.weight"])
    tokenizer = tokenizers.load(str(tmp_path / "gpt2"))
    assert tokenizer.vocab_size == config["vocab_size"]
    assert tokenizer.pieces[config["eos_token_id"]] == "<|endoftext|>"


def test_import_keeps_the_trained_rows_of_added_tokens(tmp_path):
    """GPT-1's, which are new, come after them, and the table is as long as both."""
    there = shutil.copytree(GOLDEN / "gpt2", tmp_path / "there")
    weights = load_file(there / "model.safetensors")
    name = next(name for name in weights if name.endswith("wte.weight"))
    count, width = weights[name].shape
    trained = np.arange(2 * width, dtype=np.float32).reshape(2, width)
    weights[name] = np.concatenate([weights[name], trained])
    save_file(weights, there / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((there / "config.json").read_text())
    (there / "config.json").write_text(json.dumps(config | {"vocab_size": count + 2}))
    added = {"<ctrl>": count, "<eod>": count + 1}
    (there / "added_tokens.json").write_text(json.dumps(added))
    (there / "special_tokens_map.json").write_text('{"eos_token": "<eod>"}')
    convert.import_model(str(there), tmp_path / "run")
    tokenizer = tokenizers.load(str(tmp_path / "run"))
    assert tokenizer.encode_batch(["<ctrl>"])[0].tolist() == [count]
    assert tokenizer.special_ids["end_of_text"] == count + 1
    assert tokenizer.pieces[count + 2 :] == ["_start_", "_delimiter_", "_classify_"]
    table = flat_params(tmp_path / "run")["embeddings/token/embedding"]
    np.testing.assert_array_equal(table[count : count + 2], trained)
    convert.export_model(tmp_path / "run", tmp_path / "export")
    exported = json.loads((tmp_path / "export/config.json").read_text())
    assert exported["eos_token_id"] == count + 1


# Live, beside transformers itself


@pytest.fixture
def make():
    """tests/golden/make.py, where torch and transformers are installed."""
    reason = "the extra parity (torch, transformers) is not installed"
    pytest.importorskip("torch", reason=reason)
    pytest.importorskip("transformers", reason=reason)
    from tests.golden import make

    return make


@pytest.mark.parametrize("case", CASES)
def test_live_fresh_weights(case, make, tmp_path):
    make.make(case, tmp_path / "there", seed=1)
    convert.import_model(str(tmp_path / "there"), tmp_path / "run")
    compare(tmp_path / "there", tmp_path / "run")


@pytest.mark.parametrize("case", CASES)
def test_live_export_loads_without_a_word(case, make, imported, tmp_path):
    import transformers as library

    workdir = imported(case)
    convert.export_model(workdir, tmp_path / "export")
    name, _ = make.CASES[case]
    _, info = getattr(library, name).from_pretrained(
        tmp_path / "export", output_loading_info=True
    )
    assert not any(info.values()), info
    there = library.AutoTokenizer.from_pretrained(tmp_path / "export")
    here = tokenizers.load(str(workdir))
    frame = [here.special_ids[role] for role in ("cls", "sep") if "bert" in case]
    for text, ids in zip(
        TOKENS["texts"], here.encode_batch(TOKENS["texts"]), strict=True
    ):
        assert there(text)["input_ids"] == [*frame[:1], *ids, *frame[1:]], text


@pytest.mark.parametrize(
    "architecture", ARCHITECTURES, ids=lambda a: f"{a.name}-{a.kind}"
)
def test_live_every_class_in_and_out(architecture, make, tmp_path):
    import torch
    import transformers as library

    name, model_type = architecture.name, architecture.model_type
    case = {"bert": "bert_span", "gpt2": "gpt2", "openai-gpt": "openai_gpt"}[model_type]
    there = tmp_path / "there"
    there.mkdir()
    sizes = make.CASES[case][1] | {"vocab_size": make.write_tokenizer(case, there)}
    if architecture.kind in ("classification", "tagging", "similarity"):
        sizes["num_labels"] = 1 if architecture.kind == "similarity" else 3
    model_class = getattr(library, name)
    model = model_class(model_class.config_class(**sizes))
    model.save_pretrained(there)
    convert.import_model(str(there), tmp_path / "run")
    task = tmp_path / "run/task.json"
    kind = json.loads(task.read_text())["kind"] if task.exists() else ""
    assert kind == architecture.kind
    convert.export_model(tmp_path / "run", tmp_path / "export")
    # Where nothing else follows, the embedding is the language model's output, too.
    exported = {
        "GPT2Model": "GPT2LMHeadModel",
        "OpenAIGPTModel": "OpenAIGPTLMHeadModel",
    }
    again, info = getattr(library, exported.get(name, name)).from_pretrained(
        tmp_path / "export", output_loading_info=True
    )
    assert not any(info.values()), info
    after = again.state_dict()
    prefix = "transformer." if name in exported else ""
    for weight, array in model.state_dict().items():
        assert torch.equal(after[prefix + weight][: len(array)], array), weight


def test_live_pytorch_file(make, imported, tmp_path):
    """Read as tensors only; a file that would run code is refused."""
    import torch

    folder = Path(edited("gpt2", tmp_path / "there"))
    weights = load_file(folder / "model.safetensors")
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    same_run(folder, "gpt2", imported, tmp_path)
    whole = (folder / "pytorch_model.bin").read_bytes()
    for damaged in (whole[:-999], whole[:9], b""):
        (folder / "pytorch_model.bin").write_bytes(damaged)
        with pytest.raises(UserError, match=r"pytorch_model\.bin cannot be read"):
            convert.import_model(str(folder), tmp_path / "run")
    torch.save(tensors | {"run": print}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin cannot be read"):
        convert.import_model(str(folder), tmp_path / "run")


@pytest.mark.parametrize("case", ["bert_erf", "gpt2", "openai_gpt"])
def test_live_ten_adamw_steps(case, make, tmp_path):
    import torch

    theirs, batch = make.make(case, tmp_path / "there", seed=2)
    convert.import_model(str(tmp_path / "there"), tmp_path / "run")
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.01)
    expected = []
    for _ in range(10):
        loss = make.loss(theirs, case, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        expected.append(loss.item())

    vocab_size = theirs.config.vocab_size
    model, params = open_run(tmp_path / "run", vocab_size)
    batch = {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()}
    inputs = inputs_of(batch, True, False)
    schedule = {
        "schedule": "constant",
        "learning_rate": 1e-2,
        "end_learning_rate": 0.0,
        "warmup_steps": 0,
        "total_steps": 10,
    }
    groups = parse_groups(((".*", {}),))
    ours = make_optimizer(
        assign_groups(params, groups, weight_decay=0.01, no_decay=()),
        schedule,
        b1=0.9,
        b2=0.999,
        epsilon=1e-8,
        clip_norm=1.0,
        adam="adamw",
    )

    def terms(params, batch, key):
        out = outputs_of(model, params, inputs, vocab_size)
        return {"loss": (objective(out, batch), 1.0, {})}

    step = jax.jit(
        make_train_step(terms, ours, make_schedule(**schedule), micro_batches=1)
    )
    state, found = create_state(params, ours), []
    for _ in range(10):
        state, metrics = step(state, batch, jax.random.key(0))
        found.append(float(metrics["loss"]))
    assert expected[-1] < expected[0] - 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


# Strictness


def edited(case, folder, weights=None, **settings):
    """A copy of a golden folder; `weights` changes its dict of arrays in place."""
    shutil.copytree(GOLDEN / case, folder)
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(config))
    if weights:
        arrays = load_file(folder / "model.safetensors")
        weights(arrays)
        save_file(arrays, folder / "model.safetensors")
    return str(folder)


DECODER = "cls.predictions.decoder.weight"
QUERY = "bert.encoder.layer.1.attention.self.query.weight"
WORDS = "bert.embeddings.word_embeddings.weight"


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        (
            "bert_erf",
            lambda w: w.pop(QUERY),
            "layer.1.attention.self.query.weight is ",
        ),
        ("bert_erf", lambda w: w.update({QUERY: w[QUERY][:5]}), r"\(5, 12\), not \(12"),
        ("bert_erf", lambda w: w.update(extra=w[QUERY]), "extra has no place here"),
        ("bert_erf", lambda w: w.update({DECODER: 2 * w[WORDS]}), "differs from emb"),
        (
            "bert_erf",
            lambda w: w.pop("bert.pooler.dense.bias"),
            "pooler.dense.bias is",
        ),
        (
            "bert_erf",
            lambda w: [w.update({f"other.{n}": w.pop(n)}) for n in [*w]],
            r"is missing;.*is missing; other\.\S+ has no place here.* in all",
        ),
        ("bert_span", lambda w: w.pop("qa_outputs.weight"), "qa_outputs.weight is"),
        (
            "bert_tagging",
            lambda w: w.pop("classifier.weight"),
            "classifier.weight is",
        ),
        (
            "gpt2",
            lambda w: w.update({"lm_head.weight": 1 + w["transformer.wte.weight"]}),
            "lm_head.weight differs from wte.weight",
        ),
    ],
)
def test_weights_that_do_not_fit(case, change, message, tmp_path):
    source = edited(case, tmp_path / "there", change)
    with pytest.raises(UserError, match=message):
        convert.import_model(source, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "roberta"}, "'roberta'; supported are bert, gpt2, openai-gpt"),
        ({"architectures": ["BertLMHeadModel"]}, "BertLMHeadModel.*BertForPreTraining"),
        ({"architectures": None}, "architecture None"),
        ({"hidden_act": "silu"}, "hidden_act='silu'; supported are gelu"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "is_decoder=True"),
        (
            {"num_attention_heads": 0},
            r"config\.json has num_attention_heads=0: it must",
        ),
        ({"hidden_size": None}, "hidden_size=None: it must be a whole number, at"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers='two': it must be"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob=1.5: .*less than 1"),
        ({"hidden_act": ["gelu"]}, r"hidden_act=\['gelu'\]; supported are gelu"),
        ({"model_type": ["bert"]}, r"model_type=\['bert'\]: it must be a text"),
        ({"architectures": "Bert"}, "architectures='Bert': it must be a list"),
        ({"classifier_dropout": "no"}, "classifier_dropout='no': it must be a number"),
        ({"id2label": ["a"]}, r"id2label=\['a'\]: it must be an object"),
        ({"id2label": {"a": "b"}}, "id2label=.*a name of its own for each number"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label=.*for each number"),
        ({"id2label": {"0": "a", "1": None}}, "id2label=.*for each number"),
        ({"id2label": {"0": "a", "1": "a"}}, "id2label=.*a name of its own"),
        ({"num_attention_heads": 5}, "12 is not divisible by 5 heads"),
        ({"num_hidden_layers": 3}, "encoder.layer.2.*is missing"),
        ({"num_hidden_layers": 1}, "encoder.layer.1.*has no place here"),
        ({"vocab_size": 99}, "word_embeddings.weight is"),
    ],
)
def test_configs_that_are_not_supported(settings, message, tmp_path):
    source = edited("bert_erf", tmp_path / "there", **settings)
    with pytest.raises(UserError, match=message):
        convert.import_model(source, tmp_path / "run")


def test_labels_must_be_as_many_as_the_head_has(tmp_path):
    source = edited("bert_tagging", tmp_path / "there", id2label={"0": "a", "1": "b"})
    with pytest.raises(UserError, match="2 labels in id2label, but the head"):
        convert.import_model(source, tmp_path / "run")


def test_quantised_weights_are_refused(tmp_path):
    def quantise(weights):
        weights[QUERY] = weights[QUERY].astype(np.int8)

    source = edited("bert_erf", tmp_path / "there", quantise)
    with pytest.raises(UserError, match=r"query\.weight is I8; quantised"):
        convert.import_model(source, tmp_path / "run")


@pytest.mark.parametrize("case", ["bert_tanh", "gpt2"])
def test_tokenizer_of_another_model(case, tmp_path):
    folder = Path(edited(case, tmp_path / "there"))
    for path in folder.glob("[vt]o*"):
        path.unlink()
    pieces = ["[UNK]", *(f"w{i}" for i in range(999))]
    (folder / "vocab.txt").write_text("\n".join(pieces))
    with pytest.raises(UserError, match="1000 pieces, but its model"):
        convert.import_model(str(folder), tmp_path / "run")


def test_tokenizer_config_rules_over_its_files(tmp_path):
    """do_lower_case over what capitals in vocab.txt, or tokenizer.json, say."""
    for case in ("bert_tanh", "bert_span"):
        folder = Path(edited(case, tmp_path / case))
        for lower, pieces in ((True, ["the"]), (False, ["[UNK]"])):
            rules = {"do_lower_case": lower}
            (folder / "tokenizer_config.json").write_text(json.dumps(rules))
            tokenizer = tokenizers.load(str(folder))
            ids = tokenizer.encode_batch(["THE"])[0]
            assert [tokenizer.pieces[i] for i in ids] == pieces


def test_damaged_files(tmp_path, monkeypatch):
    folder = Path(edited("bert_erf", tmp_path / "there"))
    weights = folder / "model.safetensors"
    attempt = partial(convert.import_model, str(folder), tmp_path / "run")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or truncated"):
        attempt()
    weights.unlink()
    with pytest.raises(UserError, match="has no weights: none of"):
        attempt()
    (folder / "pytorch_model.bin").write_bytes(b"\0")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="PyTorch, which is not installed"):
        attempt()
    for content, message in (("{", "is not JSON"), ("[1]", "a list, not a JSON obj")):
        (folder / "config.json").write_text(content)
        with pytest.raises(UserError, match=rf"config\.json .*{message}"):
            attempt()
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="holds no checkpoint that is known"):
        attempt()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], "holds a list"),
        ({}, "has no weight_map"),
        ({"weight_map": ["a"]}, "has no weight_map"),
        (
            {"weight_map": {"a": "../x.safetensors"}},
            r"names \.\./x\.safetensors, which",
        ),
        ({"weight_map": {"a": "/x.safetensors"}}, "not a file beside it"),
        ({"weight_map": {"a": "x.safetensors"}}, "x.safetensors is missing; the index"),
    ],
)
def test_indexes_that_are_refused(index, message, tmp_path):
    folder = Path(edited("gpt2", tmp_path / "there"))
    (folder / "model.safetensors").rename(tmp_path / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=message):
        convert.import_model(str(folder), tmp_path / "run")


def test_folders_that_are_not_there_or_not_empty(imported, tmp_path):
    with pytest.raises(UserError, match="neither a folder nor a hub name"):
        convert.import_model("./no/such/folder", tmp_path / "run")

    run = imported("bert_span")
    with pytest.raises(UserError, match="is not empty"):
        convert.import_model(str(GOLDEN / "bert_span"), run)
    with pytest.raises(UserError, match="is not empty"):
        convert.export_model(run, run)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for target in (Path("/dev/full"), run / "config.json", tmp_path / "link"):
        with pytest.raises(UserError, match=f"{target}: a file is in the place"):
            convert.export_model(run, target)
    (tmp_path / "link").unlink()
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    convert.export_model(run, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and any((tmp_path / "there").iterdir())


def test_an_imported_span_has_no_answer_at_the_first_token(imported):
    """Where transformers' run_qa.py trains it, for decoders as well."""
    task = configs.read_config(imported("bert_span")).task
    assert task.null_position == "first"


def test_what_the_hub_raises_is_the_users(tmp_path, monkeypatch):
    """Of the real library, without a network; and nothing else is."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for source, reason in (
        ("google-bert/bert-base-uncased", "Cannot find .* cached snapshot"),
        ("a--b/c", "Cannot have --"),
    ):
        with pytest.raises(UserError, match=f"no folder here, and the hub.*{reason}"):
            convert.find_folder(source)

    def download(error):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
        convert.find_folder("a/b")

    for error in (ConnectionError("no net"), hub_errors.HTTPError("no net")):
        with pytest.raises(UserError, match="gives no model of that name: no net"):
            download(error)
    refused = PermissionError(errno.EACCES, "denied", str(tmp_path))  # of its cache
    for error in (refused, ZeroDivisionError(), AttributeError("a fault of ours")):
        with pytest.raises(type(error)):
            download(error)


# Other ways to keep the same weights


def same_run(folder, case, imported, tmp_path):
    """Asserts that the folder is imported as the golden case is."""
    convert.import_model(str(folder), tmp_path / "same")
    expected, found = flat_params(imported(case)), flat_params(tmp_path / "same")
    assert expected.keys() == found.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(array, found[path], err_msg=path)


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod."])
def test_names_of_a_wrapped_model(wrapper, imported, tmp_path):
    def wrap(weights):
        for name in [*weights]:
            weights[wrapper + name] = weights.pop(name)

    same_run(edited("gpt2", tmp_path / "there", wrap), "gpt2", imported, tmp_path)


def test_old_names_buffers_and_second_names(imported, tmp_path, capsys):
    def age(weights):
        for name in [*weights]:
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            weights[old.replace("LayerNorm.bias", "LayerNorm.beta")] = weights.pop(name)
        weights[DECODER] = weights[WORDS]
        weights["bert.embeddings.position_ids"] = np.arange(12)[None]

    folder = edited("bert_erf", tmp_path / "there", age)
    same_run(folder, "bert_erf", imported, tmp_path)
    assert f"left: embeddings.position_ids, {DECODER}" in capsys.readouterr().out


def test_weights_without_prefix(imported, tmp_path):
    def bare(weights):
        for name in [*weights]:
            weights[name.removeprefix("transformer.")] = weights.pop(name)
        weights["h.0.attn.bias"] = np.ones((1, 1, 12, 12), bool)

    folder = edited("gpt2", tmp_path / "there", bare)
    same_run(folder, "gpt2", imported, tmp_path)


def test_shards(imported, tmp_path):
    folder = Path(edited("bert_tanh", tmp_path / "there"))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {}
    for number, names in enumerate((sorted(weights)[::2], sorted(weights)[1::2])):
        file = f"model-{number}.safetensors"
        save_file({name: weights[name] for name in names}, folder / file)
        places |= dict.fromkeys(names, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    same_run(folder, "bert_tanh", imported, tmp_path)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-1\.safetensors is missing"):
        convert.import_model(str(folder), tmp_path / "run")


def test_bfloat16_weights_become_float32(tmp_path):
    folder = Path(edited("bert_span", tmp_path / "there"))
    weights = load_file(folder / "model.safetensors")
    rounded = {name: jnp.asarray(x, jnp.bfloat16) for name, x in weights.items()}
    flax.save_file(rounded, folder / "model.safetensors")
    convert.import_model(str(folder), tmp_path / "run")
    kernel = flat_params(tmp_path / "run")["head/dense/kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel.T, rounded["qa_outputs.weight"])


def test_google_checkpoint(imported, tmp_path, monkeypatch):
    """TensorFlow aside: names as in run_pretraining.py, kernels [in, out]."""
    folder = tmp_path / "google"
    shutil.copytree(GOLDEN / "bert_erf", folder)
    (folder / "config.json").rename(folder / "bert_config.json")
    (folder / "bert_model.ckpt.index").touch()
    found = {"global_step": google.Weight((), lambda: np.int64(7))}
    for name, weight in load_file(folder / "model.safetensors").items():
        array = weight
        there = re.sub(r"\.layer\.(\d+)\.", r"/layer_\1/", name).replace(".", "/")
        there = there.replace("LayerNorm/weight", "LayerNorm/gamma")
        there = there.replace("LayerNorm/bias", "LayerNorm/beta")
        there = there.replace("_embeddings/weight", "_embeddings")
        there = there.replace("cls/predictions/bias", "cls/predictions/output_bias")
        there = re.sub(r"(seq_relationship/)(weight|bias)$", r"\1output_\2", there)
        there = there.replace("output_weight", "output_weights")
        if there.endswith("/weight"):
            there, array = there.replace("/weight", "/kernel"), weight.T
        found[there] = google.Weight(array.shape, partial(np.array, array))
        found[f"{there}/adam_m"] = found[there]
    monkeypatch.setattr(google, "open_checkpoint", lambda prefix: found)
    same_run(folder, "bert_erf", imported, tmp_path)


def test_openai_release(tmp_path):
    """Ten shards of one vector, positions first; tokens are added after the words."""
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(GOLDEN / "openai_gpt/vocab.json", folder / "encoder_bpe_40000.json")
    shutil.copy(GOLDEN / "openai_gpt/merges.txt", folder / "vocab_40000.bpe")
    words, width = len(json.loads((folder / "encoder_bpe_40000.json").read_text())), 64
    layer = [(1, width, 3 * width), (3 * width,), (1, width, width), (width,)]
    layer += [(width,), (width,), (1, width, 4 * width), (4 * width,)]
    layer += [(1, 4 * width, width), (width,), (width,), (width,)]
    shapes = [(12, width), (words, width), *layer, *layer]
    (folder / "params_shapes.json").write_text(json.dumps(shapes))
    generator = np.random.default_rng(0)
    arrays = [generator.normal(size=shape).astype(np.float32) for shape in shapes]
    flat = np.concatenate([array.ravel() for array in arrays])
    for number, shard in enumerate(np.array_split(flat, 10)):
        np.save(folder / f"params_{number}.npy", shard)
    convert.import_model(str(folder), tmp_path / "run")
    params = flat_params(tmp_path / "run")
    np.testing.assert_array_equal(params["embeddings/position/embedding"], arrays[0])
    table = params["embeddings/token/embedding"]
    assert len(table) == 128 and words + 3 < 128
    np.testing.assert_array_equal(table[:words], arrays[1])
    assert 0.01 < table[words : words + 3].std() < 0.03
    assert not table[words + 3 :].any()
    key = arrays[14][0, :, width : 2 * width]
    np.testing.assert_array_equal(params["layer_1/attention/key/kernel"], key)
    scale, bias = params["layer_0/feed_forward_norm/scale"], arrays[13]
    np.testing.assert_array_equal(scale, arrays[12])
    np.testing.assert_array_equal(params["layer_0/feed_forward_norm/bias"], bias)
    fields = configs.read_config(tmp_path / "run").model
    assert (fields.num_heads, fields.table_dropout, fields.pre_norm) == (1, True, False)
    make_frame(tokenizers.load(str(tmp_path / "run")), fields)
    (folder / "params_9.npy").unlink()
    with pytest.raises(UserError, match=r"params_9\.npy"):
        convert.import_model(str(folder), tmp_path / "again")


# What comes after


def test_import_finetune_export_import(imported, tmp_path):
    """And the head that was trained here is the one that transformers would load."""
    lines = ["text\tlabel", *["the run\tsport", "a cafe\tart"] * 4]
    (tmp_path / "topics.tsv").write_text("\n".join(lines) + "\n")
    run = tmp_path / "topics"
    arguments = {
        "config": f"{CONFIGS}/topic.py:tiny",
        "config.init_from": imported("bert_erf"),
        "config.data.train": tmp_path / "topics.tsv",
        "config.data.max_length": 8,
        "config.data.train_examples": 0,
        "workdir": run,
    }
    flags = [f"--{name}={value}" for name, value in arguments.items()]
    assert finetune.main(["finetune.py", *flags]) == 0
    convert.export_model(run, tmp_path / "export")
    config = json.loads((tmp_path / "export/config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "art", "1": "sport"}
    convert.import_model(str(tmp_path / "export"), tmp_path / "again")
    expected, found = flat_params(run), flat_params(tmp_path / "again")
    assert expected.keys() == found.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(array, found[path])


def test_heads_that_transformers_has_not(imported):
    fields = configs.read_config(imported("gpt2")).model.to_dict()
    with pytest.raises(UserError, match=r"a head for classification.*gpt2.*tagging"):
        transformers.exported_architecture(fields, "classification", [])
    form = transformers.FORMATS["openai-gpt"]
    for change in ({"ffn_size": 9}, {"head_dim": 3}, {"activation": "gelu_erf"}):
        with pytest.raises(UserError, match=f"{next(iter(change))}|heads of"):
            transformers.exported_settings(fields | {"pre_norm": False} | change, form)


@pytest.mark.parametrize("name", ["pooling", "layers", "kind"])
def test_a_head_that_transformers_lacks_is_refused(name):
    """Whose parameters may be those of one that it has."""
    head = head_of(0.1)
    assert (
        transformers.exported_task("similarity", (), head)["classifier_dropout"] == 0.1
    )
    choices = {"pooling": "mean", "layers": "mix", "kind": "lstm"}
    head[name] = choices[name]
    with pytest.raises(UserError, match=f"no class with head.{name}='{choices[name]}'"):
        transformers.exported_task("similarity", (), head)


def test_one_dropout_of_two_is_exported_and_the_other_told(imported, capsys):
    fields = configs.read_config(imported("bert_erf")).model.to_dict()
    capsys.readouterr()
    form = transformers.FORMATS["bert"]
    rates = {"embedding_dropout": 0.3, "residual_dropout": 0.2}
    settings = transformers.exported_settings(fields | rates, form)
    assert settings["hidden_dropout_prob"] == 0.2
    assert capsys.readouterr().out == (
        "model.embedding_dropout=0.3 is not exported: transformers has one "
        "hidden_dropout_prob, which is 0.2\n"
    )
    transformers.exported_settings(fields, form)
    assert not capsys.readouterr().out
