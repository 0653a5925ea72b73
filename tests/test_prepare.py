"""Preparing: tokenizer and shards of a config, and shards that stand alone."""

import json
import os
import shutil

import pytest

from configs import bert_mini
from data import docstrings, shards, tokenizer_training
from errors import UserError
from pretraining import corpus

TEXTS = docstrings.pydoc_topics()


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Of a masked language model, on a file of its own; the cache is empty."""
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "texts.txt").write_text("\n\n".join([*TEXTS[:40], TEXTS[0]]))
    config = bert_mini.get_config("tiny")
    config.data.corpus = str(tmp_path / "texts.txt")
    return config


@pytest.fixture
def trainings(monkeypatch):
    """A name for each tokenizer that is trained."""
    seen, train = [], tokenizer_training.train

    def counted(documents, **settings):
        seen.append(settings["algorithm"])
        return train(documents, **settings)

    monkeypatch.setattr(tokenizer_training, "train", counted)
    return seen


def test_a_touched_file_is_the_same_corpus(config, tmp_path, trainings):
    _, folder = corpus.prepare(config)
    os.utime(tmp_path / "texts.txt", ns=(0, 10**18))
    tokenizer, again = corpus.prepare(config)
    assert (again, trainings) == (folder, ["wordpiece"])
    assert shards.read_key(folder)["tokenizer"] == tokenizer.fingerprint


def test_other_libraries_learn_another_tokenizer(config, trainings, monkeypatch):
    corpus.prepare(config)
    made_with = tokenizer_training.made_with() | {"tokenizers": "0.0.1"}
    monkeypatch.setattr(tokenizer_training, "made_with", lambda: made_with)
    corpus.prepare(config)
    assert len(trainings) == 2
    assert made_with.keys() == {"format_version", "tokenizers", "sentencepiece"}


def test_shards_stand_alone(config, tmp_path, trainings):
    config.data.shards = str(tmp_path / "shards")
    tokenizer, folder = corpus.prepare(config)
    (tmp_path / "texts.txt").unlink()
    shutil.rmtree(tmp_path / "cache")
    moved = folder.rename(tmp_path / "elsewhere")
    config.data.shards = str(moved)
    again, found = corpus.prepare(config)
    assert (found, again.serialized) == (moved, tokenizer.serialized)
    assert trainings == ["wordpiece"]
    assert not (tmp_path / "cache").exists()


def test_shards_of_another_making_are_refused(config, tmp_path):
    config.data.shards = str(tmp_path / "shards")
    _, folder = corpus.prepare(config)
    config.objective.name = "next_sentence"
    with pytest.raises(UserError, match=r"split_sentences: there False, now True"):
        corpus.prepare(config)
    config.objective.name = "masked_lm"
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    config.data.tokenizer.path = str(vocabulary)
    with pytest.raises(UserError, match=r"another tokenizer than that of .*vocab\.txt"):
        corpus.prepare(config)
    config.data.tokenizer.path = str(folder)
    corpus.prepare(config)
    key = shards.read_key(folder) | {"format_version": 1}
    (folder / "key.json").write_text(json.dumps(key))
    with pytest.raises(UserError, match=r"shards in .* another version of Foreword"):
        corpus.prepare(config)


def test_what_is_told_of_the_text(config, capsys):
    _, folder = corpus.prepare(config)
    digest = shards.read_key(folder)["corpus"]["digest"]
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"corpus {config.data.corpus} (digest {digest}): 41 documents, 2.4% of them "
        "copies of another (1); 0 without text skipped; 0.00% unknown pieces; upper "
        "and lower case are one"
    )
