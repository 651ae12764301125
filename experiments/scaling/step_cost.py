"""What a training step costs one device, from the compiler's analysis of the compiled step; nothing runs.

python -m experiments.scaling.step_cost --images_per_device=6 --out=costs.jsonl

The step is that of configs/celeba.py, sharded as in runs.parallel for parallelism="jit". Shapes suffice: it
needs no weights and no images. On a CPU it is compiled for two virtual devices.
"""

import argparse
import functools
import json
import os
import pathlib
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from configs import celeba
from scops_jax.train_step import Networks, TrainState, create_networks, create_optimizer, train_step

# Matches "%x = f32[64]{0} all-reduce(" and "%y = (f32[64]{0}, /*index=1*/f32[]) all-reduce-start(": the
# shapes are those of the results.
_COLLECTIVE = re.compile(
  r" = (?P<shapes>\S+|\(.*?\)) (?P<name>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
  r"(?:-start)?\("
)
# The program is analysed, not the machine code, so that need not be optimised.
_COMPILER_OPTIONS = {"xla_backend_optimization_level": 0}
_SHAPE = re.compile(r"([a-z]+\d+|pred)\[([\d,]*)\]")


def collectives(program: str) -> dict[str, dict[str, int]]:
  """Counts the communication in a compiled program: operations and bytes of their results, by kind.

  Args:
    program: the text of an HLO module.

  Returns:
    {"all-reduce": {"count": …, "bytes": …}, …}.
  """
  found: dict[str, dict[str, int]] = {}
  for match in _COLLECTIVE.finditer(program):
    entry = found.setdefault(match["name"], {"count": 0, "bytes": 0})
    entry["count"] += 1
    for dtype, sizes in _SHAPE.findall(match["shapes"]):
      bits = int(re.sub(r"\D", "", dtype) or 8)
      entry["bytes"] += bits // 8 * int(np.prod([int(size) for size in sizes.split(",") if size]))
  return found


def abstract_arguments(networks: Networks, config: Any) -> tuple[Any, Any, Any, Any]:
  """Returns (optimizer, state, batch, reference variables); all but the optimizer are shapes."""
  image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
  enlarged = jax.ShapeDtypeStruct((1, *[config.reference_image_size] * 2, 3), jnp.float32)
  key = jax.random.key(0)
  segmenter = jax.eval_shape(functools.partial(networks.segmenter.init, train=False), key, image)
  basis = jax.eval_shape(networks.basis.init, key)
  reference = jax.eval_shape(networks.reference.init, key, enlarged)
  params = {"segmenter": segmenter["params"], "basis": basis["params"]}
  optimizer = create_optimizer(networks, params, config)
  opt_state = jax.eval_shape(optimizer.init, params)
  state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, segmenter.get("batch_stats", {}), opt_state)
  pixels = (config.batch_size, config.image_size, config.image_size)
  batch = {
    "image": jax.ShapeDtypeStruct((*pixels, 3), jnp.uint8),
    "saliency": jax.ShapeDtypeStruct(pixels, jnp.uint8),
  }
  return optimizer, state, batch, reference


def _size(tree: Any) -> int:
  return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def step_cost(devices: list[Any], *, images_per_device: int) -> dict[str, Any]:
  """Compiles the step and returns its cost for one device."""
  config = celeba.get_config()
  config.batch_size = images_per_device * len(devices)
  networks = create_networks(config)
  optimizer, state, batch, reference = abstract_arguments(networks, config)
  mesh = Mesh(np.asarray(devices), ("data",))
  replicated, sharded = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec("data")))
  compiled_from = jax.jit(
    functools.partial(train_step, networks=networks, optimizer=optimizer, config=config),
    in_shardings=(replicated, sharded, replicated),
    out_shardings=replicated,
    donate_argnums=0,
  ).lower(state, batch, reference)
  began = time.perf_counter()
  compiled = compiled_from.compile(compiler_options=_COMPILER_OPTIONS)
  analysis, memory = compiled.cost_analysis(), compiled.memory_analysis()
  return {
    "device": devices[0].device_kind,
    "devices": len(devices),
    "images_per_device": images_per_device,
    "flops": analysis["flops"],
    "bytes_accessed": analysis["bytes accessed"],
    "collectives": collectives(compiled.as_text()),
    "trained_bytes": _size(state.params),
    "state_bytes": _size((state, reference)),
    "batch_bytes": _size(batch) // len(devices),
    "temporary_bytes": memory.temp_size_in_bytes,
    "argument_bytes": memory.argument_size_in_bytes,
    "compile_seconds": round(time.perf_counter() - began, 1),
    "jax": jax.__version__,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--images_per_device", type=int, default=6)
  parser.add_argument("--out", type=pathlib.Path, required=True, help="a line of JSON is appended to it")
  arguments = parser.parse_args()
  os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
  cost = step_cost(jax.devices(), images_per_device=arguments.images_per_device)
  with arguments.out.open("a", encoding="utf-8") as file:
    file.write(json.dumps(cost) + "\n")
  print(json.dumps(cost, indent=2))


if __name__ == "__main__":
  main()
