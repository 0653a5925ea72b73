"""The contenders of `benchmarks.pretraining`: the same update in several codebases.

    python -m benchmarks.contenders NAME CASE_AS_JSON NANOGPT_FOLDER

Each runs in a process, and perhaps a Python, of its own. It answers in lines of JSON:
what it is, after its first update; then, for each line of stdin with a number, the time
that so many updates took. The loss is fetched once a turn, as training loops do.
"""

import functools
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

GELU = "gelu_pytorch_tanh"  # ours and GPT-2's; "gelu_new" is the same, but slower


@dataclass(frozen=True)
class Case:
    """A model, what it is fed, and how; dropout is the same everywhere in the model."""

    family: str  # "bert" or "gpt"
    rows: int  # of a batch, on each device
    length: int  # tokens of a row
    num_layers: int
    num_heads: int  # of width 64, but in tiny cases
    hidden_size: int
    vocab_size: int
    predicted: int  # tokens of a row that BERT predicts
    padding: float  # mean share of a row; the rows' lengths are uneven
    dropout: float
    precision: str
    devices: int = 1

    @property
    def label(self) -> str:
        return (
            f"{self.family} {self.num_layers} x {self.hidden_size}, {self.rows} rows of"
            f" {self.length}, {self.precision}"
        )


@dataclass(frozen=True)
class Contender:
    """`step()` does one update and returns the loss, perhaps not computed yet."""

    step: Callable[[], Any]
    peak_memory: Callable[[], int]  # bytes
    facts: dict[str, Any]


def main() -> None:
    # Stdout is for the answers alone; what the peers print goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, case, nanogpt_folder = sys.argv[1:]
    if nanogpt_folder:
        sys.path.insert(0, nanogpt_folder)
    contender = CONTENDERS[name](Case(**json.loads(case)))

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    began = time.perf_counter()
    float(contender.step())
    answer(**contender.facts, first_step=time.perf_counter() - began)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            loss = contender.step()
        float(loss)
        seconds = time.perf_counter() - began
        answer(seconds=seconds, peak_memory=contender.peak_memory())


def make_batch(case: Case) -> dict[str, np.ndarray]:
    """Random tokens in rows of uneven length, with what is to be predicted."""
    generator = np.random.default_rng(0)
    shape = (case.rows * case.devices, case.length)
    shares = 1 - 2 * case.padding * generator.random((shape[0], 1))
    tokens, targets = generator.integers(0, case.vocab_size, (2, *shape), np.int32)
    positions = np.tile(np.arange(case.length, dtype=np.int32), (shape[0], 1))
    segment_ids = (positions < np.rint(shares * case.length)).astype(np.int32)
    batch = {"tokens": tokens, "segment_ids": segment_ids, "positions": positions}
    if case.family == "gpt":
        return batch | {"targets": targets, "weights": segment_ids.astype(np.float32)}
    shortest = segment_ids.sum(axis=1).min()
    places = [generator.permutation(shortest)[: case.predicted] for _ in tokens]
    places = np.sort(np.array(places, np.int32), axis=1)
    return batch | {
        "token_types": np.zeros_like(tokens),
        "predict_positions": places,
        "targets": np.take_along_axis(targets, places, axis=1),
        "weights": np.ones(places.shape, np.float32),
    }


def all_targets(batch: dict[str, np.ndarray], ignored: int) -> np.ndarray:
    """The targets at [B, T], as the peers want them; `ignored` is not predicted."""
    if "predict_positions" not in batch:
        return np.where(batch["weights"] > 0, batch["targets"], ignored)
    labels = np.full_like(batch["tokens"], ignored)
    np.put_along_axis(labels, batch["predict_positions"], batch["targets"], axis=1)
    return labels


def host_peak_memory() -> int:
    """Bytes that this process has held at most."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def jax_peak_memory() -> int:
    import jax

    statistics = jax.local_devices()[0].memory_stats()
    return statistics["peak_bytes_in_use"] if statistics else host_peak_memory()


def foreword(case: Case, **run: Any) -> Contender:
    """This project; `run` are settings of a config's `run`."""
    import jax

    import train
    from benchmarks import device
    from configs import bert_mini, gpt_mini
    from training import costs, parallel, runs

    config = (bert_mini if case.family == "bert" else gpt_mini).get_config()
    config.data.update(batch_size=case.rows * case.devices, sequence_length=case.length)
    config.model.update(
        vocab_size=case.vocab_size,
        max_positions=case.length,
        num_layers=case.num_layers,
        num_heads=case.num_heads,
        head_dim=case.hidden_size // case.num_heads,
        hidden_size=case.hidden_size,
        ffn_size=4 * case.hidden_size,
        embedding_dropout=case.dropout,
        attention_dropout=case.dropout,
        residual_dropout=case.dropout,
    )
    if case.family == "bert":
        config.objective.max_predictions = case.predicted
    config.model.precision = case.precision
    config.run.update(run)
    config.run.mesh.data = case.devices
    mesh = train.make_mesh(config)
    jax.config.update("jax_enable_compilation_cache", False)
    matmul_rate = device.matmul_rate(case.precision)
    batch = make_batch(case)
    held_out = {name: [batch] for name in ("loss", "masked")}
    job = train.make_job(config, train.Data(*[None] * 5, ([batch],), held_out), mesh)
    plan = job.plan
    state = parallel.start_state(job.fresh(), plan.optimizer, plan.state)
    kind = jax.devices()[0].device_kind
    facts = {
        "what": f"jax {jax.__version__}, {case.devices} x {kind}",
        "device": kind,
        "flops_per_token": job.phases[0].flops / batch["tokens"].size,
        "useful": float(np.mean(batch["segment_ids"] > 0)),
        "peak_flops": costs.PEAK_FLOPS.get(kind),
        "matmul_rate": matmul_rate,
    }
    feed = job.phases[0].feed
    on_device, key = feed.placed(batch, mesh, 1), jax.random.key(0)

    @functools.cache
    def program() -> Callable:
        return runs.update(job, feed, 1)

    def update() -> Any:
        nonlocal state
        state, metrics = program()(state, on_device, key)
        return metrics["loss"]

    return Contender(update, jax_peak_memory, facts)


def transformers(case: Case, compiled: bool = False) -> Contender:
    import torch
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

    if case.family == "bert":
        model = BertForMaskedLM(BertConfig(**bert_settings(case)))
    else:
        model = GPT2LMHeadModel(GPT2Config(**gpt2_settings(case)))
    batch = make_batch(case)
    inputs = {"input_ids": batch["tokens"], "labels": all_targets(batch, -100)}
    if case.padding:
        inputs["attention_mask"] = batch["segment_ids"]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, weight_decay=0.01, fused=torch.cuda.is_available()
    )
    return torch_contender(
        case,
        model,
        optimizer,
        inputs,
        lambda forward, inputs: forward(**inputs).loss,
        compiled,
        f"{model.config._attn_implementation} attention",
    )


def nanogpt(case: Case, compiled: bool = False) -> Contender:
    """The model.py of the folder given; its GELU is exact, the others' is by tanh."""
    import torch
    from model import GPT, GPTConfig

    assert case.family == "gpt" and not case.padding
    model = GPT(
        GPTConfig(
            block_size=case.length,
            vocab_size=case.vocab_size,
            n_layer=case.num_layers,
            n_head=case.num_heads,
            n_embd=case.hidden_size,
            dropout=case.dropout,
            bias=True,
        )
    )
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    optimizer = model.configure_optimizers(0.01, 1e-3, (0.9, 0.95), kind)
    batch = make_batch(case)
    inputs = {"idx": batch["tokens"], "targets": all_targets(batch, -1)}
    return torch_contender(
        case,
        model,
        optimizer,
        inputs,
        lambda forward, inputs: forward(**inputs)[1],
        compiled,
        "nanoGPT",
    )


def torch_contender(
    case: Case,
    model: Any,
    optimizer: Any,
    inputs: dict[str, np.ndarray],
    loss_of: Callable,
    compiled: bool,
    note: str,
) -> Contender:
    """Clipping and AdamW; bfloat16 is autocast, as nanoGPT and the Trainer have it."""
    import torch

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(kind).train()
    tensors = {
        name: torch.tensor(x, dtype=torch.long, device=kind)
        for name, x in inputs.items()
    }
    autocast = torch.autocast(
        kind, dtype=torch.bfloat16, enabled=case.precision == "bfloat16"
    )
    forward = torch.compile(model) if compiled else model

    def update() -> Any:
        with autocast:
            loss = loss_of(forward, tensors)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    def peak_memory() -> int:
        if kind == "cuda":
            return torch.cuda.max_memory_allocated()
        return host_peak_memory()

    what = f"torch {torch.__version__} on {kind}, {note}"
    return Contender(update, peak_memory, {"what": what})


def flax_transformers(case: Case) -> Contender:
    """The Flax models of transformers before version 5, trained as its examples do."""
    import jax
    import jax.numpy as jnp
    import optax
    from transformers import (
        BertConfig,
        FlaxBertForMaskedLM,
        FlaxGPT2LMHeadModel,
        GPT2Config,
    )

    dtype = jnp.dtype(case.precision)
    if case.family == "bert":
        config = BertConfig(**bert_settings(case))
        model = FlaxBertForMaskedLM(config, dtype=dtype)
    else:
        config = GPT2Config(**gpt2_settings(case))
        model = FlaxGPT2LMHeadModel(config, dtype=dtype)
    batch = make_batch(case)
    batch = jax.device_put(batch | {"labels": all_targets(batch, -100)})
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.01)
    )

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params: Any, opt_state: Any, key: Any, batch: Any) -> Any:
        key, dropout_key = jax.random.split(key)
        labels = batch["labels"]

        def loss_of(params: Any) -> Any:
            logits = model(
                batch["tokens"],
                attention_mask=batch["segment_ids"],
                params=params,
                dropout_rng=dropout_key,
                train=True,
            ).logits
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits, jnp.maximum(labels, 0)
            )
            return jnp.sum(losses * (labels >= 0)) / jnp.sum(labels >= 0)

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, key, loss

    params, key = model.params, jax.random.PRNGKey(0)
    opt_state = optimizer.init(params)

    def update() -> Any:
        nonlocal params, opt_state, key
        params, opt_state, key, loss = train_step(params, opt_state, key, batch)
        return loss

    kind = jax.devices()[0].device_kind
    what = f"transformers' Flax model, jax {jax.__version__}, {kind}"
    return Contender(update, jax_peak_memory, {"what": what})


def bert_settings(case: Case) -> dict[str, Any]:
    """Of transformers' BertConfig."""
    return {
        "vocab_size": case.vocab_size,
        "max_position_embeddings": case.length,
        "hidden_size": case.hidden_size,
        "num_hidden_layers": case.num_layers,
        "num_attention_heads": case.num_heads,
        "intermediate_size": 4 * case.hidden_size,
        "hidden_act": GELU,
        "hidden_dropout_prob": case.dropout,
        "attention_probs_dropout_prob": case.dropout,
    }


def gpt2_settings(case: Case) -> dict[str, Any]:
    """Of transformers' GPT2Config."""
    return {
        "vocab_size": case.vocab_size,
        "n_positions": case.length,
        "n_embd": case.hidden_size,
        "n_layer": case.num_layers,
        "n_head": case.num_heads,
        "activation_function": GELU,
        "embd_pdrop": case.dropout,
        "attn_pdrop": case.dropout,
        "resid_pdrop": case.dropout,
    }


CONTENDERS = {
    "foreword": foreword,
    "foreword_matmuls": functools.partial(foreword, remat="matmuls"),
    "foreword_fused": functools.partial(foreword, fused_attention=True),
    "transformers": transformers,
    "transformers_compiled": functools.partial(transformers, compiled=True),
    "nanogpt": nanogpt,
    "nanogpt_compiled": functools.partial(nanogpt, compiled=True),
    "flax_transformers": flax_transformers,
}


if __name__ == "__main__":
    main()
