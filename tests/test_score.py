"""Scoring a run: log-probabilities, minimal pairs, perplexity, tasks, bad input."""

import dataclasses
import gzip
import itertools
import json
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.metrics import matthews_corrcoef

import convert
import errors
import score
import use
from benchmarks import scoring as benchmark
from data import corpora, pairs, shards
from data.labelled import Record
from data.pairs import Pair
from errors import UserError
from models.transformer import logits
from pretraining.counts import Ngrams, Stream, stream_of
from use import measured, minimal_pairs, prompts, reading, scoring
from use.prompts import Prompt

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests/golden"
SPECS = sorted((ROOT / "configs/score").glob("*.json"))
GOOD = ["the cafes run, run", "unaffable", "a naive world", "ll run ning 1", "the 12"]
BAD = ["the cafe run, run", "unaffables", "a world naive", "ll is running 1", "THE 12"]


@pytest.fixture(scope="module", autouse=True)
def quick():
    patch = pytest.MonkeyPatch()
    patch.setattr(measured, "RESAMPLES", 100)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Imported ones, by way."""
    folder = tmp_path_factory.mktemp("runs")
    cases = {"causal": "gpt2", "masked": "bert_erf", "tuned": "bert_classification"}
    for name, case in cases.items():
        convert.import_model(str(GOLDEN / case), folder / name)
    return {name: use.open_run(folder / name) for name in cases}


def of_way(way, texts):
    """As many words as the golden GPT-2, which has few merges, has positions for."""
    return [text[:11] for text in texts] if way == "causal" else texts


# Log-probabilities


@partial(jax.jit, static_argnames=("model", "output"))
def all_scores(model, params, batch, output):
    read = {"tokens": batch[0], "segment_ids": batch[1]}
    return logits(model.apply(params, read)[output])[0]


def logged(run, output, tokens):
    """log p of all words at each position, those that an import added left out."""
    batch = np.zeros((2, 1, 12), np.int32)
    batch[0, 0, : len(tokens)], batch[1, 0, : len(tokens)] = tokens, 1
    scores = np.array(all_scores(run.model, run.params, batch, output), np.float64)
    scores = scores[: len(tokens)]
    special = run.tokenizer.special_ids
    for role in ("start", "delimiter", "extract"):
        if role in special:
            scores[:, special[role]] = -np.inf
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def plain_causal(run, text):
    """One sentence at a time."""
    (pieces,) = run.tokenizer.encode_batch([text])
    tokens = [run.tokenizer.special_ids["end_of_text"], *pieces.tolist()]
    found = logged(run, "causal_lm", tokens[:-1])
    return sum(found[i, token] for i, token in enumerate(tokens[1:]))


def plain_masked(run, text, within_word=False):
    """One word at a time."""
    special = run.tokenizer.special_ids
    (pieces,) = run.tokenizer.encode_batch([text])
    total = 0.0
    for place, piece in enumerate(pieces):
        shown = [special["cls"], *pieces.tolist(), special["sep"]]
        shown[place + 1] = special["mask"]
        for later in range(place + 1, len(pieces)):
            if not within_word or run.tokenizer.pieces[pieces[later]][:2] != "##":
                break
            shown[later + 1] = special["mask"]
        total += logged(run, "masked_lm", shown)[place + 1, piece]
    return total


@pytest.mark.parametrize(
    ("way", "within_word"), [("causal", False), ("masked", False), ("masked", True)]
)
def test_packed_sorted_and_batched_equal_a_plain_loop(
    runs, way, within_word, monkeypatch
):
    monkeypatch.setattr(scoring, "CHUNK_TOKENS", 40)
    run, texts = runs[way], [*of_way(way, GOOD), *of_way(way, BAD), GOOD[1]]
    counted = scoring.whole_texts(run, way, texts, texts)
    found = scoring.log_probabilities(run, way, counted, within_word)
    if way == "causal":
        wanted = [plain_causal(run, text) for text in texts]
    else:
        wanted = [plain_masked(run, text, within_word) for text in texts]
    np.testing.assert_allclose(found.sums, wanted, rtol=1e-5)
    assert found.counts.tolist() == [text.last - text.first for text in counted]
    if within_word:
        plain = scoring.log_probabilities(run, way, counted)
        assert (plain.sums != found.sums).any()


def test_rows_are_full_and_hold_what_fits(runs):
    run = runs["masked"]
    texts = scoring.whole_texts(run, "masked", GOOD * 30, GOOD * 30)
    ((owners, examples),) = scoring.chunks(run, "masked", texts, False)
    shape = scoring.make_shape(run, "masked", texts, examples)
    batches = [*scoring.packing.evaluation_batches(examples, shape)]
    filled = sum(np.count_nonzero(batch["segment_ids"]) for batch in batches)
    assert filled == examples.lengths.sum()
    assert filled / sum(batch["tokens"].size for batch in batches) > 0.9
    counted = [scoring.compact(batch) for batch in batches]
    assert sum(part["weights"].sum() for part in counted) == len(owners)
    # Room for predictions, not for all positions of a row.
    assert all(part["targets"].shape[1] <= shape.length / 2 for part in counted)


def test_greedy_is_whether_each_token_is_the_likeliest(runs):
    run = runs["causal"]
    tokens = [run.tokenizer.special_ids["end_of_text"]]
    for _ in range(3):
        tokens.append(int(logged(run, "causal_lm", tokens)[-1].argmax()))
    other = [*tokens[:-1], tokens[-1] ^ 1]
    texts = [scoring.Counted(np.array(x, np.int32), 1, 4) for x in (tokens, other)]
    assert scoring.log_probabilities(run, "causal", texts).greedy.tolist() == [1, 0]


def test_ways_are_those_of_the_flag_and_of_what_a_run_can(runs):
    assert (*scoring.WAYS,) == score.WAYS
    assert [scoring.way_of(runs[way]) for way in score.WAYS] == [*score.WAYS]
    with pytest.raises(UserError, match=r"as=masked\): --as=causal"):
        scoring.way_of(runs["causal"], "masked")
    with pytest.raises(UserError, match="was fine-tuned for classification"):
        scoring.way_of(runs["tuned"])


def test_a_run_that_can_do_both_is_asked_which(runs, monkeypatch):
    """And its model is built to see the sides that the way needs."""
    outputs = ("causal_lm", "masked_lm")
    both = dataclasses.replace(runs["causal"].way, outputs=outputs)
    monkeypatch.setattr(use.Run, "way", property(lambda _: both))
    monkeypatch.setattr(scoring.models, "outputs_of", lambda _: {*outputs})
    with pytest.raises(UserError, match="choose --as=causal or --as=masked"):
        scoring.way_of(runs["causal"])
    assert scoring.way_of(runs["causal"], "masked") == "masked"
    config = ConfigDict({"model": {"family": "foreword", "sees": "left"}})
    run = dataclasses.replace(runs["causal"], config=config)
    seen = {name: scoring.fields_for(run, way) for name, way in scoring.WAYS.items()}
    assert {name: fields["sees"] for name, fields in seen.items()} == {
        "causal": "left",
        "masked": "both",
    }


@pytest.mark.parametrize("way", ["causal", "masked"])
def test_live_same_scores_as_transformers(runs, way):
    reason = "the extra parity (torch, transformers) is not installed"
    torch = pytest.importorskip("torch", reason=reason)
    library = pytest.importorskip("transformers", reason=reason)
    run = runs[way]
    texts = scoring.whole_texts(run, way, of_way(way, GOOD), GOOD)
    found = scoring.log_probabilities(run, way, texts).sums
    kind = {"causal": library.GPT2LMHeadModel, "masked": library.BertForPreTraining}
    case = {"causal": "gpt2", "masked": "bert_erf"}[way]
    model = kind[way].from_pretrained(GOLDEN / case).eval()
    for text, value in zip(texts, found, strict=True):
        tokens, places = torch.tensor(text.tokens).long(), range(text.first, text.last)
        rows = tokens.repeat(len(places), 1)
        if way == "masked":
            rows[range(len(places)), places] = run.tokenizer.special_ids["mask"]
        with torch.no_grad():
            output = model(rows)
        scores = output.logits if way == "causal" else output.prediction_logits
        shift = 1 if way == "causal" else 0
        nats = torch.log_softmax(scores.double(), -1)
        total = sum(
            float(nats[row, place - shift, tokens[place]])
            for row, place in enumerate(places)
        )
        np.testing.assert_allclose(value, total, rtol=1e-5)


# Pairs


def test_the_benchmark_runs(runs, tmp_path, monkeypatch, capsys):
    line = [f"--workdir={runs['masked'].folder}", f"--input={write_pairs(tmp_path)}"]
    monkeypatch.setattr(sys, "argv", ["scoring.py", *line, "--rounds=1"])
    benchmark.main()
    shown = capsys.readouterr().out
    assert "masked: 5 pairs," in shown and "all cores: scored and plain" in shown


def write_pairs(folder):
    """Two paradigms, in the two formats."""
    with gzip.open(folder / "agreement.txt.gz", "wt") as file:
        both = zip(BAD[:4], GOOD[:4], strict=True)
        file.write("".join(f"{bad}\n{good}\n" for bad, good in both))
    blimp = {"sentence_good": GOOD[4], "sentence_bad": BAD[4], "UID": "case"}
    (folder / "case.jsonl").write_text(json.dumps(blimp) + "\n")
    (folder / "README.md").write_text("no pairs")
    return folder


def test_pairs_are_read_from_both_formats(tmp_path):
    found = pairs.read(str(write_pairs(tmp_path)))
    assert [*found] == ["agreement", "case"]
    place = f"{tmp_path / 'agreement.txt.gz'}, line 3"
    assert found["agreement"][1] == Pair(GOOD[1], BAD[1], place)
    assert found["case"][0][:2] == (GOOD[4], BAD[4])
    assert [*pairs.read(str(tmp_path / "case.jsonl"))] == ["case"]


def test_ties_are_one_half_and_paradigms_count_the_same(runs, tmp_path, capsys):
    """The tokenizer lower-cases: of the second paradigm's pair it sees one sentence."""
    run, output = runs["masked"], tmp_path / "found.json"
    line = ["pairs", f"--workdir={run.folder}", f"--output={output}"]
    found = score.score([*line, f"--input={write_pairs(tmp_path)}"])
    good, bad = ([plain_masked(run, x) for x in texts[:4]] for texts in (GOOD, BAD))
    right = np.array(good) > np.array(bad)
    assert found["accuracy/agreement"].value == right.mean()
    assert found["accuracy/case"].value == 0.5
    assert found["accuracy"].value == (right.mean() + 0.5) / 2
    assert found["accuracy"].count == 5
    written = json.loads(output.read_text())
    assert written["results"]["accuracy"]["value"] == found["accuracy"].value
    assert written["results"]["accuracy/case"]["error"] is None  # of one pair
    assert "no 5-gram line" in capsys.readouterr().err
    score.show(found)
    assert "accuracy/agreement" in capsys.readouterr().out


def test_counts_of_the_runs_text_score_the_same_pairs(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "cache" / "text.txt"
    text.parent.mkdir()
    text.write_text("\n\n".join(GOOD * 40))
    corpus = corpora.Corpus(str(text), "text", "blank_line")
    run = runs["causal"]
    framing = run.way.framing(run.tokenizer)
    key = shards.key(corpus, run.tokenizer, 0.3, framing)
    shards.write_shards(
        corpus,
        run.tokenizer,
        shards.folder_for(key),
        heldout_fraction=0.3,
        framing=framing,
    )
    (run.folder / "data.json").write_text(json.dumps(key | {"draws_version": 1}))
    line = ["pairs", f"--workdir={run.folder}", f"--input={write_pairs(tmp_path)}"]
    monkeypatch.setattr(
        use, "score_pairs", lambda run, paradigms, *_: {"accuracy": None}
    )
    found = score.score(line)
    (run.folder / "data.json").unlink()
    assert found["5-gram/accuracy/agreement"].value == 0.75
    assert found["5-gram/accuracy/case"].value == 1  # not lower-cased
    assert found["5-gram/accuracy"].value == 0.875


def test_sums_of_counts_begin_after_the_start():
    words = np.array([0, 1, 2, 3, 0, 1, 3, 2] * 5)
    model = Ngrams(stream_of(words, np.arange(0, 41, 4)), 4, 2)
    found = minimal_pairs.text_sums(model, [np.array([0, 1, 2]), np.array([0, 3])], 1)
    stream = Stream(np.array([0, 1, 2]), np.arange(3))
    nats = np.log(model.probabilities(stream))
    np.testing.assert_allclose(found[0], nats[1:].sum(), rtol=1e-12)
    assert found[1] < nats[1]


def status_of(monkeypatch, capsys, *words):
    """Exit status and what is said."""
    monkeypatch.setattr(sys, "argv", ["score.py", *map(str, words)])
    capsys.readouterr()
    status = errors.status_of(score.main)
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "one\ntwo\nthree\n", "has 3 lines, but a pair has two"),
        ("a.txt", "one\n\ntwo\nthree\n", "line 2 is blank"),
        ("a.jsonl", '{"sentence_good": "x"}\n', "line 1: no sentence in 'sentence_bad"),
        ("a.jsonl", '{"sentence_good": "x"\n', "line 1: not JSON"),
        ("a.jsonl", '{"sentence_good": 1, "sentence_bad": ""}\n', "(there is 1)"),
        ("a.md", "one\ntwo\n", "the suffix says nothing"),
        ("a.txt", "the world\n\u200b\n", "line 1 has no text"),
        ("a.txt", "a " * 40 + "\nthe\n", "42 tokens, but the model has room for 12"),
    ],
)
def test_broken_pairs_are_one_message(
    runs, tmp_path, monkeypatch, capsys, name, content, said
):
    (tmp_path / name).write_text(content)
    line = ("pairs", f"--workdir={runs['masked'].folder}")
    given = f"--input={tmp_path / name}"
    status, told = status_of(monkeypatch, capsys, *line, given)
    assert status == 2 and said in told and told.count("\n") == 1


def test_other_mistakes_are_one_message(runs, tmp_path, monkeypatch, capsys):
    workdir, text = f"--workdir={runs['causal'].folder}", tmp_path / "text.txt"
    text.write_text("the world\n")
    given, tuned = f"--input={text}", f"--workdir={runs['tuned'].folder}"
    for words, said in (
        (["pairs", workdir, f"--input={tmp_path}/no"], "no such file or folder"),
        (["pairs", "--workdir=nowhere", given], "is not a run folder"),
        (["pairs", workdir, given, "--within_word"], "is for masked models"),
        (["pairs", workdir, given, f"--output={tmp_path}"], "is a folder"),
        (["perplexity", workdir, given, "--stride=99"], "from 1 to 12"),
        (["perplexity", workdir, given, "--stride=0"], "from 1 to 12"),
        (["perplexity", workdir, f"--input={tmp_path}/no.txt"], "no.txt"),
        (["task", workdir, f"--input={tmp_path}/no.tsv"], "--spec is missing"),
        (["task", tuned, f"--input={tmp_path}/no.tsv", "--shots=2"], "--shots goes"),
    ):
        status, told = status_of(monkeypatch, capsys, *words)
        assert status == 2 and said in told and told.count("\n") == 1, (said, told)


# Perplexity


def test_windows_count_each_token_once():
    found = [*reading.windows(10, 4, 2, 0)]
    assert found == [(0, 4, 0, 4), (2, 6, 4, 6), (4, 8, 6, 8), (6, 10, 8, 10)]
    found = [*reading.windows(10, 4, 2, 1)]
    assert found == [(0, 4, 0, 3), (2, 6, 3, 5), (4, 8, 5, 7), (6, 10, 7, 10)]
    assert [*reading.windows(3, 4, 2, 1)] == [(0, 3, 0, 3)]
    assert [*reading.windows(0, 4, 2, 1)] == []
    for count, size, stride in ((11, 4, 3), (7, 5, 5), (20, 7, 1)):
        places = [
            reading.windows(count, size, stride, x) for x in (0, (size - stride) // 2)
        ]
        for found in places:
            counted = [range(window.first, window.last) for window in found]
            assert [i for one in counted for i in one] == [*range(count)]


def test_perplexity_is_that_of_a_plain_loop(runs, tmp_path):
    run, text = runs["causal"], "the un aff run"
    (tmp_path / "text.txt").write_text(f"{text}\n\nthe world\n")
    line = ["perplexity", f"--workdir={run.folder}", f"--input={tmp_path / 'text.txt'}"]
    found = score.score([*line, "--stride=5"])
    end = run.tokenizer.special_ids["end_of_text"]
    total = count = 0
    for document in (text, "the world"):
        tokens = [*run.tokenizer.encode_batch([document])[0].tolist(), end]
        done = 0
        for full in range(12, len(tokens) + 5, 5):
            stop = min(full, len(tokens))
            begin = max(0, stop - 12)
            shown = [*([] if begin else [end]), *tokens[begin:stop]]
            nats = logged(run, "causal_lm", shown[:-1])
            for place in range(done, stop):
                row = place - begin - (1 if begin else 0)
                total -= nats[row, tokens[place]]
                count += 1
            done = stop
    np.testing.assert_allclose(found["nats_per_token"].value, total / count, rtol=1e-5)
    assert found["nats_per_token"].count == count
    size = len(text) + len("the world")
    bits = total / np.log(2) / size
    np.testing.assert_allclose(found["bits_per_byte"].value, bits, rtol=1e-5)
    np.testing.assert_allclose(
        found["perplexity"].value, np.exp(total / count), rtol=1e-4
    )


def test_pseudo_perplexity_of_what_fits_is_the_mean_of_the_pairs_score(runs):
    run = runs["masked"]
    found = use.perplexity(run, ["the cafes run"], "masked")
    (text,) = scoring.whole_texts(run, "masked", ["the cafes run"], ["here"])
    wanted = -plain_masked(run, "the cafes run") / (text.last - text.first)
    np.testing.assert_allclose(found["nats_per_token"].value, wanted, rtol=1e-5)
    assert np.isnan(found["nats_per_token"].error)  # of one window


# Tasks


RECORD = Record({"text": "the world", "label": "good", "a": "is", "b": "run"}, "here")


def test_templates_are_filled_and_marked():
    found = prompts.render("{text} [[{label}]]!", "{b} ning", RECORD)
    assert found == Prompt("the world run ning!", 10, 18, "here")
    whole = prompts.render("{text}", "", RECORD)
    assert (whole.begin, whole.end) == (0, 9)
    shown = prompts.after(found, ["a", "b"], "; ")
    assert shown.text == "a; b; the world run ning!"
    assert shown.text[shown.begin : shown.end] == "run ning"
    listed = Record({"x": ["one", "two"]}, "here")
    assert prompts.render("{label}", "{x.1} {x.0}", listed).text == "two one"
    with pytest.raises(UserError, match=r"2 items, so none for \{x.2\}"):
        prompts.render("{x.2}", "", listed)
    braces = Record({"text": "[[{label}]]"}, "here")  # of a text they mean nothing
    assert prompts.render("{text} [[{label}]]", "x", braces).text == "[[{label}]] x"


def test_what_counts_are_the_pieces_of_the_marked_characters(runs):
    run = runs["masked"]
    prompt = prompts.render("{text} [[{label}]]!", "running", RECORD)
    (found,) = prompts.encode(run, [prompt], "masked")
    pieces = [run.tokenizer.pieces[i] for i in found.tokens]
    assert pieces == ["[CLS]", "the", "world", "run", "##ning", "!", "[SEP]"]
    assert pieces[found.first : found.last] == ["run", "##ning"]
    run = runs["causal"]
    (found,) = prompts.encode(run, [prompt], "causal")
    assert run.tokenizer.decode(found.tokens[found.first : found.last]) == "running"
    assert found.last == len(found.tokens)  # what follows is not read


def test_long_prompts_lose_their_beginning(runs, capsys):
    run = runs["masked"]
    prompt = Prompt("a " * 20 + "the", 40, 43, "here")
    (found,) = prompts.encode(run, [prompt], "masked")
    assert len(found.tokens) == 12 and found.last == 11
    assert "1 of 1 prompts are longer" in capsys.readouterr().err
    with pytest.raises(UserError, match="reaches over 21 tokens"):
        prompts.encode(run, [prompt._replace(begin=0)], "masked")


def test_the_likeliest_labels_words_win_over_templates(runs):
    run, words = runs["masked"], {"good": "run", "bad": "the", "odd": "is"}
    templates = ("{text} [[{label}]]", "[[{label}]] {text}")
    spec = prompts.Spec(templates, words, False, "text", "label", " ")
    rows = [Record({"text": text, "label": "good"}, text) for text in GOOD[:3]]
    examples = [Record({"text": "a", "label": "odd"}, "there")]
    heads = (("a is ", 0), ("is a ", 1))  # the example in either template
    cases = itertools.product(rows, heads, words.values())
    sums = np.array(
        [
            marked_sum(run, row.fields["text"], head, word, template)
            for row, (head, template), word in cases
        ]
    ).reshape(3, 2, 3)
    wanted = (np.exp(sums) / np.exp(sums).sum(-1, keepdims=True)).mean(1).argmax(1)
    found = prompts.likeliest(run, spec, rows, "masked", examples, 1, 0, False)
    assert found.tolist() == wanted.tolist()


def test_templates_are_averaged_as_probabilities(runs, monkeypatch):
    by_template = np.log([[0.5, 0.45, 0.05], [0.01, 0.44, 0.55]])
    monkeypatch.setattr(prompts, "prompt_scores", lambda *_: by_template.reshape(-1))
    words = {"good": "run", "bad": "the", "odd": "is"}
    spec = prompts.Spec(("{label}", "{label}."), words, False, "text", "label", " ")
    found = prompts.likeliest(runs["masked"], spec, [RECORD], "masked", [], 0, 0, False)
    assert found.tolist() == [1]


def marked_sum(run, text, head, word, template):
    """log p of the word's one piece at its place in either template."""
    special = run.tokenizer.special_ids
    parts = [f"{head}{text}", ""] if template == 0 else [head, text]
    before, after = (run.tokenizer.encode_batch([x])[0].tolist() for x in parts)
    (piece,) = run.tokenizer.encode_batch([word])[0].tolist()
    shown = [special["cls"], *before, special["mask"], *after, special["sep"]]
    return logged(run, "masked_lm", shown)[len(before) + 1, piece]


def test_a_threshold_parts_the_examples_with_the_fewest_mistakes():
    values = np.array([0.1, 0.4, 0.35, 0.8])
    found = prompts.best_threshold(values, np.array([False, False, True, True]))
    assert found == pytest.approx(0.225)
    assert prompts.best_threshold(values, np.array([True] * 4)) == -np.inf
    assert prompts.best_threshold(values, np.array([False] * 4)) == np.inf
    same = np.array([0.5, 0.5])
    assert prompts.best_threshold(same, np.array([False, True])) in (-np.inf, np.inf)


def test_a_task_from_the_command_line(runs, tmp_path):
    rows = [("the world", "yes"), ("run", "no"), ("cafe", "no")]
    table = tmp_path / "rows.tsv"
    table.write_text("text\tlabel\n" + "".join(f"{a}\t{b}\n" for a, b in rows))
    spec = tmp_path / "spec.json"
    spec.write_text('{"templates": ["{text}"], "threshold": ["no", "yes"]}')
    line = ["task", f"--workdir={runs['causal'].folder}", f"--input={table}"]
    found = score.score([*line, f"--spec={spec}", f"--examples={table}"])
    assert found["accuracy"].value >= 2 / 3 == found["majority"].value
    with pytest.raises(UserError, match="--examples is missing"):
        score.score([*line, f"--spec={spec}"])
    spec.write_text('{"templates": ["{label}"], "labels": {"yes": "a", "no": "b"}}')
    for flags, said in (
        ([f"--examples={table}"], "--examples is for --shots"),
        (["--shots=1"], "--shots=1, but --examples has 0"),
    ):
        with pytest.raises(UserError, match=said):
            score.score([*line, f"--spec={spec}", *flags])
    for content, said in (
        ("{", "not JSON"),
        ("{}", "it needs templates, and labels"),
        ('{"templates": ["{text}"], "labels": {}, "x": 1}', r"unknown key\(s\) x"),
        ('{"templates": ["{text}"], "labels": {"a": "b", "c": "d"}}', "must have"),
        ('{"templates": ["]]{label}"], "labels": {"a": "b", "c": "d"}}', "one \\[\\["),
        ('{"templates": ["{label}"], "labels": {"a": "b"}}', "at least two labels"),
        ('{"templates": ["{label}{no}"], "labels": {"yes": "a", "no": "b"}}', "'no'"),
        ('{"templates": ["{label}"], "labels": {"a": "a", "b": "b"}}', "label 'yes'"),
    ):
        spec.write_text(content)
        with pytest.raises(UserError, match=said):
            score.score([*line, f"--spec={spec}"])


def test_the_correlation_is_that_of_sklearn():
    draw = np.random.default_rng(0)
    gold, found = draw.integers(3, size=40), draw.integers(3, size=40)
    wanted = matthews_corrcoef(gold, found)
    assert prompts.matthews(gold, found) == pytest.approx(wanted)
    assert prompts.matthews(gold, gold) == pytest.approx(1)
    assert prompts.matthews(gold, np.zeros(40, int)) == 0


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_specs_that_are_shipped_are_specs(path):
    spec = prompts.read_spec(str(path))
    columns = {name[1:-1] for name in prompts.PART.findall(json.dumps(spec))}
    fields = {name: "x" for name in columns if name.isalpha()}
    record = Record(fields | {spec.label_column: next(iter(spec.labels))}, "here")
    for template, words in itertools.product(spec.templates, spec.labels.values()):
        assert prompts.render(template, words, record).text
    assert prompts.label_of(spec, record) == 0


def test_a_fine_tuned_run_is_measured_on_another_file(runs, tmp_path, monkeypatch):
    run, table = runs["tuned"], tmp_path / "rows.tsv"
    labels = ["sport", "art", "news", "art", "sport"]
    lines = [f"{a}\t{b}\n" for a, b in zip(GOOD, labels, strict=True)]
    table.write_text("text\tlabel\n" + "".join(lines))
    predicted = [*use.predict(run, score.labelled.read(str(table)))]
    right = np.mean([x["label"] == x["gold"] for _, x in predicted])
    monkeypatch.setattr(use.labelling, "predict", lambda *_: predicted)
    found = score.score(["task", f"--workdir={run.folder}", f"--input={table}"])
    assert found["accuracy"].value == right
    assert found["accuracy"].low <= right <= found["accuracy"].high
    assert found["accuracy"].count == 5
    table.write_text("text\tlabel\nthe\tweather\n")
    with pytest.raises(UserError, match="'weather'"):
        score.score(["task", f"--workdir={run.folder}", f"--input={table}"])


# Numbers


def test_errors_are_those_of_the_formulas():
    found = measured.mean(np.array([1.0, 0.0, 0.5, 0.5]))
    assert found[:2] == (0.5, pytest.approx(np.sqrt(1 / 6) / 2))
    both = measured.mean_of([found, measured.measured(1.0, 0.3, 6)])
    assert both.value == 0.75 and both.count == 10
    assert both.error == pytest.approx(np.sqrt(1 / 24 + 0.09) / 2)
    # Equal sizes: as the mean of the stretches' means.
    sums, sizes = np.array([2.0, 4.0, 9.0]), np.array([2, 2, 2])
    found = measured.ratio(sums, sizes)
    assert found.value == 2.5 and found.count == 6
    assert found.error == pytest.approx((sums / 2).std(ddof=1) / np.sqrt(3))


def test_the_bootstrap_is_near_the_formula():
    values = np.random.default_rng(1).normal(size=200)
    found = measured.bootstrap(lambda i: {"mean": float(values[i].mean())}, 200)["mean"]
    assert found.value == values.mean()
    wanted = measured.mean(values)
    assert found.error == pytest.approx(wanted.error, rel=0.15)
    assert found.low == pytest.approx(wanted.low, abs=0.03)


# lm-eval


TASK = """
task: two_pairs
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {file}
output_type: multiple_choice
validation_split: validation
doc_to_text: ""
doc_to_target: 0
doc_to_choice: "{{{{[sentence_good, sentence_bad]}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def test_lm_eval_runs_on_a_run(runs, tmp_path, monkeypatch):
    reason = "the extra eval (lm-eval) is not installed"
    pytest.importorskip("lm_eval", reason=reason)
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    both = zip(of_way("causal", GOOD), of_way("causal", BAD), strict=True)
    rows = [{"sentence_good": good, "sentence_bad": bad} for good, bad in both]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(TASK.format(file=file))
    workdir = f"--workdir={runs['causal'].folder}"
    words = ["lm_eval", workdir, "--tasks=two_pairs", f"--include_path={tmp_path}"]
    found = score.score(words)
    pairs_found = score.score(["pairs", workdir, f"--input={file}"])
    assert found["two_pairs/acc"].value == pairs_found["accuracy"].value
    assert found["two_pairs/acc"].count == 5
    with pytest.raises(UserError, match="knows no task three"):
        score.score(["lm_eval", workdir, "--tasks=three"])

    from lm_eval.api.instance import Instance

    from use.lm_evaluation import RunModel

    model = RunModel(runs["causal"])

    def asked(kind, *arguments):
        return [Instance(kind, {}, arguments, 0, ("x", 0, 1))]

    ((nats, greedy),) = model.loglikelihood(asked("loglikelihood", "the", " run"))
    run = runs["causal"]
    assert nats == pytest.approx(
        plain_causal(run, "the run") - plain_causal(run, "the"), rel=1e-4
    )
    assert greedy is False
    (rolling,) = model.loglikelihood_rolling(asked("loglikelihood_rolling", "the run"))
    assert rolling < nats
    settings = {"until": ["e"], "max_gen_toks": 4}
    (text,) = model.generate_until(asked("generate_until", "the", settings))
    assert "e" not in text
