"""A layer of ELMo beside PyTorch's LSTM with projections: forward and backward pass.

    uv run --extra parity python -m benchmarks.lstm [--rows=16 --length=64 ...]

Both have two directions, the same sizes and the same batch, full rows; the two take
turns, after one that compiles. Theirs cuts neither cells nor outputs.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch

from models.lstm import BiLstm, begins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = {"rows": 16, "length": 64, "projection": 128, "cell": 512, "turns": 9}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    shape = (asked.rows, asked.length, asked.projection)
    inputs = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    module = BiLstm(asked.cell, asked.projection, 3.0, 3.0, jnp.float32)
    segments = jnp.ones(shape[:2], jnp.int32)
    given = (begins(segments), segments > 0, None)
    both = jnp.stack([jnp.asarray(inputs)] * 2)
    params = module.init(jax.random.key(0), both, *given)

    @jax.jit
    def gradient(params: dict, both: jax.Array) -> tuple:
        def loss(params: dict, both: jax.Array) -> jax.Array:
            return (module.apply(params, both, *given)[0] ** 2).sum()

        return jax.grad(loss, argnums=(0, 1))(params, both)

    theirs = torch.nn.LSTM(
        asked.projection,
        asked.cell,
        batch_first=True,
        bidirectional=True,
        proj_size=asked.projection,
    )
    tensor = torch.from_numpy(inputs).requires_grad_()

    def ours_once() -> None:
        jax.block_until_ready(gradient(params, both))

    def theirs_once() -> None:
        theirs.zero_grad()
        (theirs(tensor)[0] ** 2).sum().backward()

    times: dict[str, list[float]] = {"foreword": [], "torch": []}
    for turn in range(asked.turns + 1):
        for name, once in (("foreword", ours_once), ("torch", theirs_once)):
            begun = time.perf_counter()
            once()
            if turn:
                times[name].append(time.perf_counter() - begun)
    for name, found in times.items():
        print(
            f"{name}: median {1e3 * statistics.median(found):.0f} ms, "
            f"{1e3 * min(found):.0f} to {1e3 * max(found):.0f}"
        )
    pairs = zip(times["torch"], times["foreword"], strict=True)
    ratios = sorted(their / our for their, our in pairs)
    print(
        f"torch / foreword, turn by turn: median {statistics.median(ratios):.2f}, "
        f"{ratios[0]:.2f} to {ratios[-1]:.2f} ({asked.turns} turns)"
    )


if __name__ == "__main__":
    main()
