"""The benchmarks run, at sizes that say nothing about speed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import configs
import train
import use
from benchmarks import device, unmasking
from benchmarks.contenders import Case, all_targets, make_batch
from configs import foreword_causal
from models.attention import Mask, attention
from training import parallel

ROOT = Path(__file__).parents[1]
BERT = Case("bert", 64, 32, 1, 1, 16, 100, 4, 0.2, 0.0, "float32")


def run(output, *arguments):
    """Stdout, which holds the report."""
    command = [sys.executable, "-m", "benchmarks.pretraining", "--tiny", *arguments]
    command += ["--rounds=1", "--steps=1", f"--output={output}"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert {*(output / "report.md").read_text().splitlines()} <= {
        *done.stdout.splitlines()
    }
    return done.stdout


def test_steps_and_scaling_are_measured_and_drawn(tmp_path):
    shown = run(
        tmp_path,
        "--sections=steps,scaling",
        "--models=gpt",
        "--contenders=foreword,nanogpt",
        "--devices=2",
    )
    assert (tmp_path / "speed.png").stat().st_size > 0
    (row,) = (line for line in shown.splitlines() if line.startswith("| foreword |"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert float(cells[1].replace(",", "")) > 0
    assert cells[1:6] == [cells[1], cells[1], "1.00", "1.00 to 1.00", "unknown chip"]
    # Nothing says where nanoGPT is, and perhaps there is no torch.
    assert "| nanogpt | ModuleNotFoundError: No module named" in shown
    assert "| jax" in shown and ", 2 x cpu |" in shown and "virtual" in shown


def test_memory_of_preparing_is_measured():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.input_pipeline", "--megabytes=1"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    cells = [cell.strip() for cell in done.stdout.splitlines()[-1].split("|")[1:-1]]
    assert cells[0] == "1" and all(float(cell) > 0 for cell in cells)


def test_input_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path))
    shown = run(tmp_path / "out", "--sections=input", "--models=gpt")
    names = r"\| (gpt_mini_tiny|causal|masked|whole words|next sentence)\b"
    rates = [line for line in shown.splitlines() if re.match(names, line)]
    assert len(rates) == 6
    assert all(float(line.split("|")[2].replace(",", "")) > 0 for line in rates)


@pytest.mark.parametrize(
    ("modules", "unneeded"),
    [
        ("prepare", {"jax", "grain"}),
        (
            "train, finetune, predict, convert",
            {"tensorflow_datasets", "sklearn", "matplotlib", "pyarrow", "torch"},
        ),
    ],
)
def test_what_a_start_does_not_need_is_not_imported(modules, unneeded):
    code = f"import sys, {modules}; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    shown = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    assert not unneeded & {*shown.stdout.split()}


def test_all_contenders_predict_the_same_of_the_same_rows():
    batch = make_batch(BERT)
    lengths = batch["segment_ids"].sum(axis=1)
    assert 0.7 < lengths.mean() / BERT.length < 0.9  # a fifth is padding
    assert (batch["predict_positions"] < lengths[:, None]).all()
    labels = all_targets(batch, -100)
    assert ((labels != -100).sum(axis=1) == BERT.predicted).all()
    predicted = np.take_along_axis(labels, batch["predict_positions"], axis=1)
    np.testing.assert_array_equal(predicted, batch["targets"])


@pytest.mark.parametrize("broken", [False, True])
def test_the_check_of_attention_finds_a_leak_between_documents(broken):
    def leaking(query, key, value, mask):
        return device.by_the_formula(query, key, value, Mask(None, None, 0, True))

    attend = leaking if broken else attention
    found = device.differences(attend, "packed", 16, True, "float32")
    assert all((value > device.LIMITS["float32"]) == broken for value in found)


@pytest.fixture
def nanogpt():
    """benchmarks/nanogpt.py, where torch is installed."""
    reason = "the extra parity (torch, transformers) is not installed"
    pytest.importorskip("torch", reason=reason)
    from benchmarks import nanogpt

    return nanogpt


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """The folder of a run from left to right that has not made an update yet."""
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "cache"))
    words = "the model reads a short text and learns which word may follow it".split()
    texts = [" ".join(words[i % 5 :] + words[: i % 7]) + f" {i}." for i in range(80)]
    (tmp_path / "corpus.txt").write_text("\n\n".join(texts))
    config = foreword_causal.get_config("tiny")
    config.data.update(corpus=str(tmp_path / "corpus.txt"), heldout_fraction=0.3)
    config.data.tokenizer.vocab_size = 300
    configs.write_run_folder(tmp_path / "run", config)
    data = train.open_data(config, parallel.make_mesh(data=1))
    train.record_origin(tmp_path / "run", data)
    return tmp_path / "run"


def test_nanogpt_has_its_size_and_learns(nanogpt, begun, capsys):
    line = [f"--workdir={begun}", "--steps=30", "--eval_every_steps=10"]
    line += ["--learning_rate=1e-3,1e-2", "--warmup_steps=5", "--device=cpu"]
    assert nanogpt.main(["", *line, f"--output={begun / 'nanogpt'}"]) == 0
    curve = (begun / "nanogpt/curve.jsonl").read_text().splitlines()
    rows = [json.loads(row) for row in curve]
    assert [row["step"] for row in rows] == [10, 20, 30] * 2
    for part in (rows[:3], rows[3:]):
        assert part[0]["bits_per_byte"] > part[-1]["bits_per_byte"] > 0
    assert capsys.readouterr().out.count("rate 0.01, update 30: ") == 2

    config = configs.read_config(begun)
    size, layers = config.model.hidden_size, config.model.num_layers
    tables = config.model.vocab_size + config.data.sequence_length
    counted = sum(x.numel() for x in nanogpt.Gpt(config).parameters())
    assert counted == tables * size + layers * (12 * size**2 + 2 * size) + size


def test_nanogpt_is_measured_on_what_the_run_holds_out(nanogpt, begun):
    text = nanogpt.open_text(begun, None, "cpu")
    split = text.data.heldout
    assert sum(text.predicted) == split.num_tokens - (len(split.documents) - 1)

    class Uniform(nanogpt.nn.Module):
        def forward(self, tokens, targets):
            return nanogpt.torch.tensor(np.log(256))

    bits = 8 * sum(text.predicted) / split.text_bytes
    assert nanogpt.measure(Uniform(), text) == pytest.approx(bits)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a run that fills in words and one that writes, of one tokenizer, and a
    file of texts."""
    folder = tmp_path_factory.mktemp("unmasking")
    words = "the model reads a short text and learns which word may follow it".split()
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(words, size)) for size in range(20, 60)]
    (folder / "texts.txt").write_text("\n".join(texts))
    shared = {
        "data.corpus": folder / "texts.txt",
        "data.document_boundary": "line",
        "data.heldout_fraction": 0.3,
        "data.tokenizer.vocab_size": 120,
        "model.vocab_size": 120,
        "optim.total_steps": 2,
        "optim.warmup_steps": 1,
        "optim.eval_every_steps": 2,
    }
    own = {
        "diffusion": ("masked", {"objective.name": "masked_diffusion"}),
        "causal": (
            "causal",
            {
                "data.tokenizer.path": folder / "diffusion",
                "data.tokenizer.special_tokens": "end_of_text=[SEP]",
            },
        ),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOREWORD_CACHE", str(folder / "cache"))
        jax.config.update("jax_disable_most_optimizations", True)
        for name, (way, settings) in own.items():
            given = shared | settings
            line = [f"--config.{key}={value}" for key, value in given.items()]
            file = f"--config={ROOT}/configs/foreword_{way}.py:tiny"
            flags = configs.parse(["train.py", file, *line], "train.py")
            train.train(flags.config, folder / name)
        jax.config.update("jax_disable_most_optimizations", False)
    return folder


def test_unmasking_stands_beside_writing(runs, monkeypatch, capsys):
    given = {"judge": "causal", "input": "texts.txt", "causal": "causal"}
    given |= {"diffusion": "diffusion"}
    flags = [f"--{name}={runs / value}" for name, value in given.items()]
    flags += ["--texts=2", "--pieces=5", "--tokens=8", "--parallel=1,4"]
    monkeypatch.setattr(sys, "argv", ["unmasking", *flags])
    unmasking.main()
    shown = capsys.readouterr().out
    assert shown.startswith("2 texts, 5 pieces and 8 after them")
    rows = [line.split(" | ") for line in shown.splitlines()[3:]]
    names = ["what really follows", "one after the other", "1 at once", "4 at once"]
    assert [row[0].removeprefix("| ") for row in rows] == names
    for _, speed, bits, share in rows[1:]:
        assert float(speed.replace(",", "")) > 0 and float(bits) > 0
        assert 0 <= float(share.removesuffix(" |")) <= 1


def test_what_is_judged_adds_up(runs):
    judge = use.open_run(runs / "causal")
    whole = "the model reads a short text and learns"
    start, middle = "the model", "the model reads a short"

    def bits(first, last):
        size = len(last) - len(first)
        return unmasking.bits_a_byte(judge, [first], [last]) * size

    assert bits(start, whole) == pytest.approx(
        bits(start, middle) + bits(middle, whole), rel=1e-5
    )
    assert bits(start, whole) > 0


def test_pairs_of_words_that_stand_once():
    # After the starts: a b, b a, a b, and c d.
    found = unmasking.distinct(["x", "y"], ["x a b a b", "y c d"])
    assert found == pytest.approx(2 / 4)


def test_beginnings_have_the_pieces_asked_for(runs):
    run = use.open_run(runs / "causal")
    found = unmasking.beginning(run, "the model reads a short text", 4)
    (pieces,) = run.tokenizer.encode_batch([found])
    assert len(pieces) == 4 and "the model reads a short text".startswith(found)
    assert unmasking.beginning(run, "the model", 40) is None
