"""The corpus of a config as a tokenizer and token shards, made where missing."""

import hashlib
import json
import tempfile
from pathlib import Path

from ml_collections import ConfigDict

from data import corpora, shards, tokenizers
from data.corpora import Corpus
from data.shards import THIS_PROCESS, Workers
from data.tokenizers import Tokenizer
from errors import UserError
from pretraining import check_tokenizer, way_of


def prepare(
    config: ConfigDict, workers: Workers = THIS_PROCESS
) -> tuple[Tokenizer, Path]:
    """The tokenizer of a config and the folder of its shards, made where missing.

    Raises:
      UserError: no such `objective.name`; a tokenizer that will not do for it; see
        `data/corpora.py`, `data/tokenizers.py`, `data/shards.py`.
    """
    settings = config.data
    corpus = Corpus(settings.corpus, settings.text_field, settings.document_boundary)
    tokenizer = load_or_train_tokenizer(config, corpus)
    check_tokenizer(config.objective.name, tokenizer)
    framing = way_of(config.objective.name).framing(tokenizer)
    fraction = settings.heldout_fraction
    key = shards.key(corpus, tokenizer, fraction, framing)
    folder = Path(settings.shards) if settings.shards else shards.folder_for(key)
    shards.write_shards(
        corpus,
        tokenizer,
        folder.resolve(),  # tasks elsewhere have other working folders
        heldout_fraction=fraction,
        framing=framing,
        workers=workers,
    )
    return tokenizer, folder


def load_or_train_tokenizer(config: ConfigDict, corpus: Corpus) -> Tokenizer:
    """The one of `data.tokenizer.path` or of `init_from`, else one trained on the text.

    A trained one is cached by the hash of its settings and of the corpus.

    Raises:
      UserError: `init_from` is no run; see `data/tokenizers.py`.
    """
    settings = config.data.tokenizer.to_dict()
    path = settings.pop("path")
    if not path and config.init_from:
        path = config.init_from
        if not (Path(path) / "config.json").exists():
            raise UserError(
                f"init_from={path!r} is not a run folder (it has no config.json): give "
                "the --workdir of a run, or '' to begin anew"
            )
    if path:
        return tokenizers.load(path)
    settings["special_tokens"] = way_of(config.objective.name).special_tokens
    fraction = config.data.heldout_fraction
    key = json.dumps([settings, fraction, corpus.fingerprint()], sort_keys=True)
    digest = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    folder = corpora.cache_folder() / "tokenizers" / digest
    if folder.is_dir() and any(folder.iterdir()):
        return tokenizers.load(str(folder))
    print(f"training a {settings['algorithm']} tokenizer on {corpus.source}")
    documents = (text for text in corpus if not corpora.is_heldout(text, fraction))
    tokenizer = tokenizers.train(documents, **settings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        made = tokenizer.save(Path(partial))
        folder.mkdir(exist_ok=True)
        made.replace(folder / made.name)
    return tokenizer
