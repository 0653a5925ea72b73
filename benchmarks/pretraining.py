"""Tokens a second of whole pre-training steps, beside transformers on the same machine.

    python -m benchmarks.pretraining --model=bert [--peer_python=PYTHON] [--rounds=7]
        [--contenders=foreword,foreword_matmuls,transformers,transformers_compiled]

BERT: 4 layers x 256, 32 rows of 128 tokens, 20 predicted a row; GPT: 4 x 256, 16 rows
of 256; vocabulary 8,192, AdamW, clipping, float32, dropout 0.1 for all. All contenders
start and compile first; then they take turns, `--steps` steps a turn, so that a noisy
machine disturbs all alike. The loss is fetched at every step. `foreword_matmuls` is
run.remat=matmuls. Peers need torch and transformers (extra `peers`), in this Python or
in `--peer_python`.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

VOCABULARY, LAYERS, HEADS, WIDTH = 8192, 4, 4, 256
SHAPES = {"bert": (32, 128), "gpt": (16, 256)}  # rows, tokens
PREDICTED = 20


def main() -> None:
    arguments = parse_arguments()
    if arguments.side:
        take_turns(arguments.model, *SIDES[arguments.side](arguments.model))
        return
    sides = {}
    for name in arguments.contenders.split(","):
        python = sys.executable
        if not name.startswith("foreword"):
            python = arguments.peer_python
        command = [python, __file__, f"--side={name}", f"--model={arguments.model}"]
        sides[name] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    for name, process in sides.items():
        print(f"{name}: {process.stdout.readline().strip()}", flush=True)
    rates = {name: [] for name in sides}
    for _ in range(arguments.rounds):
        for name, process in sides.items():
            process.stdin.write(f"{arguments.steps}\n")
            process.stdin.flush()
            rates[name].append(float(process.stdout.readline()))
    for process in sides.values():
        process.stdin.close()
    report(rates)


def report(rates: dict[str, list[float]]) -> None:
    """Medians, and the first contender's ratio to each other, with its range."""
    first = next(iter(rates))
    print("| contender | tokens/s, median | first / this, median | range |")
    print("|---|---|---|---|")
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(rates[first], values, strict=True)]
        ratio = f"{statistics.median(ratios):.2f}"
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"| {name} | {statistics.median(values):,.0f} | {ratio} | {spread} |")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", choices=tuple(SHAPES), default="bert")
    parser.add_argument("--contenders", default="foreword,transformers")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--peer_python", default=sys.executable)
    parser.add_argument("--side", choices=tuple(SIDES), help=argparse.SUPPRESS)
    return parser.parse_args()


def take_turns(model: str, step: Callable[[], float], note: str) -> None:
    """Runs as many steps as each line of stdin says; answers with tokens a second."""
    step()
    print(f"ready ({note})", flush=True)
    rows, length = SHAPES[model]
    for line in sys.stdin:
        count, began = int(line), time.perf_counter()
        for _ in range(count):
            step()
        elapsed = time.perf_counter() - began
        print(count * rows * length / elapsed, flush=True)


def random_tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, shape).astype(np.int32)


def predicted_positions(rows: int, length: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    places = [generator.permutation(length)[:PREDICTED] for _ in range(rows)]
    return np.sort(np.array(places, np.int32), axis=1)


# The contenders: `step()` does one update and returns the loss.


def foreword(model_name: str, remat: str = "none") -> tuple[Callable, str]:
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import jax

    import models
    import train
    from configs import bert_mini, gpt_mini
    from training import parallel

    rows, length = SHAPES[model_name]
    module = bert_mini if model_name == "bert" else gpt_mini
    config = module.get_config()
    config.data.update(batch_size=rows, sequence_length=length)
    config.model.update(vocab_size=VOCABULARY, max_positions=length)
    for name in ("embedding_dropout", "attention_dropout", "residual_dropout"):
        config.model[name] = 0.1
    tokens = random_tokens(rows, length)
    batch = {
        "tokens": tokens,
        "segment_ids": np.ones_like(tokens),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "targets": tokens,
        "weights": np.ones(tokens.shape, np.float32),
    }
    if model_name == "bert":
        places = predicted_positions(rows, length)
        batch |= {
            "token_types": np.zeros_like(tokens),
            "predict_positions": places,
            "targets": random_tokens(*places.shape),
            "weights": np.ones(places.shape, np.float32),
        }
    train.start_jax("float32")
    mesh = parallel.make_mesh(1)
    model = models.build(config.model.to_dict(), "float32", remat)
    loss_terms = train.LOSS_TERMS[config.objective.name](model, 1)
    optimizer, plan = train.plan_state(config, model, batch, mesh)
    program = train.compile_train_step(config, loss_terms, optimizer, plan, batch, mesh)
    params = train.init_params(model, batch, 0, parallel.places(plan.params))
    state = parallel.start_state(params, optimizer, plan)
    batch, key = parallel.shard_batch(batch, rows, mesh), jax.random.key(0)

    def run() -> float:
        nonlocal state
        state, metrics = program(state, batch, key)
        return float(metrics["loss"])

    return run, f"jax {jax.__version__}, {jax.devices()[0].device_kind}"


def transformers(model_name: str, compiled: bool = False) -> tuple[Callable, str]:
    import torch
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

    rows, length = SHAPES[model_name]
    if model_name == "bert":
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS}
        sizes |= {"num_attention_heads": HEADS, "intermediate_size": 4 * WIDTH}
        config = BertConfig(
            vocab_size=VOCABULARY, max_position_embeddings=length, **sizes
        )
        model = BertForMaskedLM(config)
    else:
        sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
        config = GPT2Config(vocab_size=VOCABULARY, n_positions=length, **sizes)
        model = GPT2LMHeadModel(config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).train()
    tokens = torch.tensor(random_tokens(rows, length), dtype=torch.long)
    labels = tokens.clone()
    if model_name == "bert":
        labels.fill_(-100)
        places = torch.tensor(predicted_positions(rows, length), dtype=torch.long)
        targets = torch.tensor(random_tokens(*places.shape), dtype=torch.long)
        labels.scatter_(1, places, targets)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    inputs = {name: x.to(device) for name, x in inputs.items()}
    labels = labels.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    forward = torch.compile(model) if compiled else model

    def run() -> float:
        loss = forward(**inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    attention = model.config._attn_implementation
    return run, f"torch {torch.__version__}, {attention} attention, {device}"


SIDES = {
    "foreword": foreword,
    "foreword_matmuls": lambda model: foreword(model, "matmuls"),
    "transformers": transformers,
    "transformers_compiled": lambda model: transformers(model, compiled=True),
}


if __name__ == "__main__":
    main()
