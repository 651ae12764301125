"""Compares this package's semantic-consistency loss with the paper's formula, value and gradient.

python -m experiments.benchmarks.semantic_consistency

Both are compiled by XLA. "As written" upsamples the features to the images' size, as the formula does.
"""

import argparse
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import machine
from experiments.benchmarks.contest import Timing, in_turn
from experiments.benchmarks.worker import mean_seconds
from scops_jax import geometry, losses


def direct_loss(
  probs: jax.Array, basis: jax.Array, features: Sequence[jax.Array], saliency: jax.Array
) -> jax.Array:
  """Mean of (D·V - Σ_k R_k w_k)² over images, pixels and channels, V upsampled to the pixels."""
  height, width = probs.shape[1:3]
  values = jnp.concatenate([geometry.resize_bilinear(x, height, width) for x in features], -1)
  fit = jnp.einsum("bhwk,kc->bhwc", probs[..., 1:], basis)
  return jnp.mean((saliency[..., None] * values - fit) ** 2)


FORMS = {"as written": direct_loss, "here": losses.semantic_consistency_loss}


def draw_inputs(seed: int, *, batch_size: int, image_size: int, num_parts: int, channels: int) -> tuple:
  """Returns random probs, basis, two feature maps and saliency."""
  rng = np.random.default_rng(seed)
  pixels, cells = (batch_size, image_size, image_size), (batch_size, image_size // 16, image_size // 16)
  probs = jax.nn.softmax(rng.normal(size=(*pixels, num_parts + 1)).astype(np.float32))
  basis = rng.uniform(size=(num_parts, channels)).astype(np.float32)
  widths = (channels // 2, channels - channels // 2)
  features = tuple(rng.exponential(size=(*cells, width)).astype(np.float32) for width in widths)
  return jax.device_put((probs, basis, features, rng.uniform(size=pixels).astype(np.float32)))


def compile_form(form: Callable, inputs: tuple) -> Any:
  """Returns a compiled function for the loss and its gradients with respect to probs and basis."""
  return jax.jit(jax.value_and_grad(form, (0, 1))).lower(*inputs).compile()


def largest_difference(results: Any, expected: Any) -> float:
  """Returns the largest difference in the value or a gradient, relative to that array's largest entry."""
  differences = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)), results, expected)
  return float(max(jax.tree.leaves(differences)))


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  for name, default, meaning in (
    ("batch_size", 4, "images"),
    ("image_size", 256, "pixels per side"),
    ("num_parts", 8, "K"),
    ("channels", 1024, "C, split over two maps of stride 16"),
    ("rounds", 7, "turns of each form"),
  ):
    parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning}; {default}")
  sizes = vars(parser.parse_args(arguments))
  rounds = sizes.pop("rounds")

  description = machine.describe(os.environ)
  inputs = draw_inputs(0, **sizes)
  compiled = {name: compile_form(form, inputs) for name, form in FORMS.items()}
  difference = largest_difference(*(compiled[name](*inputs) for name in ("here", "as written")))

  def turn(name: str, calls: int) -> float:
    return mean_seconds(lambda: jax.block_until_ready(compiled[name](*inputs)), calls)

  timings = in_turn({name: functools.partial(turn, name) for name in FORMS}, rounds)
  temporary = {name: call.memory_analysis().temp_size_in_bytes for name, call in compiled.items()}
  print(", ".join(f"{name} {value}" for name, value in sizes.items()) + "\n")
  print(table(timings, temporary))
  print(f"\nLargest difference of value and gradients: {difference:.1e} of the largest entry.\n")
  print("\n".join([*description, f"- devices: {jax.devices()[0].device_kind}"]))


def table(timings: Mapping[str, Timing], temporary: Mapping[str, int]) -> str:
  """Returns a table of time and temporary memory (bytes)."""
  rows = ["| form | ms | temporary memory, MB |", "|---|---:|---:|"]
  for name, timing in timings.items():
    rows.append(f"| {name} | {timing} | {temporary[name] / 1e6:.1f} |")
  memory = temporary["as written"] / temporary["here"]
  speedup = timings["here"].speedup(timings["as written"])
  return "\n".join([*rows, f"| ratio | {speedup:.1f} × | {memory:.1f} × |"])


if __name__ == "__main__":
  main()
