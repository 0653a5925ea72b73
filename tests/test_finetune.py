"""Fine-tuning: packed equals padded, a whole run, and what does not fit."""

import contextlib
import json
import os
import re
import shutil
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import configs
import finetune
import models
import train
from configs import bert_mini, gpt_mini
from configs.finetune import topic
from data import tokenizers
from data.labelled import Record
from errors import UserError
from models import heads
from models.transformer import logits
from objectives.cross_entropy import weighted_cross_entropy
from tasks import KINDS, packing, splits
from tasks.auxiliary_lm import auxiliary_lm
from tasks.encoding import Task, make_frame
from tests.task_examples import head_of
from training import loop, parallel, runs
from training.checkpoints import load_params, take_weights
from training.metrics import MetricsWriter, read_metrics
from training.step import term_means

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
    "precision": "float32",
}
MODELS = {
    "bert": bert_mini.get_config("tiny").model.to_dict() | SIZES,
    "gpt": gpt_mini.get_config("tiny").model.to_dict() | SIZES,
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


OWN = {"data.max_question_length": 4, "data.window_stride": 4}
OWN["task.null_position"] = "readout"
TASKS = {
    "classification": Task("classification", ("a", "b"), "label", None),
    "similarity": Task("similarity", ("a", "b"), "label", None),
    "choice": Task("choice", ("context",), "answer", None, ("question",), ("choices",)),
    "tagging": Task("tagging", ("words",), "tags", None),
    "span": Task("span", ("context",), "answers", None, ("question",), own=OWN),
}


def encoded(kind, family, tokenizer):
    records, task = some_records(kind), TASKS[kind]
    return splits.encode(
        KINDS[kind],
        records,
        task,
        tokenizer,
        make_frame(tokenizer, {"family": family}),
        labels=splits.label_names(KINDS[kind], records, task),
        labelled=True,
        max_length=20,
    )


def model_and_loss(kind, family, tokenizer, lm_weight):
    """Model, loss terms, and what adds the targets of the language model."""
    lm = auxiliary_lm(
        models.FAMILIES[family].outputs,
        tokenizer,
        per_sequence=False,
        mask_rate=0.15,
        longest_row=24,
    )
    lm = lm if lm_weight else None
    model = heads.build(
        MODELS[family],
        KINDS[kind].head,
        num_labels=3,
        head=head_of(0.1),
        keep=(lm.output,) if lm else (),
    )
    config = topic.get_config("tiny")
    config.objective.lm_weight = lm_weight
    tuning = finetune.Tuning(config, TASKS[kind], KINDS[kind], None, None, lm)
    terms = finetune.make_loss_terms(tuning, model)
    return model, terms, lambda batches: lm.added(batches, 0) if lm else batches


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("family", MODELS)
def test_packed_and_padded_give_the_same_loss_and_gradient(family, kind, tokenizer):
    examples = encoded(kind, family, tokenizer)
    model, terms, added = model_and_loss(
        kind, family, tokenizer, 0.5 if family == "gpt" else 0.0
    )
    length, count = 3 * int(examples.lengths.max()), len(examples.encoded)
    batches = []
    for is_packed in (False, True):  # in one shape: compiled once
        shape = packing.RowShape(count, length, 12, is_packed)
        (batch,) = added(packing.evaluation_batches(examples, shape))
        batches.append(batch)
    padded, packed = batches
    assert (packed["segment_ids"].max(axis=1) > 0).sum() < count  # it does pack
    params = runs.init_params(model, padded, 0)

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
    examples = encoded("classification", "gpt", tokenizer)
    model, terms, added = model_and_loss("classification", "gpt", tokenizer, 0.5)
    shape = packing.RowShape(8, 24, 4, True)
    (batch,) = added(packing.evaluation_batches(examples, shape))
    batch = jax.device_put(batch)
    params = runs.init_params(model, batch, 0)
    means = term_means(terms(params, batch, None))
    loss, weight, _ = weighted_cross_entropy(
        logits(model.apply(params, batch)["causal_lm"]),
        batch["lm_targets"],
        batch["lm_weights"],
    )
    # start A delimiter B extract: all but the last token of each example predict
    assert weight == examples.lengths.sum() - len(examples.encoded)
    np.testing.assert_allclose(means["auxiliary_lm_nats"], loss / weight, rtol=1e-6)
    np.testing.assert_allclose(
        means["loss"], means["classification_loss"] + 0.5 * loss / weight, rtol=1e-6
    )


# A whole run


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A tiny BERT trained for two steps on forty documents, and a labelled task."""
    folder = tmp_path_factory.mktemp("runs")
    texts = [" ".join(WORDS[i % 5 :] + WORDS[: i % 7]) + f" {i}." for i in range(40)]
    (folder / "corpus.txt").write_text("\n\n".join(texts))
    rows = [
        f"{' '.join(WORDS[i // 2 % 4 :][:5])} {'follow' if i % 2 else 'may'}\t"
        f"{'positive' if i % 2 else 'negative'}\n"
        for i in range(48)
    ]
    parts = {"train": rows[:32], "test": rows[32:], "short": (rows * 2)[:70]}
    for name, part in parts.items():
        (folder / f"{name}.tsv").write_text("text\tlabel\n" + "".join(part))
    patch = pytest.MonkeyPatch()
    patch.setenv("FOREWORD_CACHE", str(folder / "cache"))
    config = bert_mini.get_config("tiny")
    config.data.update(corpus=str(folder / "corpus.txt"), heldout_fraction=0.3)
    config.data.tokenizer.vocab_size = 300
    config.model.num_layers = 1
    config.optim.update(total_steps=2, warmup_steps=1)
    assert train.train(config, folder / "bert").step == 2
    yield SimpleNamespace(folder=folder, bert=folder / "bert")
    patch.undo()


def topic_config(given, **changes):
    config = topic.get_config("tiny")
    config.init_from = str(given.bert)
    config.data.update(
        train=str(given.folder / "train.tsv"),
        eval=str(given.folder / "test.tsv"),
        train_examples=0,
    )
    config.model.num_layers = config.run.mesh.data = 1
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
    assert re.match(r"(RESOURCE_EXHAUSTED|INTERNAL): .*Out of memory", said)
    assert "activations, gradients" in said and "data.max_length" in said


def short_config(given, **sizes):
    """Seventy short texts, packed, with dropout; evaluated every second step or so."""
    config = topic_config(given)
    config.data.train = str(given.folder / "short.tsv")
    # Gradients that are 0 but for rounding (of key biases) do not become whole updates.
    config.optim.update(epsilon=1e-2, eval_every_epochs=0.25)
    config.run.log_every_steps = 1
    config.run.mesh.update({"data": 1, "fsdp": 1, "tensor": 1} | sizes)
    return config


def done(config, folder):
    result = finetune.finetune(config, folder)
    assert result.exit_status == 0 and result.folder == folder
    return folder


def column(folder, name):
    rows = read_metrics(folder / "metrics.jsonl")
    return {row["step"]: row[name] for row in rows if name in row}


def results(folder):
    return json.loads((folder / "results.json").read_text())


def check_same(folder, expected):
    """Steps, losses, evaluations and results are those of another run."""
    for name in ("train/loss", "train/learning_rate", "eval/loss", "eval/accuracy"):
        one, other = column(folder, name), column(expected, name)
        assert one.keys() == other.keys(), name
        np.testing.assert_allclose([*one.values()], [*other.values()], rtol=1e-5)
    one, other = results(folder), results(expected)
    assert one["best_step"] == other["best_step"]
    for name, value in other["splits"]["eval"].items():
        np.testing.assert_allclose(one["splits"]["eval"][name], value, rtol=1e-5)
    one, other = (
        [
            [*json.loads(line)["probabilities"].values()]
            for line in (run / "predictions_eval.jsonl").read_text().splitlines()
        ]
        for run in (folder, expected)
    )
    np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.fixture(scope="module")
def one_device(given):
    folder = done(short_config(given), given.folder / "one_device")
    assert len({*column(folder, "train/loss").values()}) >= 8
    assert len(column(folder, "eval/loss")) >= 4
    return folder


@pytest.mark.parametrize(
    ("mode", "sizes", "micro_batches"),
    [
        ("jit", {}, 3),
        ("jit", {"data": 3}, 2),
        ("jit", {"data": 8}, 3),
        ("jit", {"data": 2, "fsdp": 2, "tensor": 2}, 1),
        ("pmap", {"data": 8}, 1),
        ("pmap", {"data": 2}, 3),
    ],
)
def test_every_layout_does_what_one_device_does(
    mode, sizes, micro_batches, given, one_device, tmp_path
):
    config = short_config(given, **sizes)
    config.run.update(parallel=mode, micro_batches=micro_batches)
    check_same(done(config, tmp_path), one_device)


def test_frozen_groups_stay_and_others_move(given, tmp_path):
    config = topic_config(
        given,
        optim__groups=(
            (r"(embeddings|.*/feed_forward)/.*", {"frozen": True}),
            (".*", {}),
        ),
    )
    assert finetune.finetune(config, tmp_path / "run").exit_status == 0
    before, after = load_params(given.bert)[0], load_params(tmp_path / "run")[0]
    for frozen in (
        lambda params: params["embeddings"],
        lambda params: params["layer_0"]["feed_forward"],
    ):
        jax.tree.map(np.testing.assert_array_equal, frozen(before), frozen(after))
    moved = np.abs(
        before["layer_0"]["attention"]["query"]["kernel"]
        - after["layer_0"]["attention"]["query"]["kernel"]
    )
    assert moved.max() > 0


def test_seeds_are_run_and_summarised(given, tmp_path, capsys):
    arguments = [
        "finetune.py",
        "--config=configs/finetune/topic.py:tiny",
        f"--config.init_from={given.bert}",
        f"--config.data.train={given.folder / 'train.tsv'}",
        f"--config.data.eval={given.folder / 'test.tsv'}",
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


@contextlib.contextmanager
def signal_at(step):
    """SIGTERM when the loss of a step is written, which is before its evaluation."""
    write = MetricsWriter.write

    def write_and_stop(self, at, values):
        write(self, at, values)
        if at == step and "train/loss" in values:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "REPEAT_SECONDS", 0.0)
        patch.setattr(MetricsWriter, "write", write_and_stop)
        yield


def test_stopped_and_resumed_on_other_devices_is_the_undisturbed_run(
    given, one_device, tmp_path, capsys
):
    """The first signal costs the evaluation with the best weights of all. Each time
    the example that comes next is shown."""
    best, last = results(one_device)["best_step"], max(column(one_device, "train/loss"))
    assert best in column(one_device, "eval/loss") and best < last - 3
    shutil.copytree(given.bert, tmp_path / "bert")
    folder, reached = tmp_path / "run", []
    for at, devices, micro_batches in ((best, 1, 1), (last - 2, 2, 2)):
        config = short_config(given, data=devices)
        config.init_from = str(tmp_path / "bert")
        config.run.micro_batches = micro_batches
        with signal_at(at):
            result = finetune.finetune(config, folder)
        assert result.exit_status == 128 + signal.SIGTERM
        assert not (folder / "results.json").exists()
        reached.append(result.step)
        # A run that has begun no longer needs what it began from.
        shutil.rmtree(tmp_path / "bert", ignore_errors=True)
    assert reached[0] == best and best < reached[1] < last
    check_same(done(config, folder), one_device)
    shown = capsys.readouterr().out
    for step in (0, *reached):
        assert f"update {step}, row 0: " in shown
    (one, at), (other, _) = load_params(folder), load_params(one_device)
    assert at == best
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, other
    )


def refuse(*_):
    raise AssertionError("compiled")


def test_a_run_that_is_done_says_so(given, one_device, capsys, monkeypatch):
    written = {path: path.stat().st_mtime_ns for path in one_device.glob("*results*")}
    for name in ("compile_programs", "compile_evaluations"):
        monkeypatch.setattr(runs, name, refuse)
    result = finetune.finetune(short_config(given), one_device)
    best, last = results(one_device)["best_step"], max(column(one_device, "train/loss"))
    assert f"results of step {best}: " in capsys.readouterr().out
    assert (result.step, result.exit_status) == (last, 0)
    assert result.metrics["loss"] == column(one_device, "eval/loss")[last]
    assert written and all(
        path.stat().st_mtime_ns == at for path, at in written.items()
    )


def test_results_that_a_stop_cost_are_written_afterwards(
    given, one_device, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "run"
    shutil.copytree(one_device, folder)
    (folder / "results.json").unlink()
    (folder / "predictions_eval.jsonl").unlink()
    monkeypatch.setattr(loop, "REPEAT_SECONDS", 0.0)
    monkeypatch.setattr(runs, "compile_programs", refuse)
    compile_evaluations = runs.compile_evaluations

    def stopped(job, held_out):
        os.kill(os.getpid(), signal.SIGTERM)
        return compile_evaluations(job, held_out)

    monkeypatch.setattr(runs, "compile_evaluations", stopped)
    result = finetune.finetune(short_config(given), folder)
    assert result.exit_status == 128 + signal.SIGTERM
    assert "the same line again" in capsys.readouterr().out
    assert not (folder / "results.json").exists()
    monkeypatch.setattr(runs, "compile_evaluations", compile_evaluations)
    check_same(done(short_config(given), folder), one_device)


# What the computation costs


def test_settings_of_the_computation_change_no_result(given, tmp_path):
    for name, settings in (
        ("plain", {}),
        (
            "saving",
            {
                "remat": "matmuls",
                "logit_chunks": 3,
                "micro_batches": 0,
                "fused_attention": True,  # none on a CPU
            },
        ),
    ):
        config = short_config(given)
        config.objective.lm_weight = 0.5
        config.run.update(settings)
        check_same(done(config, tmp_path / name), tmp_path / "plain")


def loss_program(config):
    tuning = finetune.open_task(config, None)
    job = finetune.make_job(tuning, finetune.make_mesh(config))
    program = jax.make_jaxpr(job.plan.loss_terms)(
        job.plan.state.params, job.batch(0), jax.random.key(0)
    )
    return str(program)


def test_settings_of_the_computation_reach_the_model(given, monkeypatch):
    config = short_config(given)
    config.objective.lm_weight = 0.5
    plain = loss_program(config)
    config.run.logit_chunks = 3
    assert loss_program(config).count("scan[") > plain.count("scan[")
    config.run.logit_chunks = 1
    config.run.remat = "block"
    assert loss_program(config).count("remat2[") > plain.count("remat2[")
    fused = []
    monkeypatch.setattr(
        finetune.heads,
        "build",
        lambda *_, build=heads.build, **given: (
            fused.append(given["fused_attention"]) or build(*_, **given)
        ),
    )
    config.run.fused_attention = True
    loss_program(config)
    assert fused == [True]


def test_bfloat16_trains(given, one_device, tmp_path):
    config = short_config(given)
    config.model.precision = "bfloat16"
    folder = done(config, tmp_path / "run")
    one, other = (
        np.array([*column(run, "train/loss").values()]) for run in (folder, one_device)
    )
    np.testing.assert_allclose(one, other, rtol=0.05)
    norms = [column(run, "train/grad_norm") for run in (folder, one_device)]
    assert all(norms[0][step] != norms[1][step] for step in norms[1])
    leaves = jax.tree.leaves(load_params(folder)[0])
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}


def test_dry_run_says_what_it_costs_and_trains_nothing(given, tmp_path, capsys):
    arguments = [
        "finetune.py",
        "--config=configs/finetune/topic.py:tiny",
        f"--config.init_from={given.bert}",
        f"--config.data.train={given.folder / 'short.tsv'}",
        "--config.run.mesh.data=1",
        "--config.run.micro_batches=0",
        f"--workdir={tmp_path / 'run'}",
        "--dry_run",
    ]
    assert finetune.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "parameters on 1 x cpu" in shown
    for name in ("an update: ", "an evaluation of eval: "):
        assert "total of a device" in shown.split(name)[1]
    assert "micro-batches: 1\n" in shown
    assert not (tmp_path / "run").exists()


def test_show_batch_prints_decoded_examples(given):
    shown = finetune.show_batch(topic_config(given))
    assert "[CLS]" in shown and "-> 'positive'" in shown and "padding: " in shown


def test_lines_of_each_split_are_its_own(given, tmp_path):
    """Whatever splits stand beside; one without labels has none."""
    other, blank = tmp_path / "other.tsv", tmp_path / "blank.tsv"
    other.write_text("text\tlabel\nmay may\tpositive\nmay\tnegative\nx\tnegative\n")
    blank.write_text("text\nmay\n")

    def lines(held_out, test):
        config = topic_config(given, data__eval=str(held_out), data__test=str(test))
        return finetune.lines_to_beat(finetune.open_task(config, None))

    whole = given.folder / "test.tsv"
    one, two, alone = lines(whole, other), lines(other, whole), lines(whole, blank)
    assert one["eval"] == two["test"] == alone["eval"] != one["test"] == two["eval"]
    assert one["test"]["TF-IDF"]["accuracy"] in (1 / 3, 2 / 3)
    assert [*alone] == ["eval"]


def test_from_scratch_learns_what_can_be_learnt(given, tmp_path):
    """A word decides; without a run to start from, with a tokenizer of its own."""
    config = topic_config(given, init_from="", model__init_std=0.25)
    config.optim.adam = "bert"
    config.optim.update(epochs=25.0, eval_every_epochs=5.0, learning_rate=3e-3)
    assert finetune.finetune(config, tmp_path / "run").exit_status == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["splits"]["eval"]["accuracy"] >= 0.9
    lines = results["lines"]["eval"]
    assert lines["one label for all"]["accuracy"] == 0.5
    assert lines["TF-IDF"]["accuracy"] >= 0.9
    assert not results["failed"]
    config.optim.epochs = 30.0
    with pytest.raises(UserError, match=r"optim.epochs was 25.0, is 30.0"):
        finetune.finetune(config, tmp_path / "run")


def test_a_run_that_failed_says_the_usual_causes(given, tmp_path, capsys, monkeypatch):
    config = topic_config(given, optim__learning_rate=0.0)
    compiled, compile_one = [], parallel.compile_eval_step
    monkeypatch.setattr(
        parallel, "compile_eval_step", lambda *x: compiled.append(x) or compile_one(*x)
    )
    done(config, tmp_path / "run")
    splits = {path.stem for path in (tmp_path / "run").glob("predictions_*")}
    assert len(compiled) == len(splits)  # once each: that of eval serves to the end
    assert results(tmp_path / "run")["failed"]
    before, said = capsys.readouterr().out.split("FAILED: ")
    # Told is a row a group; a row a parameter stands in the run folder.
    assert "\nhead/.*  4 " in before and "\n.*       21 " in before
    assert "layer_0/" not in before
    rows = (tmp_path / "run" / "parameters.txt").read_text().splitlines()
    assert len(rows) == 1 + 4 + 21
    assert "too few updates: 4 in 1 epochs; raise optim.epochs" in said
    assert "optim.learning_rate=0; try" in said and "--seeds=5" in said
    unknown = float(said.split("does not know: ")[1].split("%")[0])
    assert 0 <= unknown < 5


def test_text_that_the_tokenizer_does_not_know_is_told(given, tmp_path, capsys):
    config, path = short_config(given), tmp_path / "korean.tsv"
    finetune.open_task(config, None)
    assert "unknown" not in capsys.readouterr().out
    rows = ["the model 나쁜\tnegative", "the model 좋은\tpositive"] * 10
    path.write_text("\n".join(["text\tlabel", *rows]), encoding="utf-8")
    config.data.train = str(path)
    finetune.open_task(config, None)
    said = capsys.readouterr().out
    assert "train: " in said and "33.3% of the pieces are unknown to the tokeni" in said
    path.write_text("\n".join(["text\tlabel", *rows]).replace("the model", "좋은 책"))
    with pytest.raises(
        UserError, match=r"train: 100\.0% of the pieces are unknown .*uni"
    ):
        finetune.open_task(config, None)


def test_what_cannot_be_learnt_is_refused_before_anything_is_made(given, tmp_path):
    (tmp_path / "one.tsv").write_text("text\tlabel\n" + "the model\tmay\n" * 9)
    for changes, message in (
        ({"data__train": str(tmp_path / "one.tsv")}, "'may': there is nothing to"),
        ({"task__metric": "f1"}, "--config.task.positive_label=positive"),
    ):
        with pytest.raises(UserError, match=message):
            finetune.finetune(topic_config(given, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


RUNS = {  # of the ten pairs of kind and family, whose losses are all tested above
    "tagging": ("bert", 0.0, "entity_f1"),
    "span": ("gpt", 0.0, "exact_match"),
    "choice": ("bert", 0.5, "accuracy"),
    "similarity": ("gpt", 0.5, "spearman"),
}


@pytest.mark.parametrize("kind", RUNS)
def test_every_kind_runs_from_file_to_predictions(kind, given, tmp_path):
    family, lm_weight, metric = RUNS[kind]
    with (tmp_path / "data.jsonl").open("w") as file:
        for record in some_records(kind, count=12):
            file.write(json.dumps(record.fields) + "\n")
    config = topic_config(given, init_from="", objective__lm_weight=lm_weight)
    config.objective.lm_per_sequence = True  # of decoders; others do not mind
    if family == "gpt":
        config.model = gpt_mini.get_config("tiny").model
        config.model.num_layers = 1
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
    assert finetune.finetune(config, tmp_path / "run").exit_status == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    values = results["splits"]["eval"]
    assert metric in values and np.isfinite(values["loss"])
    assert ("auxiliary_lm_loss" in values) == (lm_weight > 0)
    lines = (tmp_path / "run" / "predictions_eval.jsonl").read_text().splitlines()
    assert len(lines) == round(0.3 * 12)
    parts = [name for name in values if name.endswith("_loss")]
    np.testing.assert_allclose(values["loss"], sum(values[n] for n in parts), rtol=1e-6)


# What does not fit


def params_of(**arrays):
    return {"layer_0": {name: np.ones(shape) for name, shape in arrays.items()}}


def test_weights_that_do_not_fit_are_an_error_unless_excused():
    mine = params_of(a=(2,), b=(3,)) | {"head": {"kernel": np.zeros(2)}}
    fits = params_of(a=(2,), b=(3,)) | {"masked_lm": {"bias": np.ones(3)}}
    merged, _ = take_weights(
        mine, fits, "x", may_be_new=("head/.*",), may_be_left=("masked_lm/.*",)
    )
    assert (merged["head"]["kernel"] == 0).all() and "masked_lm" not in merged
    for other, message in (
        (params_of(a=(2,)), "layer_0/b is not there"),
        (params_of(a=(2,), b=(4,)), r"layer_0/b is \(4,\) there, \(3,\) here"),
        (params_of(a=(2,), b=(3,), c=(1,)), "layer_0/c has no place here"),
    ):
        with pytest.raises(UserError, match=message):
            take_weights(mine, other, "x", may_be_new=("head/.*",), may_be_left=())
        _, report = take_weights(
            mine,
            other,
            "x",
            may_be_new=("head/.*", "layer_0/[bc]"),
            may_be_left=("layer_0/[bc]",),
        )
        assert "taken" in report


def test_a_head_for_other_labels_is_refused(tmp_path):
    task = Task("classification", ("text",), "label", None)
    splits.save_task(tmp_path, task, ("x", "y"))

    def tuning(labels, *missing):
        config = topic.get_config("tiny")
        config.allow_missing = missing
        data = splits.Splits(task, labels, {}, {}, {})
        kind = KINDS["classification"]
        return finetune.Tuning(config, task, kind, None, data, None)

    finetune.check_head(tuning(("x", "y")), tmp_path)
    with pytest.raises(UserError, match=r"labels x, y; this task is .* with x, z"):
        finetune.check_head(tuning(("x", "z")), tmp_path)
    finetune.check_head(tuning(("x", "z"), "head/.*"), tmp_path)
