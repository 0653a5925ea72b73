"""Tokenizers: golden ids, round trips in six scripts, and what bad input gets."""

import json
import os
import pickle
import re
import unicodedata

import numpy as np
import pytest

from data import tokenizer_training
from data.tokenizers import (
    BERT_SPECIAL_TOKENS,
    ELMO_SPECIAL_TOKENS,
    GPT_SPECIAL_TOKENS,
    JsonTokenizer,
    load,
    parse_roles,
)
from errors import UserError

SCRIPTS = {
    "latin": "Über den Ärmelkanal, naïve café; Ångström, Łódź, Tiếng Việt.",
    "korean": "대한민국의 봄날은 간다. 값싼 닭고기를 먹었다 ㅋㅋㅋ",
    "japanese": "日本語のテキスト、がぎぐげご。カタカナも。",
    "devanagari": "हिन्दी में लिखा हुआ एक वाक्य, क्‍ष।",
    "arabic": "اللُّغَةُ العربية جميلة، می‌خواهم؟",
    "emoji": "I 👩‍👩‍👧 love ❤️ it 😀🇰🇷!",
}
ENGLISH = (
    "The quick brown fox jumps over the lazy dog while the slow tortoise wins a race. "
    "She tells the tale of the fox and the tortoise to her children every evening. "
)


def train(algorithm: str, documents=None, **changes):
    settings = {
        "vocab_size": 700,
        "lowercase": False,
        "strip_accents": False,
        "unicode_form": "none",
        "special_tokens": BERT_SPECIAL_TOKENS,
        "sample_bytes": 1_000_000,
    }
    documents = documents or [ENGLISH * 20, *SCRIPTS.values()]
    return tokenizer_training.train(
        documents, algorithm=algorithm, **{**settings, **changes}
    )


@pytest.fixture(scope="module", params=tokenizer_training.ALGORITHMS)
def trained(request):
    return train(request.param)


def without_spaces(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("script", SCRIPTS)
def test_round_trip(trained, script):
    text = SCRIPTS[script]
    (ids,) = trained.encode_batch([text])
    assert trained.special_ids["unk"] not in ids
    decoded = trained.decode(ids)
    # Which forget where spaces were.
    if re.search("WordPiece|BertPreTokenizer", str(trained.serialized)):
        text, decoded = without_spaces(text), without_spaces(decoded)
    assert decoded == text


@pytest.mark.parametrize("text", ["two\n\nlines,  and\ta tab ", " 日本😀 unseen: ж ʘ"])
def test_all_but_wordpiece_spell_any_text(trained, text):
    if not re.search("WordPiece|WordLevel", str(trained.serialized)):
        assert trained.decode(trained.encode_batch([text])[0]) == text


def test_trained_interface(trained):
    assert trained.vocab_size == len(trained.pieces) <= 700
    roles = ("pad", "unk", "cls", "sep", "mask")
    assert trained.special_ids == {role: i for i, role in enumerate(roles)}
    assert trained.pieces[:5] == [*BERT_SPECIAL_TOKENS]
    texts = [ENGLISH, "", "한국어"]
    batch = trained.encode_batch(texts)
    assert [ids.dtype for ids in batch] == [np.int32] * 3
    assert len(batch[1]) == 0
    for text, ids in zip(texts, batch, strict=True):
        np.testing.assert_array_equal(ids, trained.encode_batch([text])[0])


def test_a_process_of_one_core_encodes_on_one(monkeypatch):
    trained, threads = train("sentencepiece_bpe"), []

    class Library:
        def encode(self, texts, num_threads):
            threads.append(num_threads)
            return [[0] for _ in texts]

    trained.library = Library()
    for parallel in ("true", "false"):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
        trained.encode_batch(["a"])
    assert threads == [os.cpu_count(), 1]


def test_special_tokens_in_raw_text_stay_text(trained):
    (ids,) = trained.encode_batch(["a [MASK] [CLS] [PAD] <unk>"])
    assert not {0, 2, 3, 4} & {*ids.tolist()}
    assert without_spaces(trained.decode([2, *ids, 4])).startswith("[CLS]a[")
    assert "[MASK]" in trained.decode([4])


def test_save_load_and_pickle_keep_everything(trained, tmp_path):
    path = trained.save(tmp_path)
    assert path.name in ("tokenizer.json", "tokenizer.model")
    texts = [*SCRIPTS.values(), "[MASK] stays text"]
    for again in (
        load(str(path)),
        load(str(tmp_path)),
        pickle.loads(_pickled(trained)),
    ):
        assert again.serialized == trained.serialized
        assert again.fingerprint == trained.fingerprint
        assert again.pieces == trained.pieces
        assert again.special_ids == trained.special_ids
        for before, after in zip(
            trained.encode_batch(texts), again.encode_batch(texts), strict=True
        ):
            np.testing.assert_array_equal(before, after)


def _pickled(tokenizer) -> bytes:
    return pickle.dumps(tokenizer)


@pytest.mark.parametrize("algorithm", tokenizer_training.ALGORITHMS)
def test_training_is_deterministic(algorithm):
    """Hash tables are seeded anew every time, so twice is a fair trial."""
    settings = {"lowercase": True, "strip_accents": True, "unicode_form": "NFKC"}
    first, second = (train(algorithm, **settings) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != train(algorithm).fingerprint


NORMALIZED = {  # lowercase, strip_accents, unicode_form -> what "ÀÉ ﬁ Å 각 が" becomes
    (False, False, "none"): "E\u0301É ﬁ 가\u11a8 か\u3099",
    (True, False, "none"): "e\u0301é ﬁ 가\u11a8 か\u3099",
    (False, True, "none"): "EE ﬁ 각 が",
    (False, False, "NFC"): "ÉÉ ﬁ 각 が",
    (True, False, "NFC"): "éé ﬁ 각 が",
    (True, True, "NFC"): "ee ﬁ 각 が",
    (False, False, "NFKC"): "ÉÉ fi 각 が",
    (True, True, "NFKC"): "ee fi 각 が",
}


@pytest.mark.parametrize("algorithm", ["byte_bpe", "sentencepiece_bpe"])
@pytest.mark.parametrize("settings", NORMALIZED)
def test_three_separate_settings(algorithm, settings):
    lowercase, strip_accents, unicode_form = settings
    tokenizer = train(
        algorithm,
        [ENGLISH],
        vocab_size=400,
        lowercase=lowercase,
        strip_accents=strip_accents,
        unicode_form=unicode_form,
    )
    apart = NORMALIZED[False, False, "none"]
    (ids,) = tokenizer.encode_batch([apart])
    assert tokenizer.decode(ids) == NORMALIZED[settings]


@pytest.mark.parametrize("strip_accents", [False, True])
@pytest.mark.parametrize("algorithm", tokenizer_training.ALGORITHMS)
def test_scripts_survive_every_setting(algorithm, strip_accents):
    tokenizer = train(
        algorithm, lowercase=True, strip_accents=strip_accents, unicode_form="NFC"
    )
    for script in ("korean", "japanese", "devanagari", "arabic"):
        text = unicodedata.normalize("NFC", SCRIPTS[script])
        for form in ("NFC", "NFD"):  # file names of macOS and old web pages are NFD
            (ids,) = tokenizer.encode_batch([unicodedata.normalize(form, text)])
            assert tokenizer.special_ids["unk"] not in ids
            assert without_spaces(tokenizer.decode(ids)) == without_spaces(text)


def test_sentencepiece_rules_agree_with_plain_normalization():
    """Random strings of letters and marks, in any legal order of the marks."""
    import sentencepiece

    settings = (True, False, "NFC")
    tokenizer = train(
        "sentencepiece_bpe", [ENGLISH], lowercase=True, unicode_form="NFC"
    )
    assert isinstance(tokenizer.library, sentencepiece.SentencePieceProcessor)
    generator = np.random.default_rng(0)
    letters = [chr(c) for c in range(0x20, 0x250)] + [
        chr(c) for c in range(0x1E00, 0x1F00)
    ]
    letters += [chr(c) for c in range(0xAC00, 0xD7A4, 97)]
    text = "".join(generator.permutation(letters)).replace("\u00a0", "").strip()
    for form in ("NFC", "NFD"):
        source = unicodedata.normalize(form, text)
        expected = tokenizer_training._normalize(source, *settings)
        assert tokenizer.decode(tokenizer.encode_batch([source])[0]) == expected


def test_gpt_special_tokens_come_first():
    for algorithm in ("byte_bpe", "sentencepiece_unigram"):
        tokenizer = train(algorithm, special_tokens=GPT_SPECIAL_TOKENS)
        ids = dict(tokenizer.special_ids)
        ids.pop("unk", None)
        expected = {"end_of_text": 0, "start": 1, "delimiter": 2, "extract": 3}
        assert ids == expected
        assert tokenizer.pieces[:4] == [*GPT_SPECIAL_TOKENS]


def test_starts_word():
    wordpiece = train("wordpiece")
    pieces = zip(wordpiece.pieces, wordpiece.starts_word, strict=True)
    assert all(starts == (piece[:2] != "##") for piece, starts in pieces)
    for algorithm, space in (("byte_bpe", "Ġ"), ("sentencepiece_bpe", "▁")):
        tokenizer = train(algorithm)
        (ids,) = tokenizer.encode_batch([ENGLISH])
        words = int(tokenizer.starts_word[ids].sum()) + (space == "Ġ")  # the first word
        assert words == len(ENGLISH.split()) + ENGLISH.endswith(" ")
        assert tokenizer.starts_word[:5].all()
        assert not tokenizer.starts_word[tokenizer.pieces.index("ing"[:1])]


def test_sample_is_even_bounded_and_deterministic():
    documents = [f"document {i} " + "x" * 50 for i in range(4_000)]
    sample = tokenizer_training._sample(iter(documents), 60_000)
    assert sample == tokenizer_training._sample(iter(documents), 60_000)
    assert 25_000 < sum(map(len, sample)) <= 60_000
    places = [int(passage.split()[1]) for passage in sample]
    assert places == sorted(places)
    assert 1700 < np.mean(places) < 2300
    assert tokenizer_training._sample(documents, 10**9) == documents
    (long,) = ["y" * 100_000]
    assert 0 < len(tokenizer_training._sample([long], 60_000)) <= 3


def test_too_little_text_gives_a_smaller_vocabulary_and_a_note(capsys):
    for algorithm in {*tokenizer_training.ALGORITHMS} - {*tokenizer_training.COUNTED}:
        tokenizer = train(algorithm, [ENGLISH], vocab_size=5_000)
        assert 50 < tokenizer.vocab_size < 1_000
        assert f"gives {tokenizer.vocab_size} pieces" in capsys.readouterr().out


def test_symbols_are_what_stands_between_spaces(capsys):
    tokenizer = train("symbols", ["b a\u3000b\n12\x1c3", "a b C"])
    assert tokenizer.pieces[5:] == ["b", "a", "12\x1c3", "C"]
    (ids,) = tokenizer.encode_batch([" C  a\nnever 12\x1c3 "])
    assert ids.tolist() == [8, 6, 1, 7]
    assert tokenizer.decode(ids) == "C a [UNK] 12\x1c3"
    assert tokenizer.starts_word.all()
    assert "4 symbols, with special tokens 9 pieces" in capsys.readouterr().out


def test_words_are_parted_by_punctuation_and_those_held_out_are_known():
    special = {"special_tokens": ELMO_SPECIAL_TOKENS}
    settings = special | {"also": ["c, new one; a"]}
    tokenizer = train("words", ["b a, b\na.b c"], **settings)
    own = ["b", "a", ",", ".", "c", ";", "new", "one"]
    assert tokenizer.pieces == [*ELMO_SPECIAL_TOKENS, *own]
    assert tokenizer.special_ids == {"cls": 0, "sep": 1, "unk": 2}
    (ids,) = tokenizer.encode_batch(["a.b <S> other"])
    assert ids.tolist() == [4, 6, 3, 2, 2, 2, 2]


def test_characters_are_kept_one_by_one(capsys):
    special = {"special_tokens": GPT_SPECIAL_TOKENS}
    tokenizer = train("characters", ["CC(=O)N\nc "], **special)
    assert tokenizer.pieces[4] == "<unk>" and tokenizer.special_ids["unk"] == 4
    text = "c N\n\nC=(O)"
    (ids,) = tokenizer.encode_batch([text])
    assert len(ids) == len(text) and tokenizer.decode(ids) == text
    few = train("characters", ["CC(=O)N\nc "], vocab_size=7, **special)
    assert few.pieces[5:] == ["C", "\n"]
    assert "keeps 2, and 70.00% of the text is unknown (all: 14)" in (
        capsys.readouterr().out
    )
    with pytest.raises(UserError, match=r"5 special tokens; the text.s .* make 14"):
        train("characters", ["CC(=O)N\nc "], vocab_size=5, **special)


def test_wordpiece_alphabet_leaves_room_for_words():
    ideographs = "".join(map(chr, range(0x4E00, 0x4E00 + 3_000)))
    tokenizer = train("wordpiece", [ENGLISH * 200, ideographs])
    assert tokenizer.vocab_size <= 700
    assert 250 < sum(len(piece) == 1 for piece in tokenizer.pieces) <= 350
    assert {"the", "fox", "tortoise"} <= {*tokenizer.pieces}
    assert not any(piece.startswith("##一") for piece in tokenizer.pieces)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "word"}, "algorithm 'word': must be one of wordpiece, byte_bpe"),
        ({"unicode_form": "NFD"}, "'NFD': must be one of none, NFC, NFKC"),
        ({"special_tokens": GPT_SPECIAL_TOKENS}, r"needs '\[UNK\]'"),
        ({"documents": [""]}, "no text to train a tokenizer on"),
        ({"algorithm": "byte_bpe", "vocab_size": 200}, "200 is too small .* make 261"),
        (
            {"algorithm": "sentencepiece_bpe", "vocab_size": 200},
            r"200 is too small for the text: .* make \d+",
        ),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        train(**{"algorithm": "wordpiece", **changes})


# Brought vocabularies

VOCABULARY = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]"),
    *(
        "the",
        "cafe",
        "un",
        "##want",
        "##ed",
        ",",
        "!",
        "-",
        "[",
        "]",
        "mask",
    ),  # 6 to 16
    *("東", "京", "a", "##a", "##b", "run", "##ning"),  # 17 to 23
)


def vocab_txt(tmp_path, pieces, end="\n"):
    path = tmp_path / "vocab.txt"
    path.write_bytes(end.join([*pieces, ""]).encode())
    return str(path)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("The CAFÉ, unwanted!", [6, 7, 11, 8, 9, 10, 12]),
        ("cafe\u0301\tthe\u00a0the\nthe", [7, 6, 6, 6]),
        ("running-un東京the", [22, 23, 13, 8, 17, 18, 6]),
        ("th\u0000e \ufffda\u200bb", [6, 19, 21]),  # dropped: NUL, U+FFFD, formats
        ("[MASK] [mask]", [14, 16, 15, 14, 16, 15]),
        ("a" + "a" * 99, [19] + [20] * 99),
        ("a" + "a" * 100, [1]),
        ("unknown the", [1, 6]),
    ],
)
def test_bert_rules_for_a_vocab_txt(tmp_path, text, ids):
    tokenizer = load(vocab_txt(tmp_path, VOCABULARY, end="\r\n"))
    assert tokenizer.encode_batch([text])[0].tolist() == ids


@pytest.mark.parametrize("first", ["", "\ufeff"])
def test_a_vocab_txt_is_read_line_by_line_whatever_its_pieces(tmp_path, first):
    """U+2028 and U+0085 are pieces, as in bert-base-chinese; a byte order mark none."""
    pieces = ["[PAD]", "[UNK]", "\u2028", "\x85", "<S>", "[T]", "cafe", "ئ", "a"]
    tokenizer = load(vocab_txt(tmp_path, [first + pieces[0], *pieces[1:]]))
    assert tokenizer.pieces == pieces
    assert tokenizer.encode_batch(["Café A"])[0].tolist() == [6, 8]


def test_vocab_txt_interface(tmp_path):
    tokenizer = load(vocab_txt(tmp_path, VOCABULARY))
    assert tokenizer.pieces == [*VOCABULARY]
    assert tokenizer.special_ids == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert tokenizer.decode([2, 6, 8, 9, 10, 11, 7, 12, 3]) == (
        "[CLS] the unwanted, cafe! [SEP]"
    )
    tokenizer.save(tmp_path)
    assert load(str(tmp_path)).pieces == [*VOCABULARY]
    assert tokenizer.starts_word.tolist() == [p[:2] != "##" for p in VOCABULARY]


def test_casing_and_accents_follow_the_vocabulary(tmp_path):
    def pieces_of(text, *more):
        tokenizer = load(vocab_txt(tmp_path, [*VOCABULARY, *more]))
        return [tokenizer.pieces[i] for i in tokenizer.encode_batch([text])[0]]

    assert pieces_of("CAFÉ") == ["cafe"]
    assert pieces_of("CAFÉ cafe", "The") == ["[UNK]", "cafe"]
    assert pieces_of("CAFÉ", "café") == ["café"]
    assert pieces_of("한국 CAFE", "한", "##국") == ["한", "##국", "cafe"]
    jamo = [unicodedata.normalize("NFD", s) for s in ("한", "국")]
    assert pieces_of("한국", jamo[0], "##" + jamo[1]) == [jamo[0], "##" + jamo[1]]


def test_a_setting_and_a_config_decide_the_case_of_a_vocab_txt(tmp_path):
    def pieces_of(casing, *more):
        tokenizer = load(vocab_txt(tmp_path, [*VOCABULARY, *more]), casing=casing)
        return [tokenizer.pieces[i] for i in tokenizer.encode_batch(["The CAFÉ"])[0]]

    assert pieces_of("found") == pieces_of("uncased", "X") == ["the", "cafe"]
    assert pieces_of("cased") == pieces_of("found", "X") == ["[UNK]", "[UNK]"]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert pieces_of("found", "X") == ["the", "cafe"]
    assert pieces_of("cased", "X") == ["[UNK]", "[UNK]"]  # the setting is the last word
    train("byte_bpe").save(tmp_path)
    with pytest.raises(UserError, match=r"casing='cased' is for a vocab.txt: .*itself"):
        load(str(tmp_path), casing="cased")


GPT1_MERGES = ["l o", "lo w</w>", "e r</w>", "lo w", "low er</w>"]


@pytest.fixture
def gpt1(tmp_path):
    letters = "lower,!"
    pieces = ["<unk>", *letters, *(f"{x}</w>" for x in letters)]
    pieces += ["lo", "low</w>", "er</w>", "low", "lower</w>", "\n</w>"]
    encoder = {piece: index for index, piece in enumerate(pieces)}
    (tmp_path / "encoder_bpe_40000.json").write_text(json.dumps(encoder))
    merges = "\n".join(["#version: 0.2", *GPT1_MERGES, ""])
    (tmp_path / "vocab_40000.bpe").write_text(merges)
    return tmp_path


def test_gpt1_vocabulary(gpt1):
    tokenizer = load(str(gpt1))
    (ids,) = tokenizer.encode_batch(["Lower LÓW, wol z!"])
    pieces = [tokenizer.pieces[i] for i in ids]
    assert pieces == [
        "lower</w>",
        "low</w>",
        ",</w>",
        "w",
        "o",
        "l</w>",
        "<unk>",
        "!</w>",
    ]
    assert tokenizer.decode(ids[:6]) == "lower low , wol"
    assert tokenizer.special_ids == {"unk": 0}
    assert tokenizer.starts_word.all()
    assert load(str(gpt1 / "vocab_40000.bpe")).fingerprint == tokenizer.fingerprint
    (gpt1 / "saved").mkdir()
    again = load(str(tokenizer.save(gpt1 / "saved")))
    assert again.encode_batch(["lower z"])[0].tolist() == [19, 0]


def test_gpt2_vocabulary(tmp_path):
    letters = sorted({*"lowerĠĊé", "Ã", "©"} - {"é"})
    pieces = [*letters, "lo", "low", "Ġlow", "er", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(
        json.dumps({p: i for i, p in enumerate(pieces)})
    )
    (tmp_path / "merges.txt").write_text("#version: 0.2\nl o\nlo w\nĠ low\ne r\n")
    tokenizer = load(str(tmp_path))
    (ids,) = tokenizer.encode_batch(["low lower\né"])
    assert [tokenizer.pieces[i] for i in ids] == ["low", "Ġlow", "er", "Ċ", "Ã", "©"]
    assert tokenizer.decode(ids) == "low lower\né"
    assert tokenizer.special_ids == {"end_of_text": len(pieces) - 1}
    assert tokenizer.starts_word[ids].tolist() == [
        False,
        True,
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("with_json", [False, True])
def test_a_space_before_a_text_is_set_as_its_config_says(tmp_path, with_json):
    pieces = ["l", "o", "w", "Ġ", "lo", "low", "Ġlow"]
    (tmp_path / "vocab.json").write_text(
        json.dumps({p: i for i, p in enumerate(pieces)})
    )
    (tmp_path / "merges.txt").write_text("l o\nlo w\nĠ low\n")
    plain = load(str(tmp_path))
    if with_json:
        plain.save(tmp_path)
    for asked, ids in (({}, [5]), ({"add_prefix_space": True}, [6])):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(asked))
        tokenizer = load(str(tmp_path))
        assert tokenizer.encode_batch(["low"])[0].tolist() == ids
        assert (tokenizer.fingerprint == plain.fingerprint) == (ids == [5])
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config.json is not JSON"):
        load(str(tmp_path))


END = "<|end_of_text|>"
NO_FLAGS = dict.fromkeys(("lstrip", "rstrip", "single_word"), False)


@pytest.fixture
def brought(tmp_path):
    """Writes a GPT-2 vocabulary whose end of text no spelling finds, and files."""

    def write(as_json=False, **files):
        letters = sorted({*"lowerĠĊ<ct|>_ndfx"})
        pieces = [*letters, "lo", "low", "Ġlow", "er", END]
        vocabulary = {piece: index for index, piece in enumerate(pieces)}
        (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
        (tmp_path / "merges.txt").write_text("l o\nlo w\nĠ low\ne r\n")
        if as_json:
            load(str(tmp_path)).save(tmp_path)
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return str(tmp_path), len(pieces)

    return write


def test_a_setting_tells_the_roles_of_pieces(brought, tmp_path):
    folder, count = brought()
    unknown = load(folder)
    assert unknown.special_ids == {}
    assert len(unknown.encode_batch([f"low{END}"])[0]) > 2
    told = load(folder, parse_roles(f"end_of_text={END} mask=x cls="))
    assert told.special_ids == {
        "end_of_text": count - 1,
        "mask": told.pieces.index("x"),
    }
    # In raw text it stays text, and the two are not the same to whoever keeps shards.
    assert count - 1 not in told.encode_batch([f"low{END}"])[0]
    assert told.fingerprint != unknown.fingerprint
    assert load(folder, parse_roles("mask=x")).fingerprint != told.fingerprint
    (tmp_path / "saved").mkdir()
    told.save(tmp_path / "saved")
    for again in (load(str(tmp_path / "saved")), pickle.loads(pickle.dumps(told))):
        assert again.special_ids == told.special_ids
        assert (again.roles, again.fingerprint) == (told.roles, told.fingerprint)
        assert again.decode([told.special_ids["end_of_text"]]) == END
    with pytest.raises(
        UserError, match=r"no piece '<end_of_text>': did you mean '<\|e"
    ):
        load(folder, {"end_of_text": "<end_of_text>"})
    for wrong in ("end_of_txt=x", "x"):
        with pytest.raises(UserError, match=r"is no ROLE=PIECE .*one of the roles pad"):
            parse_roles(wrong)


def test_roles_that_spelling_finds_change_nothing(tmp_path):
    plain = load(vocab_txt(tmp_path, VOCABULARY))
    told = load(str(tmp_path), parse_roles("mask=[MASK] pad=[PAD]"))
    assert (told.fingerprint, told.roles) == (plain.fingerprint, {})
    told.save(tmp_path)
    assert not (tmp_path / "special_tokens.json").exists()


ADDED = {"<ctrl>": 22, "<eod>": 23}
DECODER = {
    str(index): {"content": piece, "special": piece == "<eod>", "normalized": False}
    | NO_FLAGS
    for piece, index in ADDED.items()
}
BESIDE = {
    "map": {
        "special_tokens_map": {
            "eos_token": END,
            "additional_special_tokens": ["<eod>"],
        },
        "added_tokens": ADDED,
    },
    "config": {
        "tokenizer_config": {
            "tokenizer_class": "GPT2Tokenizer",
            "eos_token": {"__type": "AddedToken", "content": END, "normalized": False}
            | NO_FLAGS,
            "unk_token": END,
            "added_tokens_decoder": DECODER,
        },
        "special_tokens_map": {"eos_token": "low"},  # that lists them, so it counts
        "added_tokens": {"<old>": 22},
    },
}


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("files", BESIDE)
def test_what_transformers_writes_beside_it_is_read(brought, files, as_json):
    folder, count = brought(as_json, **BESIDE[files])
    tokenizer = load(folder)
    assert count == 22
    assert tokenizer.special_ids == {"end_of_text": count - 1}
    assert tokenizer.pieces[count:] == ["<ctrl>", "<eod>"]
    # One is found in raw text, the special one stays text.
    found = tokenizer.encode_batch(["low<ctrl>low<eod>"])[0].tolist()
    low = tokenizer.pieces.index("low")
    assert found[:3] == [low, 22, low] and 23 not in found


# A piece of the vocabulary that is found in raw text before all others.
FIRST = {"17": {"content": "lo", "special": False, "normalized": False} | NO_FLAGS}
CONFIG = BESIDE["config"]["tokenizer_config"]
BESIDE_LIVE = BESIDE | {
    "known": {
        "tokenizer_config": CONFIG | {"added_tokens_decoder": DECODER | FIRST},
    }
}


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("files", BESIDE_LIVE)
def test_live_transformers_reads_the_same(brought, files, as_json):
    reason = "the extra parity (torch, transformers) is not installed"
    library = pytest.importorskip("transformers", reason=reason)
    folder, _ = brought(as_json, config={"model_type": "gpt2"}, **BESIDE_LIVE[files])
    there, here = library.AutoTokenizer.from_pretrained(folder), load(folder)
    assert there.eos_token_id == here.special_ids["end_of_text"]
    ids = {piece: there.convert_tokens_to_ids(piece) for piece in here.pieces}
    assert ids == {piece: index for index, piece in enumerate(here.pieces)}
    for text in ("low lower", "low<ctrl> lower", "<ctrl><ctrl>x"):
        found = there(text, add_special_tokens=False)["input_ids"]
        assert here.encode_batch([text])[0].tolist() == found


def test_live_a_vocab_txt_with_added_tokens_is_read_the_same(tmp_path):
    reason = "the extra parity (torch, transformers) is not installed"
    library = pytest.importorskip("transformers", reason=reason)
    count = len(VOCABULARY)
    files = {
        "config": {"model_type": "bert"},
        "added_tokens": {"NewTok": count, "héro": count + 1},
        "tokenizer_config": {"do_lower_case": True, "mask_token": "[MASK]"},
    }
    vocab_txt(tmp_path, [*VOCABULARY])
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    there, here = library.AutoTokenizer.from_pretrained(tmp_path), load(str(tmp_path))
    for text in ("the NewTok", "THE newtokcafé", "café Héro hero", "unwanted!"):
        found = there(text, add_special_tokens=False)["input_ids"]
        assert here.encode_batch([text])[0].tolist() == found
    assert there.mask_token_id == here.special_ids["mask"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"added_tokens": {"<ctrl>": 25}},
            r"'<ctrl>' has the id 25, but it is 22 ther",
        ),
        ({"added_tokens": {"low": 3}}, r"'low' has the id 3, but it is \d+ there"),
        ({"added_tokens": {"<ctrl>": "x"}}, r"the added tokens are damaged"),
        ({"special_tokens_map": []}, r"special_tokens_map.json is no JSON object"),
    ],
)
def test_files_beside_it_that_do_not_fit_are_named(brought, files, message):
    folder, _ = brought(**files)
    with pytest.raises(UserError, match=message):
        load(folder)


def test_pieces_are_added_to_sentencepiece_and_have_roles(tmp_path):
    plain = train("sentencepiece_unigram", special_tokens=())
    plain.save(tmp_path)
    count = plain.vocab_size
    added = {"<ctrl>": count, "<eod>": count + 1}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<eod>"}')
    fox = next(i for i, piece in enumerate(plain.pieces) if piece in ("▁o", "▁the"))
    tokenizer = load(str(tmp_path), {"mask": plain.pieces[fox]})
    ids = {"unk": 0, "end_of_text": count + 1, "mask": fox}
    assert tokenizer.special_ids == ids
    found = tokenizer.encode_batch(["<ctrl>over the fox<eod>"])[0].tolist()
    assert count in found and not {fox, count + 1} & {*found}
    assert pickle.loads(pickle.dumps(tokenizer)).special_ids == ids
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved")
    assert load(str(tmp_path / "saved")).special_ids == ids


def test_a_brought_tokenizer_json_is_neither_cut_nor_padded(tmp_path):
    library = train("byte_bpe").library
    library.enable_truncation(2)
    library.enable_padding(length=9)
    library.save(str(tmp_path / "mine.json"))
    tokenizer = load(str(tmp_path / "mine.json"))
    assert isinstance(tokenizer, JsonTokenizer)
    assert tokenizer.decode(tokenizer.encode_batch([ENGLISH])[0]) == ENGLISH
    assert len(tokenizer.encode_batch(["a"])[0]) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.txt", "a\nb\n", "vocab.txt has no line '[UNK]'"),
        ("vocab.txt", "[UNK]\nb\nb\n", "vocab.txt has 'b' 2 times"),
        ("vocab.txt", "<unk>\t0\n▁the\t-3.1\n", "is a SentencePiece vocabulary"),
        ("tokenizer.json", "{", "tokenizer.json is not JSON"),
        ("tokenizer.json", "{}", "neither a tokenizer.json nor named as"),
        ("tokenizer.model", "no model", "tokenizer.model is no SentencePiece model"),
        ("encoder_bpe_40000.json", "{}", "vocab_40000.bpe is missing"),
        ("vocab.json", '{"a": 0}', "merges.txt is missing"),
        ("tokenizer.bin", "", "the suffix must be .json, .model or .txt"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        load(str(tmp_path / name))


def test_bad_paths_and_pairs_are_named(gpt1, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        load(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds none of tokenizer.json, .*vocab"):
        load(str(tmp_path / "empty"))
    (gpt1 / "vocab_40000.bpe").write_text("#version\nl o\nq u\n")
    with pytest.raises(UserError, match="lacks 'q', which the merge 'q u' needs"):
        load(str(gpt1))
    (gpt1 / "vocab_40000.bpe").write_text("#version\nl o w\n")
    with pytest.raises(UserError, match="'l o w' is not a pair of pieces"):
        load(str(gpt1))
