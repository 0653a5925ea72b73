"""Uses a run: continues text, or fills in masked words.

python predict.py generate  --workdir=runs/gpt_mini  --prompt="Returns a list"
python predict.py fill_mask --workdir=runs/bert_mini --text="The [MASK] of a list"
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

import configs
import errors
import models
from data import tokenizers
from data.pretraining import framing
from data.tokenizers import Tokenizer
from errors import UserError
from training.checkpoints import load_params


def main(argv: list[str]) -> int:
    arguments = parse_arguments(argv[1:])
    return arguments.command(load_run(Path(arguments.workdir)), arguments)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="predict.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    generation = commands.add_parser("generate", help="continue a text (GPT)")
    generation.add_argument("--prompt", default="", help="the text to continue")
    generation.add_argument("--max_tokens", type=int, default=100)
    generation.add_argument("--samples", type=int, default=1)
    generation.add_argument("--temperature", type=float, default=0.8, help="0: greedy")
    generation.add_argument("--top_k", type=int, default=0, help="0: all tokens")
    generation.add_argument("--top_p", type=float, default=1.0, help="nucleus; 1: all")
    generation.add_argument("--seed", type=int, default=0)
    generation.set_defaults(command=generate_command)

    filling = commands.add_parser("fill_mask", help="fill in [MASK] (BERT)")
    filling.add_argument("--text", help="one text; without it, lines of --input")
    filling.add_argument("--input", help="a file of lines; without it, stdin")
    filling.add_argument("--top", type=int, default=5, help="candidates shown")
    filling.set_defaults(command=fill_mask_command)

    for command in (generation, filling):
        command.add_argument("--workdir", required=True, help="a run of train.py")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Run:
    """What a run folder holds: the config, the tokenizer, the model, the weights."""

    folder: Path
    config: ConfigDict
    tokenizer: Tokenizer
    model: Any
    params: Any


def load_run(folder: Path) -> Run:
    """Opens a run folder with the parameters of the lowest held-out loss."""
    config = configs.read_config(folder)
    tokenizer = tokenizers.load(str(folder))
    model = models.build(config.model.to_dict(), "float32")
    params, _ = load_params(folder)
    return Run(folder, config, tokenizer, model, jax.device_put(params))


def require(run: Run, objective: str, command: str) -> None:
    """Raises UserError where the run was not trained for what is asked of it."""
    if run.config.objective.name != objective:
        raise UserError(
            f"{command} needs a {objective} run, but {run.folder} was trained with "
            f"objective.name={run.config.objective.name!r}"
        )


# Continuing a text.


def generate_command(run: Run, arguments: argparse.Namespace) -> int:
    require(run, "causal_lm", "generate")
    check_sampling(arguments)
    tokenizer = run.tokenizer
    prompt = tokenizer.encode_batch([arguments.prompt])[0]
    start = framing("causal_lm", False, tokenizer).document_start
    if start is not None:
        prompt = np.concatenate([np.array([start], np.int32), prompt])
    limit = run.config.model.max_positions
    if len(prompt) == 0:
        raise UserError(
            "--prompt is empty, and this run's tokenizer has no start token: write a "
            "few words to continue"
        )
    if len(prompt) + arguments.max_tokens > limit:
        raise UserError(
            f"the prompt has {len(prompt)} tokens and --max_tokens="
            f"{arguments.max_tokens}, but the model has {limit} positions: "
            "shorten one of them"
        )
    end = tokenizer.special_ids.get("end_of_text")
    never = [i for i in tokenizer.special_ids.values() if i != end]
    samples = generate(
        run.model,
        run.params,
        jnp.tile(prompt, (arguments.samples, 1)),
        jax.random.key(arguments.seed),
        num_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_k=min(arguments.top_k, tokenizer.vocab_size),
        top_p=arguments.top_p,
        banned=np.array([*never, *range(tokenizer.vocab_size, run.model.vocab_size)]),
    )
    for sample in np.asarray(samples):
        stops = np.flatnonzero(sample == end)
        kept = sample[: stops[0]] if len(stops) else sample
        print(arguments.prompt + tokenizer.decode(kept.tolist()))
        if arguments.samples > 1:
            print("-" * 40)
    return 0


def check_sampling(arguments: argparse.Namespace) -> None:
    """Raises UserError on sampling settings out of range."""
    for name, value, fine in (
        ("max_tokens", arguments.max_tokens, arguments.max_tokens >= 1),
        ("samples", arguments.samples, arguments.samples >= 1),
        ("temperature", arguments.temperature, arguments.temperature >= 0),
        ("top_k", arguments.top_k, arguments.top_k >= 0),
        ("top_p", arguments.top_p, 0 < arguments.top_p <= 1),
    ):
        if not fine:
            raise UserError(f"--{name}={value} is out of range: see generate --help")


@partial(
    jax.jit, static_argnames=("model", "num_tokens", "temperature", "top_k", "top_p")
)
def generate(
    model: Any,
    params: Any,
    prompt: Int[Array, "B T"],
    key: Any,
    *,
    num_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    banned: Int[Array, " N"],
) -> Int[Array, "B num_tokens"]:
    """Samples `num_tokens` after each prompt, with a key-value cache of static size.

    `banned` ids are never drawn.
    """
    batch, length = prompt.shape
    cache = model.empty_cache(batch, length + num_tokens)

    def logits_of(tokens: Array, cache: Any) -> tuple[Array, Any]:
        out = model.apply({"params": params}, tokens, deterministic=True, cache=cache)
        return out["logits"][:, -1].at[:, banned].set(-jnp.inf), out["cache"]

    def draw(carry: tuple, key: Any) -> tuple[tuple, Array]:
        logits, cache = carry
        token = sample_token(logits, key, temperature, top_k, top_p)
        return logits_of(token[:, None], cache), token

    keys = jax.random.split(key, num_tokens)
    return jax.lax.scan(draw, logits_of(prompt, cache), keys)[1].T


def sample_token(
    logits: Float[Array, "B V"],
    key: Any,
    temperature: float,
    top_k: int,
    top_p: float,
) -> Int[Array, " B"]:
    """One token a row: greedy at temperature 0, else drawn from the kept ones.

    `top_k` keeps the k most probable; `top_p` keeps the most probable ones whose share
    first reaches p (Holtzman et al. 2020, 3.1). 0 and 1 keep all.
    """
    if temperature == 0:
        return jnp.argmax(logits, axis=-1)
    logits = logits / temperature
    if top_k:
        kth = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        shares = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(shares, axis=-1) - shares
        last = jnp.where(before < top_p, ordered, jnp.inf).min(axis=-1, keepdims=True)
        logits = jnp.where(logits < last, -jnp.inf, logits)
    return jax.random.categorical(key, logits, axis=-1)


# Filling in masked words.


def fill_mask_command(run: Run, arguments: argparse.Namespace) -> int:
    require(run, "masked_lm", "fill_mask")
    for text in read_texts(arguments):
        ids, masked = encode_masked(run, text)
        probabilities = fill_mask(run.model, run.params, ids, masked)
        print(text)
        for position, row in enumerate(probabilities):
            best = np.argsort(row)[::-1][: arguments.top]
            words = [f"{run.tokenizer.decode([i])} {row[i]:.3f}" for i in best]
            name = f"[MASK] {position + 1}" if len(masked) > 1 else "[MASK]"
            print(f"  {name}: " + "   ".join(words))
    return 0


def read_texts(arguments: argparse.Namespace) -> Iterable[str]:
    """The text of `--text`, else the lines of `--input`, else those of stdin."""
    if arguments.text is not None:
        return [arguments.text]
    if arguments.input is None:
        return (line.rstrip("\n") for line in sys.stdin)
    path = Path(arguments.input)
    if not path.is_file():
        raise UserError(f"--input={path} is not a file")
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"--input={path} is not UTF-8: {error}") from error


def encode_masked(run: Run, text: str) -> tuple[np.ndarray, np.ndarray]:
    """`[CLS] text [SEP]`, the mask token's id at each [MASK], and where those are."""
    special = run.tokenizer.special_ids
    name = run.tokenizer.pieces[special["mask"]]
    if name not in text:
        raise UserError(f"no {name} in {text!r}: write {name} where a word is missing")
    parts = run.tokenizer.encode_batch(text.split(name))
    ids = [special["cls"], *parts[0]]
    for part in parts[1:]:
        ids += [special["mask"], *part]
    ids.append(special["sep"])
    if len(ids) > run.config.model.max_positions:
        raise UserError(
            f"the text has {len(ids)} tokens, but the model has "
            f"{run.config.model.max_positions} positions: shorten it ({text[:60]!r}...)"
        )
    ids = np.asarray(ids, np.int32)
    return ids, np.flatnonzero(ids == special["mask"])


def fill_mask(
    model: Any, params: Any, ids: np.ndarray, masked: np.ndarray
) -> np.ndarray:
    """Probabilities `[number of masks, V]` of the tokens at the masked positions."""
    out = model.apply(
        {"params": params},
        jnp.asarray(ids[None]),
        predict_positions=jnp.asarray(masked[None], jnp.int32),
        deterministic=True,
    )
    return np.asarray(jax.nn.softmax(out["logits"][0], axis=-1))


if __name__ == "__main__":
    errors.run(main)
