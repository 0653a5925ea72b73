"""What the device does: its rate of matrix products, and whether attention is right.

    python -m benchmarks.device [--tiny]

Compares `models.attention.attention` with the formula, computed in float32, forward and
gradient, on whole, padded and packed rows; exit status 1 if they differ. The rates are
the upper bound that a training step is measured against.
"""

import argparse
import functools
import itertools
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.attention import Mask, attention
from training import costs

# Largest difference beside the largest value: the roundings of the type, with room.
LIMITS = {"float32": 1e-5, "bfloat16": 2e-2}
HEADS, WIDTH = 4, 64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tiny", action="store_true", help="small arrays, for tests")
    length = 16 if parser.parse_args().tiny else 512
    kind = jax.devices()[0].device_kind
    print(f"| {kind} | measured, TFLOP/s | data sheet (16 bit) |\n|---|---|---|")
    peak = costs.PEAK_FLOPS.get(kind)
    sheet = f"{peak / 1e12:,.0f}" if peak else "unknown chip"
    for precision in ("bfloat16", "float32"):
        rate = f"{matmul_rate(precision) / 1e12:,.3g}"
        print(f"| products in {precision} | {rate} | {sheet} |")
    print("\n| attention | forward | gradient | limit | |\n|---|---|---|---|---|")
    is_right = True
    kernels = {"": attention}
    if jax.default_backend() == "gpu":
        kernels["cuDNN, "] = fused  # in float32 it is the plain one
    for (kernel, attend), precision, rows, is_causal in itertools.product(
        kernels.items(), LIMITS, ("whole", "padded", "packed"), (False, True)
    ):
        found = differences(attend, rows, length, is_causal, precision)
        equal = max(found) <= LIMITS[precision]
        is_right = is_right and equal
        name = f"{kernel}{precision}, {rows}{', causal' if is_causal else ''}"
        shown = " | ".join(f"{value:.1e}" for value in found)
        verdict = "equal" if equal else "DIFFERS"
        print(f"| {name} | {shown} | {LIMITS[precision]} | {verdict} |")
    return 0 if is_right else 1


def matmul_rate(precision: str) -> float:
    """FLOPs a second of large square products on one device, the best of five turns."""
    is_cpu = jax.default_backend() == "cpu"
    size, count = (512, 4) if is_cpu else (8192, 20)
    key = jax.random.key(0)
    matrix = jax.random.normal(key, (size, size), jnp.dtype(precision))
    other = matrix / size**0.5  # keeps the products near 1
    multiply = jax.jit(jnp.matmul)
    multiply(matrix, other).block_until_ready()
    times = []
    for _ in range(5):
        product, began = matrix, time.perf_counter()
        for _ in range(count):
            product = multiply(product, other)
        product.block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * size**3 * count / min(times)


def differences(
    attend: Callable, rows: str, length: int, is_causal: bool, precision: str
) -> tuple[float, float]:
    """Of output and gradient: largest difference beside the largest value."""
    segments = example_segments(rows, length)
    mask = Mask(segments, segments, 0, is_causal)
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (2, length, HEADS, WIDTH)
    *inputs, cotangent = (jax.random.normal(key, shape) for key in keys)
    inputs = [x.astype(precision) for x in inputs]
    with jax.default_matmul_precision("highest" if precision == "float32" else None):
        found = output_and_gradients(attend, *inputs, mask, cotangent)
    with jax.default_matmul_precision("highest"):
        inputs = [x.astype(jnp.float32) for x in inputs]
        expected = output_and_gradients(by_the_formula, *inputs, mask, cotangent)

    def difference(one: Any, other: Any) -> float:
        one, other = np.asarray(one, np.float32), np.asarray(other)
        return float(np.abs(one - other).max() / np.abs(other).max())

    output, *gradients = map(difference, found, expected)
    return output, max(gradients)


@functools.partial(jax.jit, static_argnums=0)
def output_and_gradients(
    attend: Callable, query: Any, key: Any, value: Any, mask: Mask, cotangent: Any
) -> tuple[Any, Any, Any, Any]:
    """Of `attend`: its output, and the gradients of (output . cotangent)."""
    output, pull_back = jax.vjp(
        lambda *inputs: attend(*inputs, mask), query, key, value
    )
    return output, *pull_back(cotangent.astype(output.dtype))


def fused(query: Any, key: Any, value: Any, mask: Mask) -> Any:
    return attention(query, key, value, mask, fused=True)


def example_segments(rows: str, length: int) -> Any:
    """Two rows: whole (None), one half padding, or each of three documents."""
    if rows == "whole":
        return None
    if rows == "padded":
        places = np.arange(length)
        return jnp.array(np.stack([places >= 0, places < length // 2]).astype(np.int32))
    cuts = np.array([[length // 4, length // 2], [length // 3, length - length // 8]])
    places = np.arange(length)
    segments = 1 + (places >= cuts[:, :1]) + (places >= cuts[:, 1:])
    return jnp.array(segments, jnp.int32)


def by_the_formula(query: Any, key: Any, value: Any, mask: Mask) -> Any:
    """softmax(query . key / sqrt(K)) . value; zeros where a query has no key."""
    is_seen = mask.dense(query.shape[1], key.shape[1])
    scores = jnp.einsum("bthk,bshk->bhts", query, key) / np.sqrt(query.shape[-1])
    weights = jax.nn.softmax(jnp.where(is_seen, scores, -1e30), axis=-1)
    return jnp.einsum("bhts,bshk->bthk", jnp.where(is_seen, weights, 0), value)


if __name__ == "__main__":
    sys.exit(main())
