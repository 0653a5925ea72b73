"""The corpus of a config as a tokenizer and token shards, made where missing."""

import json
from dataclasses import asdict
from pathlib import Path

from ml_collections import ConfigDict

import errors
from data import cache, corpora, shards, tokenizer_training, tokenizers
from data.corpora import Corpus
from data.shards import THIS_PROCESS, Workers
from data.tokenizers import Tokenizer
from errors import UserError
from pretraining import check_tokenizer, way_of


def prepare(
    config: ConfigDict, workers: Workers = THIS_PROCESS
) -> tuple[Tokenizer, Path]:
    """The tokenizer of a config and the folder of its shards, made where missing.

    Finished shards that `data.shards` names stand alone: neither the text nor the
    settings of its reading are looked at.

    Raises:
      UserError: no such `objective.name`; a tokenizer that will not do for it; shards
        made with another tokenizer than the one named, or for another way; see
        `data/corpora.py`, `data/tokenizers.py`, `data/shards.py`.
    """
    settings = config.data
    folder = Path(settings.shards) if settings.shards else None
    if folder and shards.is_finished(folder):
        tokenizer = finished_tokenizer(config, folder)
    else:
        corpus = Corpus(
            settings.corpus, settings.text_field, settings.document_boundary
        )
        tokenizer = load_or_train_tokenizer(config, corpus)
        check_tokenizer(config.objective.name, tokenizer)
        framing = way_of(config.objective.name).framing(tokenizer)
        fraction = settings.heldout_fraction
        key = shards.key(corpus, tokenizer, fraction, framing)
        folder = folder or shards.folder_for(key)
        shards.write_shards(
            corpus,
            tokenizer,
            folder.resolve(),  # tasks elsewhere have other working folders
            heldout_fraction=fraction,
            framing=framing,
            workers=workers,
        )
    print(describe(folder, tokenizer), flush=True)
    return tokenizer, folder


def finished_tokenizer(config: ConfigDict, folder: Path) -> Tokenizer:
    """The one that the shards in a folder were made with, which fits the config."""
    key = shards.read_key(folder)
    what = f"the shards in {folder} were"
    shards.check_format(key, what)
    tokenizer = tokenizers.load(str(folder))
    named = named_tokenizer(config)
    if named and named.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{what} made with another tokenizer than that of "
            f"{config.data.tokenizer.path or config.init_from}: name other shards, or "
            "data.shards='' to make them"
        )
    check_tokenizer(config.objective.name, tokenizer)
    framing = asdict(way_of(config.objective.name).framing(tokenizer))
    shards.check_same_key(key, key | {"framing": framing}, what)
    return tokenizer


def named_tokenizer(config: ConfigDict) -> Tokenizer | None:
    """The one of `data.tokenizer.path` or of `init_from`, if one of them is given.

    Raises:
      UserError: `init_from` is no run; see `data/tokenizers.py`.
    """
    path, origin = config.data.tokenizer.path, config.init_from
    if not path and origin and not (Path(origin) / "config.json").exists():
        raise UserError(
            f"init_from={origin!r} is not a run folder (it has no config.json): give "
            "the --workdir of a run, or '' to begin anew"
        )
    if not (path or origin):
        return None
    settings = config.data.tokenizer
    roles = tokenizers.parse_roles(settings.special_tokens)
    return tokenizers.load(path or origin, roles, settings.casing)


def load_or_train_tokenizer(config: ConfigDict, corpus: Corpus) -> Tokenizer:
    """The one that is named, else one trained on the text.

    A trained one is cached by the hash of its settings, of the corpus and of what it is
    trained with.

    Raises:
      UserError: see `named_tokenizer` and `data/tokenizer_training.py`.
    """
    named = named_tokenizer(config)
    if named:
        return named
    settings = config.data.tokenizer.to_dict()
    for name in tokenizers.OF_BROUGHT:
        del settings[name]
    settings["special_tokens"] = way_of(config.objective.name).special_tokens
    fraction = config.data.heldout_fraction
    made_of = [settings, fraction, corpus.fingerprint(), tokenizer_training.made_with()]
    digest = cache.digest(json.dumps(made_of, sort_keys=True).encode(), size=8)
    folder = cache.cache_folder() / "tokenizers" / digest
    if any(path.suffix != ".tmp" for path in folder.glob("tokenizer.*")):
        return tokenizers.load(str(folder))
    errors.check_folder(cache.cache_folder(), "FOREWORD_CACHE")
    print(f"training a {settings['algorithm']} tokenizer on {corpus.source}")
    documents = (text for text in corpus if not corpora.is_heldout(text, fraction))
    heldout = (text for text in corpus if corpora.is_heldout(text, fraction))
    tokenizer = tokenizer_training.train(documents, **settings, also=heldout)
    tokenizer.save(folder)
    return tokenizer


def describe(folder: Path, tokenizer: Tokenizer) -> str:
    """What finished shards were made of, and what is to be known of their text."""
    key, counts = shards.read_key(folder), shards.read_counts(folder)
    corpus = key["corpus"]
    total = {
        name: sum(counts[split][name] for split in shards.SPLITS)
        for name in counts["train"]
    }
    pieces = shards.text_pieces(total, key["framing"])
    documents, copies = total["documents"], counts["copies"]
    return (
        f"corpus {corpus['source']} (digest {corpus['digest']}): {documents:,} "
        f"documents, {copies / documents:.1%} of them copies of another "
        f"({copies:,}); {total['skipped'] + counts['empty']:,} without text skipped; "
        f"{total['unknown'] / pieces:.2%} unknown pieces; "
        f"{tokenizers.case_note(tokenizer)}"
    )
