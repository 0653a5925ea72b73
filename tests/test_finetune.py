"""Fine-tuning: packed equals padded, a whole run, and what does not fit."""

import json
import os
import shutil
import signal
from types import SimpleNamespace

import grain
import jax
import numpy as np
import pytest
from data.pretraining import Masking
from data.tasks import Task
from objectives.causal_lm import causal_lm
from training.task_metrics import is_constant

import configs
import finetune
import train
from configs import bert_mini, gpt_mini
from configs.finetune import glue, topic
from data import packing, tasks, tokenizers
from data.labelled import Record
from errors import UserError
from models import heads
from training.checkpoints import load_params, take_weights
from training.metrics import MetricsWriter, read_metrics
from training.optimizers import Group, assign_groups
from training.step import term_means


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """These programs run once; compiling them takes the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


WORDS = "the model reads a short text and learns which word may follow it".split()
SIZES = {
    "vocab_size": 64,
    "max_positions": 24,
    "num_layers": 1,
    "num_heads": 2,
    "head_dim": 4,
    "hidden_size": 8,
    "ffn_size": 16,
    "init_std": 0.3,
}
MODELS = {
    "encoder": bert_mini.get_config("tiny").model.to_dict() | SIZES,
    "decoder": gpt_mini.get_config("tiny").model.to_dict() | SIZES,
}


# Packed equals padded


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "_start_", "_delimiter_"]
    path = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    path.write_text("\n".join([*special, "_classify_", *WORDS]) + "\n")
    return tokenizers.load(str(path))


def some_words(generator, least, most):
    return generator.choice(WORDS, generator.integers(least, most)).tolist()


def some_records(kind, count=9):
    generator = np.random.default_rng(0)
    made = []
    for i in range(count):
        a, b = (" ".join(some_words(generator, 1, 9)) for _ in range(2))
        if kind == "tagging":
            words = some_words(generator, 1, 12)
            tags = generator.choice(["O", "B-X", "I-X"], len(words)).tolist()
            fields = {"words": words, "tags": tags}
        elif kind == "span":
            context = " ".join(some_words(generator, 12, 30))
            word = context.split()[i]
            start = str(context.split().index(word) and context.index(f" {word}") + 1)
            answers = {"text": [word], "answer_start": [start]}
            fields = {"context": context, "question": "a word", "answers": answers}
        elif kind == "choice":
            answers = [" ".join(some_words(generator, 1, 4)) for _ in range(3)]
            fields = {"context": a, "question": b, "choices": answers}
            fields["answer"] = str(i % 3)
        else:
            label = f"{i / 2}" if kind == "similarity" else "xyz"[i % 3]
            fields = {"a": a, "b": b, "label": label}
        made.append(Record(fields, f"f, line {i}"))
    return made


TASKS = {
    "classification": Task("classification", ("a", "b"), "label", None),
    "similarity": Task("similarity", ("a", "b"), "label", None),
    "choice": Task("choice", ("context",), "answer", None, ("question",), ("choices",)),
    "tagging": Task("tagging", ("words",), "tags", None),
    "span": Task("span", ("context",), "answers", None, ("question",)),
}


def all_alike(params):
    return assign_groups(params, (Group(".*"),), weight_decay=0.0, no_decay=())


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("family", MODELS)
def test_packed_and_padded_give_the_same_loss_and_gradient(family, kind, tokenizer):
    records, task = some_records(kind), TASKS[kind]
    examples = tasks.encode(
        records,
        task,
        tokenizer,
        family=family,
        labels=tasks.label_names(records, task),
        labelled=True,
        max_length=20,
        max_question_length=4,
        window_stride=4,
    )
    model = heads.build(
        MODELS[family],
        "float32",
        kind=kind,
        num_labels=3,
        head_dropout=0.1,
        auxiliary_lm=False,
    )
    length, count = 3 * int(examples.lengths.max()), len(examples.encoded)
    batches = []
    for is_packed in (False, True):  # in one shape: compiled once
        shape = packing.RowShape(count, length, 12, is_packed)
        (batch,) = list(packing.evaluation_batches(examples, shape))
        batches.append(batch)
    padded, packed = batches
    assert (packed["segment_ids"].max(axis=1) > 0).sum() < count  # it does pack
    params = finetune.init_params(model, padded, 0)
    terms = finetune.make_loss_terms(
        model, 0.5 if family == "decoder" else 0.0, all_alike(params)
    )

    def loss(params, batch):
        return term_means(terms(params, batch, None))["loss"]

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    one, its_grads = value_and_grad(params, padded)
    other, other_grads = value_and_grad(params, packed)
    np.testing.assert_allclose(one, other, rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(its_grads))
    assert largest > 1e-3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * largest),
        its_grads,
        other_grads,
    )


def test_the_auxiliary_loss_is_one_visible_sum(tokenizer):
    records, task = some_records("classification"), TASKS["classification"]
    examples = tasks.encode(
        records,
        task,
        tokenizer,
        family="decoder",
        labels=("x", "y", "z"),
        labelled=True,
        max_length=20,
        max_question_length=4,
        window_stride=4,
    )
    shape = packing.RowShape(8, 24, 4, True)
    (batch,) = list(packing.evaluation_batches(examples, shape))
    batch = jax.device_put(batch)
    model = heads.build(
        MODELS["decoder"],
        "float32",
        kind="classification",
        num_labels=3,
        head_dropout=0.1,
        auxiliary_lm=False,
    )
    params = finetune.init_params(model, batch, 0)
    means = term_means(
        finetune.make_loss_terms(model, 0.5, all_alike(params))(params, batch, None)
    )
    logits = heads.apply(model, params, batch, None)["logits"]
    loss, weight, _ = causal_lm(logits, batch["lm_targets"], batch["lm_weights"])
    # start A delimiter B extract: all but the last token of each example predict
    assert weight == examples.lengths.sum() - len(records)
    np.testing.assert_allclose(means["auxiliary_lm_nats"], loss / weight, rtol=1e-6)
    np.testing.assert_allclose(
        means["loss"], means["classification_loss"] + 0.5 * loss / weight, rtol=1e-6
    )


# A whole run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A tiny BERT trained for two steps on forty documents, and a labelled task."""
    folder = tmp_path_factory.mktemp("runs")
    texts = [" ".join(WORDS[i % 5 :] + WORDS[: i % 7]) + f" {i}." for i in range(40)]
    (folder / "corpus.txt").write_text("\n\n".join(texts))
    rows = [
        f"{' '.join(WORDS[i // 2 % 4 :][:5])} {'follow' if i % 2 else 'may'}\t"
        f"{'positive' if i % 2 else 'negative'}\n"
        for i in range(48)
    ]
    for name, part in (("train", rows[:32]), ("test", rows[32:])):
        (folder / f"{name}.tsv").write_text("text\tlabel\n" + "".join(part))
    patch = pytest.MonkeyPatch()
    patch.setenv("FOREWORD_CACHE", str(folder / "cache"))
    config = bert_mini.get_config("tiny")
    config.data.update(corpus=str(folder / "corpus.txt"), heldout_fraction=0.3)
    config.data.tokenizer.vocab_size = 300
    config.optim.update(total_steps=2, warmup_steps=1)
    assert train.train(config, folder / "bert") == 0
    yield SimpleNamespace(folder=folder, bert=folder / "bert")
    patch.undo()


def topic_config(runs, **changes):
    config = topic.get_config("tiny")
    config.init_from = str(runs.bert)
    config.data.update(
        train=str(runs.folder / "train.tsv"),
        eval=str(runs.folder / "test.tsv"),
        train_examples=0,
    )
    config.run.mesh.data = 1
    config.optim.epochs = 1.0
    for path, value in changes.items():
        group, _, name = path.partition("__")
        if name:
            config[group][name] = value
        else:
            config[group] = value
    return config


def test_too_little_memory_is_explained(tmp_path):
    """Attention over 2**19 tokens has 2**39 scores, terabytes of them."""
    texts = ["a short text", "reads " * 2**19]
    rows = [f"{text}\t{label}\n" for label, text in zip("xy", texts, strict=True)]
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + "".join(rows))
    config = topic.get_config("tiny")
    config.init_from = ""
    config.data.update(train=str(tmp_path / "train.tsv"), train_examples=0)
    config.data.update(eval=config.data.train, max_length=2**19, packed=False)
    config.model.update(max_positions=2**19, num_layers=1)
    config.data.batch_size = 1
    config.run.mesh.data = 1
    with pytest.raises(UserError) as caught:
        finetune.finetune(config, tmp_path / "run")
    said = str(caught.value)
    assert said.startswith("RESOURCE_EXHAUSTED: Out of memory")
    assert "activations, gradients" in said and "data.max_length" in said


def layout_config(runs, mode="jit", **sizes):
    """Without dropout, whose masks pmap draws otherwise; as many rows in any layout."""
    config = topic_config(runs, data__packed=False, data__batch_size=8)
    config.model.update(embedding_dropout=0.0, residual_dropout=0.0)
    config.model.attention_dropout = 0.0
    config.head.dropout = 0.0
    # Gradients that are 0 but for rounding (of key biases) do not become whole updates.
    config.optim.epsilon = 1e-2
    config.run.update(parallel=mode, log_every_steps=1)
    config.run.mesh.update({"data": 1, "fsdp": 1, "tensor": 1} | sizes)
    return config


@pytest.fixture(scope="module")
def one_device(runs):
    folder = runs.folder / "one_device"
    assert finetune.finetune(layout_config(runs), folder) == 0
    return folder


@pytest.mark.parametrize(
    ("mode", "sizes"),
    [
        ("jit", {"data": 2, "fsdp": 2, "tensor": 2}),
        ("jit", {"fsdp": 8}),
        ("pmap", {"data": 8}),
    ],
)
def test_every_layout_does_what_one_device_does(
    mode, sizes, runs, one_device, tmp_path
):
    assert finetune.finetune(layout_config(runs, mode, **sizes), tmp_path) == 0

    def seen(folder):
        lines = (folder / "predictions_eval.jsonl").read_text().splitlines()
        rows = read_metrics(folder / "metrics.jsonl")
        return (
            [row["train/loss"] for row in rows if "train/loss" in row],
            [list(json.loads(line)["probabilities"].values()) for line in lines],
        )

    (losses, probabilities), expected = seen(tmp_path), seen(one_device)
    assert len(set(losses)) == 4 and len(probabilities) == 16
    np.testing.assert_allclose(losses, expected[0], rtol=1e-5)
    np.testing.assert_allclose(probabilities, expected[1], rtol=1e-5)


def test_frozen_groups_stay_and_others_move(runs, tmp_path):
    config = topic_config(
        runs,
        optim__groups=((r"(embeddings|layer_0)/.*", {"frozen": True}), (".*", {})),
    )
    assert finetune.finetune(config, tmp_path / "run") == 0
    before, after = load_params(runs.bert)[0], load_params(tmp_path / "run")[0]
    for name in ("embeddings", "layer_0"):
        jax.tree.map(np.testing.assert_array_equal, before[name], after[name])
    moved = np.abs(
        before["layer_1"]["attention"]["query"]["kernel"]
        - after["layer_1"]["attention"]["query"]["kernel"]
    )
    assert moved.max() > 0


def test_seeds_are_run_and_summarised(runs, tmp_path, capsys):
    arguments = [
        "finetune.py",
        "--config=configs/finetune/topic.py:tiny",
        f"--config.init_from={runs.bert}",
        f"--config.data.train={runs.folder / 'train.tsv'}",
        f"--config.data.eval={runs.folder / 'test.tsv'}",
        "--config.data.train_examples=16",
        "--config.optim.epochs=1.0",
        "--config.run.mesh.data=1",
        f"--workdir={tmp_path}",
        "--seeds=2",
    ]
    assert finetune.main(arguments) == 0
    summary = json.loads((tmp_path / "seeds.json").read_text())
    results = [
        json.loads((tmp_path / f"seed_{seed}" / "results.json").read_text())
        for seed in (0, 1)
    ]
    losses = [result["splits"]["eval"]["loss"] for result in results]
    assert losses[0] != losses[1]
    assert summary["splits"]["eval"]["loss"]["values"] == losses
    assert finetune.main(arguments) == 0  # all done: the same again
    assert json.loads((tmp_path / "seeds.json").read_text()) == summary
    assert "mean" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"of a run, such as .*seed_0"):
        configs.read_config(tmp_path)


def test_the_summary_of_seeds():
    results = {
        seed: {"failed": seed == 4, "splits": {"eval": {"accuracy": value}}}
        for seed, value in ((3, 0.5), (4, 0.25), (5, 0.75), (6, 1.0))
    }
    summary = finetune.summarize_seeds(results)
    assert summary["failed_seeds"] == [4]
    values = summary["splits"]["eval"]["accuracy"]
    assert values["median"] == values["mean"] == 0.625
    # deviations -1/8, -3/8, 1/8, 3/8: 20/64 over 3
    np.testing.assert_allclose(values["standard_deviation"], (20 / 64 / 3) ** 0.5)


def test_a_stopped_run_resumes_to_the_same_result(runs, tmp_path, monkeypatch):
    shutil.copytree(runs.bert, tmp_path / "bert")
    config = topic_config(runs, init_from=str(tmp_path / "bert"))
    config.optim.epochs = 2.0
    config.run.log_every_steps = 1
    assert finetune.finetune(config, tmp_path / "whole") == 0
    write = MetricsWriter.write

    def write_and_stop(self, step, values):
        write(self, step, values)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsWriter, "write", write_and_stop)
    assert finetune.finetune(config, tmp_path / "cut") == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert not (tmp_path / "cut" / "results.json").exists()
    shutil.rmtree(tmp_path / "bert")  # a run that has begun no longer needs it
    assert finetune.finetune(config, tmp_path / "cut") == 0
    one, other = (
        (load_params(folder), (folder / "results.json").read_text())
        for folder in (tmp_path / "whole", tmp_path / "cut")
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_from_scratch_learns_what_can_be_learnt(runs, tmp_path):
    """A word decides; without a run to start from, with a tokenizer of its own."""
    config = topic_config(runs, init_from="", model__init_std=0.25)
    config.optim.adam = "bert"
    config.optim.update(epochs=25.0, eval_every_epochs=5.0, learning_rate=3e-3)
    assert finetune.finetune(config, tmp_path / "run") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["splits"]["eval"]["accuracy"] >= 0.9  # one label for all: 0.5
    assert not results["failed"]
    config.optim.epochs = 30.0
    with pytest.raises(UserError, match=r"optim.epochs was 25.0, is 30.0"):
        finetune.finetune(config, tmp_path / "run")


RUNS = {  # of the ten pairs of kind and family, whose losses are all tested above
    "tagging": ("encoder", 0.0, "entity_f1"),
    "span": ("decoder", 0.0, "exact_match"),
    "choice": ("encoder", 0.5, "accuracy"),
    "similarity": ("decoder", 0.5, "spearman"),
}


@pytest.mark.parametrize("kind", RUNS)
def test_every_kind_runs_from_file_to_predictions(kind, runs, tmp_path):
    family, lm_weight, metric = RUNS[kind]
    with (tmp_path / "data.jsonl").open("w") as file:
        for record in some_records(kind, count=12):
            file.write(json.dumps(record.fields) + "\n")
    config = topic_config(runs, init_from="", objective__lm_weight=lm_weight)
    config.objective.lm_per_sequence = True  # of decoders; others do not mind
    if family == "decoder":
        config.model = gpt_mini.get_config("tiny").model
        config.data.tokenizer.algorithm = "byte_bpe"
    config.data.update(train=str(tmp_path / "data.jsonl"), eval="", eval_fraction=0.3)
    config.data.max_question_length = 8
    task = TASKS[kind]
    config.task.update(
        kind=kind,
        text_columns=task.text_columns,
        label_column=task.label_column,
        question_columns=task.question_columns,
        answer_columns=task.answer_columns,
        metric=metric,
    )
    assert finetune.finetune(config, tmp_path / "run") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    values = results["splits"]["eval"]
    assert metric in values and np.isfinite(values["loss"])
    assert ("auxiliary_lm_loss" in values) == (lm_weight > 0)
    lines = (tmp_path / "run" / "predictions_eval.jsonl").read_text().splitlines()
    assert len(lines) == round(0.3 * 12)
    parts = [name for name in values if name.endswith("_loss")]
    np.testing.assert_allclose(values["loss"], sum(values[n] for n in parts), rtol=1e-6)


def test_predictions_that_do_not_differ_are_a_failed_run():
    def predictions(name, values):
        return [{name: value, "gold": i} for i, value in enumerate(values)]

    for kind, name, same, different in (
        ("classification", "label", ["a", "a"], ["a", "b"]),
        ("tagging", "tags", [["O", "O"], ["O"]], [["O", "B-X"], ["O"]]),
        ("span", "answer", ["", ""], ["", "x"]),
        ("similarity", "score", [0.5, 0.501], [0.5, 0.6]),
    ):
        assert is_constant(kind, predictions(name, same))
        assert not is_constant(kind, predictions(name, different))
        assert not is_constant(kind, predictions(name, same)[:1])


def test_sequences_weigh_the_same_in_the_auxiliary_loss_of_gpt1():
    batch = {
        "segment_ids": np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 0, 0, 0, 0, 0, 0]]),
        "lm_weights": np.float32([[1, 1, 0, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]),
    }
    plain = grain.MapDataset.range(1).map(lambda _: batch)
    third = 1 / 3
    np.testing.assert_allclose(
        packing.with_sequence_weights(plain)[0]["lm_weights"],
        [[0.5, 0.5, 0, third, third, third, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]],
        rtol=1e-6,
    )
    assert batch["lm_weights"].sum() == 6  # the batch itself is left alone
    assert glue.get_config("rte:gpt1").objective.lm_per_sequence


def test_masks_of_the_auxiliary_loss_are_drawn_by_seed_and_step(tokenizer):
    pieces = [tokenizer.pieces.index(word) for word in ("model", "reads")]
    tokens = np.tile(np.array([pieces * 6], np.int32), (3, 1))
    segment_ids = np.repeat([[1] * 12, [1] * 8 + [0] * 4, [0] * 12], 1, axis=0)
    row = {"tokens": tokens, "segment_ids": segment_ids.astype(np.int32)}
    plain = grain.MapDataset.range(100).map(lambda _: row)
    masking = Masking(
        tokenizer,
        mask_rate=0.25,
        mask_token_rate=1.0,
        random_token_rate=0.0,
        max_predictions=4,
        whole_word=False,
    )
    one, again = (packing.with_masked_tokens(plain, masking, 1) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one[5], again[5])
    assert (one[5]["masked_tokens"] != one[6]["masked_tokens"]).any()
    batch = one[5]
    np.testing.assert_array_equal(batch["tokens"], tokens)  # what the task reads
    assert batch["lm_weights"].sum(axis=1).tolist() == [3, 2, 0]
    for i in range(2):
        places = batch["predict_positions"][i][batch["lm_weights"][i] > 0]
        changed = np.flatnonzero(batch["masked_tokens"][i] != tokens[i])
        assert changed.tolist() == places.tolist()
        count = len(places)
        assert (batch["lm_targets"][i][:count] == tokens[i][places]).all()


# What does not fit


def params_of(**arrays):
    return {"layer_0": {name: np.ones(shape) for name, shape in arrays.items()}}


def test_weights_that_do_not_fit_are_an_error_unless_excused():
    mine = params_of(a=(2,), b=(3,)) | {"head": {"kernel": np.zeros(2)}}
    fits = params_of(a=(2,), b=(3,)) | {"masked_lm": {"bias": np.ones(3)}}
    merged, _ = take_weights(mine, fits, (), "x")
    assert (merged["head"]["kernel"] == 0).all() and "masked_lm" not in merged
    for other, message in (
        (params_of(a=(2,)), "layer_0/b is not there"),
        (params_of(a=(2,), b=(4,)), r"layer_0/b is \(4,\) there, \(3,\) here"),
        (params_of(a=(2,), b=(3,), c=(1,)), "layer_0/c has no place here"),
    ):
        with pytest.raises(UserError, match=message):
            take_weights(mine, other, (), "x")
        _, report = take_weights(mine, other, ("layer_0/[bc]",), "x")
        assert "taken" in report


def test_a_head_for_other_labels_is_refused(tmp_path):
    (tmp_path / "task.json").write_text(
        json.dumps({"kind": "classification", "labels": ["x", "y"]})
    )
    task = Task("classification", ("text",), "label", None)
    finetune.check_head(tmp_path, task, ("x", "y"), ())
    with pytest.raises(UserError, match=r"labels x, y; this task is .* with x, z"):
        finetune.check_head(tmp_path, task, ("x", "z"), ())
    finetune.check_head(tmp_path, task, ("x", "z"), ("head/.*",))
