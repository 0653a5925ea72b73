"""nanoGPT's model and optimizer on the text of a run of ours, held out as there.

    uv run --extra parity python -m benchmarks.nanogpt --workdir=runs/foreword_causal
        (--minutes=8 | --steps=2500) [--learning_rate=1e-3,3e-3,6e-3] [--b2=0.95]
        [--warmup_steps=100] [--eval_every_steps=250] [--seed=0] [--device=cpu|cuda]
        [--compile] [--output=runs/nanogpt]

In plain PyTorch after github.com/karpathy/nanoGPT (model.py, train.py, the settings of
config/train_gpt2.py): norms before each branch, no biases, a table of positions, GELU,
a tied head, no dropout; AdamW (0.9, 0.95) with decay 0.1 of matrices and tables,
clipping at 1, linear warm-up, cosine to a tenth. As there, a token attends to all
before it in its row, those of other documents as well.

Of the run in `--workdir`, which may have ended or just begun, it takes layers, heads,
width, precision, tokenizer, the same rows in the same order, and the held-out windows,
and says when that run was as good as nanoGPT is at its end. Seconds count from where
the tokens are there, compilation and evaluations included; tokens a second are of the
updates alone. With `--minutes` the cosine goes by time.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.nn import functional

import configs
import errors
import train
from errors import UserError
from pretraining.language_model import BITS
from pretraining.next_words import bits_per_byte
from training import parallel, runs

INIT_STD, LAST_SHARE = 0.02, 0.1
IGNORED = -1  # the target of what is not predicted


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.ffn_norm = nn.LayerNorm(width, bias=False)
        self.ffn_in = nn.Linear(width, 4 * width, bias=False)
        self.ffn_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention_out(self.attend(self.attention_norm(x)))
        return x + self.ffn_out(functional.gelu(self.ffn_in(self.ffn_norm(x))))

    def attend(self, x: Tensor) -> Tensor:
        def by_head(part: Tensor) -> Tensor:
            return part.unflatten(2, (self.heads, -1)).transpose(1, 2)

        parts = map(by_head, self.query_key_value(x).chunk(3, dim=2))
        found = functional.scaled_dot_product_attention(*parts, is_causal=True)
        return found.transpose(1, 2).flatten(2)


class Gpt(nn.Module):
    def __init__(self, config: ConfigDict):
        super().__init__()
        fields, width = config.model, config.model.hidden_size
        self.reduced = fields.precision == "bfloat16"
        self.words = nn.Embedding(fields.vocab_size, width)  # and the head
        self.positions = nn.Embedding(config.data.sequence_length, width)
        layers = range(fields.num_layers)
        self.blocks = nn.ModuleList(Block(width, fields.num_heads) for _ in layers)
        self.last_norm = nn.LayerNorm(width, bias=False)
        for name, parameter in self.named_parameters():
            scale = 1 / math.sqrt(2 * len(layers)) if "_out." in name else 1
            if parameter.dim() == 2:  # norms begin with ones
                nn.init.normal_(parameter, std=INIT_STD * scale)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Nats a predicted token."""
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.reduced):
            x = self.words(tokens) + self.positions.weight
            for block in self.blocks:
                x = block(x)
            logits = functional.linear(self.last_norm(x), self.words.weight)
        return functional.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED
        )


def make_optimizer(model: Gpt, b2: float) -> torch.optim.AdamW:
    matrices = [x for x in model.parameters() if x.dim() == 2]
    scales = [x for x in model.parameters() if x.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}]
    groups += [{"params": scales, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, b2), fused=True)


def rate_share(step: int, warmup_steps: int, progress: float) -> float:
    """Of the peak rate, `progress` (0 to 1) into the run."""
    cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    warmed = min(1.0, (step + 1) / (warmup_steps + 1))
    return warmed * (LAST_SHARE + (1 - LAST_SHARE) * cosine)


class Text(NamedTuple):
    """What a run reads: of its updates, and the held-out (tokens, targets)."""

    config: ConfigDict
    data: train.Data
    heldout: list[tuple[Tensor, Tensor]]
    predicted: list[int]  # of each of these


def open_text(workdir: Path, seed: int | None, device: str) -> Text:
    """Raises UserError where the text is not the one that the run was made from, or
    its rows are not of the kind that nanoGPT learns from."""
    config = configs.read_config(workdir)
    if config.objective.name != "causal_lm" or config.data.phases:
        raise UserError(
            f"{workdir} has objective.name={config.objective.name!r} and data.phases="
            f"{config.data.phases!r}: nanoGPT needs a run of 'causal_lm' and () there"
        )
    config.seed = config.seed if seed is None else seed
    data = train.open_data(config, parallel.make_mesh(data=1))
    train.record_origin(workdir, data)
    batches = train.heldout_batches(config, data.tokenizer, data.heldout, 0, 1)["loss"]
    rows = [tensors(batch, device) for batch in batches]
    predicted = [np.count_nonzero(batch["weights"]) for batch in batches]
    return Text(config, data, rows, predicted)


def tensors(batch: dict[str, np.ndarray], device: str) -> tuple[Tensor, Tensor]:
    targets = np.where(batch["weights"] > 0, batch["targets"], IGNORED)
    arrays = (batch["tokens"].astype(np.int64), targets.astype(np.int64))
    return tuple(torch.from_numpy(array).to(device) for array in arrays)


@torch.no_grad()
def measure(model: nn.Module, text: Text) -> float:
    """Bits a byte of the held-out text."""
    means = [model(*rows).item() for rows in text.heldout]
    nats = float(np.average(means, weights=text.predicted))
    return bits_per_byte(nats, text.data.heldout)


def train_one(rate: float, text: Text, asked: argparse.Namespace) -> Iterator[dict]:
    """Rows of the curve: every `--eval_every_steps`, and the end."""
    torch.manual_seed(text.config.seed)
    raw = Gpt(text.config).to(asked.device)
    optimizer = make_optimizer(raw, asked.b2)
    threads = text.config.run.data_threads
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    begun, evaluating, progress = time.perf_counter(), 0.0, 0.0
    model = torch.compile(raw) if asked.compile else raw
    for step, batch in enumerate(text.data.batches[0].to_iter_dataset(options)):
        loss = model(*tensors(batch, asked.device))
        loss.backward()
        nn.utils.clip_grad_norm_(raw.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_share(step, asked.warmup_steps, progress)
        optimizer.step()
        optimizer.zero_grad()
        done = step + 1
        minutes = (time.perf_counter() - begun) / 60
        progress = done / asked.steps if asked.steps else minutes / asked.minutes
        if done % asked.eval_every_steps and progress < 1:
            continue
        train_loss = loss.item()  # waits for the device
        since = time.perf_counter()
        bits = measure(model, text)
        now, tokens = time.perf_counter(), done * batch["tokens"].size
        row = {"learning_rate": rate, "step": done, "tokens": tokens}
        row["seconds"] = now - begun
        row["tokens_per_second"] = tokens / (since - begun - evaluating)
        evaluating += now - since
        yield row | {"train_loss": train_loss, BITS: bits}
        if progress >= 1:
            return


def told(row: dict[str, Any]) -> str:
    return (
        f"rate {row['learning_rate']:g}, update {row['step']:,}: {row['tokens']:,} "
        f"tokens, {row['seconds']:.1f} s, {row['tokens_per_second']:,.0f} tokens/s, "
        f"loss {row['train_loss']:.3f}, held out {row[BITS]:.4f} bits a byte"
    )


def main(argv: list[str]) -> int:
    asked = parse_arguments(argv[1:])
    jax.config.update("jax_platforms", "cpu")  # the device is torch's
    text = open_text(asked.workdir, asked.seed, asked.device)
    heldout = text.data.heldout
    print(
        f"torch {torch.__version__} on {asked.device}, {torch.get_num_threads()} "
        f"threads; held out: {len(heldout.documents) - 1:,} documents, "
        f"{heldout.num_tokens:,} tokens, {sum(text.predicted):,} of them predicted, "
        f"{heldout.text_bytes:,} bytes"
    )
    asked.output.mkdir(parents=True, exist_ok=True)
    ends = []
    with (asked.output / "curve.jsonl").open("w", buffering=1) as file:
        for rate in asked.learning_rate:
            for row in train_one(rate, text, asked):
                print(told(row), flush=True)
                file.write(json.dumps(row) + "\n")
            ends.append(row)
    print("\nat the end of each rate:", *map(told, ends), sep="\n")
    best = min(ends, key=lambda row: np.nan_to_num(row[BITS], nan=np.inf))
    for row in runs.evaluations_of(asked.workdir):
        tokens = row["step"] * best["tokens"] // best["step"]
        bits, share = row[f"eval/{BITS}"], tokens / best["tokens"]
        print(
            f"{text.config.name}: {tokens:,} tokens, {share:.2f} times as many: "
            f"{bits:.4f}{' (as good)' if bits <= best[BITS] else ''}"
        )
    return 0


def rates(text: str) -> list[float]:
    return [float(rate) for rate in text.split(",")]


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--learning_rate", type=rates, default="1e-3,3e-3,6e-3")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="of each rate")
    length.add_argument("--steps", type=int, help="of each rate")
    parser.add_argument("--b2", type=float, default=0.95)
    parser.add_argument("--warmup_steps", type=int, default=100)
    parser.add_argument("--eval_every_steps", type=int, default=250)
    parser.add_argument("--seed", type=int, help="of weights and rows; else the run's")
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=found)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("runs/nanogpt"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    errors.run(main)
