"""Continuing a text: token by token, or by filling in masked words."""

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from data.tokenizers import Tokenizer, count_pieces
from errors import UserError
from models import Model
from models.transformer import logits
from use.run import Run
from use.sampling import sample_token
from use.unmasking import unmask_tokens

MAX_TOKENS = 100


def generate(
    run: Run,
    prompt: str,
    *,
    max_tokens: int | None = None,
    parallel: int | None = None,
    samples: int = 1,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[str]:
    """What follows the prompt, `samples` times; an end of text ends it.

    Args:
        max_tokens: at most so many; None: up to `MAX_TOKENS`, as the model has
            positions. Of what has more of them than the model only the end is read.
        parallel: words filled in at once, by a run that fills in masked words [1].
        temperature: 0 takes the most probable token each time.
        top_k: draws among so many; 0 among all.
        top_p: draws among the most probable ones whose share reaches it.

    Raises:
      UserError: settings out of range, or a prompt that is empty.
    """
    for name, value, fine in (
        ("max_tokens", max_tokens, max_tokens is None or max_tokens >= 1),
        ("parallel", parallel, parallel is None or parallel >= 1),
        ("samples", samples, samples >= 1),
        ("temperature", temperature, 0 <= temperature < math.inf),
        ("top_k", top_k, top_k >= 0),
        ("top_p", top_p, 0 < top_p <= 1),
        ("seed", seed, 0 <= seed < 2**32),
    ):
        if not fine:
            raise UserError(f"--{name}={value} is out of range: see generate --help")
    run.check("generate")
    fills_in = "causal_lm" not in run.way.outputs
    if parallel is not None and not fills_in:
        raise UserError(
            "--parallel is for a run of objective.name='masked_diffusion', and "
            f"{run.folder} reads from left to right, a word at a time: remove it"
        )
    if not fills_in and not hasattr(run.model.module, "empty_cache"):
        raise UserError(
            f"generate needs a model that keeps what it has read, and one of "
            f"model.family={run.config.model.family!r} does not: use predict.py embed"
        )
    tokenizer = run.tokenizer
    (pieces,) = tokenizer.encode_batch([prompt])
    run.tell_unknown(*count_pieces(tokenizer, pieces))
    ids = np.array([*run.start, *pieces], np.int32)
    if len(ids) == 0:
        raise UserError(
            "--prompt is empty, and this run's tokenizer has no start token: write a "
            "few words to continue"
        )
    limit = run.config.model.max_positions
    room = limit - len(ids)
    if max_tokens is None:
        max_tokens = min(MAX_TOKENS, room) if room > 0 else MAX_TOKENS
    if max_tokens > room and fills_in:
        raise UserError(
            f"the model has {limit} positions, but the prompt {len(ids)} tokens, and "
            f"--max_tokens={max_tokens} are to follow: ask for at most {max(room, 0)}"
        )
    if max_tokens > room:
        print(
            f"the model has {limit} positions, but the prompt {len(ids)} tokens, and "
            f"up to {max_tokens} follow: in the end it reads the last ones only",
            file=sys.stderr,
        )
    end = None if fills_in else run.end
    model = run.model.seeing("both" if fills_in else "left")
    never = [i for i in tokenizer.special_ids.values() if i != end]
    never += range(tokenizer.vocab_size, run.config.model.vocab_size)
    ways = {
        "temperature": temperature,
        "top_k": min(top_k, tokenizer.vocab_size),
        "top_p": top_p,
        "banned": np.array(never, np.int32),
    }
    prompts, key = np.tile(ids, (samples, 1)), jax.random.key(seed)
    if fills_in:
        drawn = np.asarray(
            unmask_tokens(
                model,
                run.params,
                prompts,
                key,
                num_tokens=max_tokens,
                mask=tokenizer.special_ids["mask"],
                parallel=parallel or 1,
                **ways,
            )
        )
    else:
        drawn = generate_windows(
            partial(generate_tokens, model, run.params, **ways),
            prompts,
            key,
            num_tokens=max_tokens,
            limit=limit,
            end=end,
        )
    texts = []
    for sample in drawn:
        stops = np.flatnonzero(sample == end)
        kept = sample[: stops[0]] if len(stops) else sample
        texts.append(continuation(tokenizer, prompt, pieces.tolist(), kept.tolist()))
    return texts


def continuation(
    tokenizer: Tokenizer, prompt: str, pieces: list[int], new: list[int]
) -> str:
    """What the new pieces add to those of the prompt, as decoding both joins them.

    A space that the prompt ends in, and its pieces do not, is there already.
    """
    before = tokenizer.decode(pieces)
    added = tokenizer.decode([*pieces, *new])[len(before) :]
    if prompt[-1:].isspace() and not before[-1:].isspace():
        return added.removeprefix(" ")
    return added


def generate_windows(
    draw: Callable[..., Int[Array, "B N"]],
    prompt: Int[np.ndarray, "B T"],
    key: Any,
    *,
    num_tokens: int,
    limit: int,
    end: int | None,
) -> Int[np.ndarray, "B num_tokens"]:
    """`num_tokens` after each prompt, or fewer once each has its end.

    Where the `limit` of positions is reached, the model reads the last half of them
    again, from the first position on, and goes on from there.
    """
    text, length, half = prompt, prompt.shape[1], max(1, limit // 2)
    window = prompt if length < limit else prompt[:, -half:]
    while (missing := length + num_tokens - text.shape[1]) > 0:
        count = limit - window.shape[1]
        if text is prompt:
            count = min(count, missing)
        else:  # always so many: one program for all windows
            key = jax.random.fold_in(key, text.shape[1])
        drawn = np.asarray(draw(jnp.asarray(window), key, num_tokens=count))
        text = np.concatenate([text, drawn[:, :missing]], axis=1)
        window = text[:, -half:]
        if end is not None and (text[:, length:] == end).any(axis=1).all():
            break
    return text[:, length:]


@partial(
    jax.jit, static_argnames=("model", "num_tokens", "temperature", "top_k", "top_p")
)
def generate_tokens(
    model: Model,
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
    cache = model.module.empty_cache(batch, length + num_tokens)

    def scores_of(tokens: Array, cache: Any) -> tuple[Array, Any]:
        out = model.module.apply({"params": params}, tokens, cache=cache)
        last = out["causal_lm"]._replace(states=out["causal_lm"].states[:, -1])
        return logits(last).at[:, banned].set(-jnp.inf), out["cache"]

    def draw(carry: tuple, key: Any) -> tuple[tuple, Array]:
        scores, cache = carry
        token = sample_token(scores, key, temperature, top_k, top_p)
        return scores_of(token[:, None], cache), token

    keys = jax.random.split(key, num_tokens)
    return jax.lax.scan(draw, scores_of(prompt, cache), keys)[1].T
