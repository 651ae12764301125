"""What a TPU would run: compiles a step for a slice with TPU's own compiler and writes what it costs a chip.

python -m experiments.scaling.tpu_program --config=configs/celeba.py --topology=v5e:2x4 \
  --images_per_chip=6 --out=celeba.json [--config.KEY=VALUE …] [--step=predict]

No TPU is needed, only libtpu (the extra `tpu`). Nothing runs: shapes suffice, so neither weights nor images
are read. The config's batch size is set to images_per_chip times the slice's chips. README.md explains the
JSON.
"""

import functools
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from jax.experimental import topologies
from ml_collections import ConfigDict, config_flags

from experiments.scaling import hlo
from scops_jax import cli
from scops_jax.errors import UserError
from scops_jax.kernels.compilation import wanted_options
from scops_jax.kernels.platforms import targeting
from scops_jax.runs import parallel
from scops_jax.train_step import (
  Networks,
  TrainState,
  create_networks,
  create_optimizer,
  resolve_dtype,
  train_step,
)

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's configuration, configs/NAME.py.")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x4", "The slice: a generation of TPU and its chips.")
_IMAGES = flags.DEFINE_integer("images_per_chip", 6, "Images that a chip has of each batch.", lower_bound=1)
_STEP = flags.DEFINE_enum("step", "train", ["train", "predict"], "The step to compile.")
_OUT = flags.DEFINE_string("out", None, "The JSON file to write.", required=True)

_LARGEST = 10  # consumers of traffic in the JSON
# libtpu asks the cloud which machine it is on, and locks the machine's chips, unless told otherwise.
_ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Peak(NamedTuple):
  """Published figures of a chip."""

  flops: float  # per second, in bfloat16
  hbm: float  # bytes per second


PEAKS = {
  "TPU v4": Peak(275e12, 1228e9),
  "TPU v5 lite": Peak(197e12, 819e9),  # v5e
  "TPU v5": Peak(459e12, 2765e9),  # v5p
  "TPU v6 lite": Peak(918e12, 1640e9),  # v6e
}


def slice_devices(topology: str) -> list[Any]:
  """Returns the devices of a slice such as "v5e:2x4", to compile for.

  Raises:
    UserError: libtpu is not installed, or it knows no such slice.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise UserError("TPU's compiler is missing: pip install 'scops_jax[tpu]'")
  for key, value in _ENVIRONMENT.items():
    os.environ.setdefault(key, value)
  try:
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
  except jax.errors.JaxRuntimeError as error:
    raise UserError(f"--topology={topology}: {str(error).splitlines()[0]}") from error


def shapes(networks: Networks, config: ConfigDict) -> tuple[Any, Any, Any, Any]:
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


def lower(networks: Networks, config: ConfigDict, devices: list[Any], *, step: str) -> jax.stages.Lowered:
  """Traces a step as a run has it on these devices; `step` is "train" or "predict"."""
  with targeting("tpu"):
    optimizer, state, batch, reference = shapes(networks, config)
    replicated, sharded = parallel.shardings(devices)
    bound = {"networks": networks, "config": config}
    if step == "predict":
      predict = functools.partial(parallel.labels_and_centers, **bound)
      variables = (state.params["segmenter"], state.batch_stats)
      return parallel.evaluation_step(predict, replicated, sharded).lower(variables, batch["image"])
    train = functools.partial(train_step, optimizer=optimizer, **bound)
    compiled = parallel.pmap_step if config.parallelism == "pmap" else parallel.jit_step
    return compiled(train, replicated, sharded).lower(state, batch, reference)


def measure(lowered: jax.stages.Lowered, devices: list[Any], *, step: str) -> dict[str, Any]:
  """Compiles a step as a run on TPUs does and returns what it costs a chip; `step` is as in `lower`."""
  with targeting("tpu"):
    options = wanted_options(training=step == "train")
  began = time.perf_counter()
  compiled = lowered.compile(compiler_options=options)
  seconds = time.perf_counter() - began
  analysis, memory = compiled.cost_analysis(), compiled.memory_analysis()
  program = hlo.parse(compiled.as_text())
  bytes_accessed = int(analysis["bytes accessed"]) + hlo.repeated_bytes(program)
  flops = int(analysis["flops"])
  peak = PEAKS[devices[0].device_kind]
  arithmetic_ms, traffic_ms = 1e3 * flops / peak.flops, 1e3 * bytes_accessed / peak.hbm
  return {
    "chip": devices[0].device_kind,
    "chips": len(devices),
    "flops": flops,
    "bytes_accessed": bytes_accessed,
    "hbm_bytes": hlo.hbm_bytes(program),
    "temp_bytes": memory.temp_size_in_bytes,
    "argument_bytes": memory.argument_size_in_bytes,
    "code_bytes": memory.generated_code_size_in_bytes,
    "collectives": hlo.collectives(program),
    "compile_seconds": round(seconds, 1),
    "arithmetic_ms": round(arithmetic_ms, 2),
    "roofline_ms": round(max(arithmetic_ms, traffic_ms), 2),
    "largest_consumers": hlo.largest_consumers(program, _LARGEST),
    "jax": jax.__version__,
    "libtpu": importlib.metadata.version("libtpu"),
  }


def main() -> None:
  """Compiles the step that the flags name, writes the JSON and prints it."""
  config = _CONFIG.value
  devices = slice_devices(_TOPOLOGY.value)
  config.batch_size = _IMAGES.value * len(devices)
  with targeting("tpu"):
    compute_dtype = resolve_dtype(config.compute_dtype)
  lowered = lower(create_networks(config), config, devices, step=_STEP.value)
  settings = {
    "config": config_flags.get_config_filename(flags.FLAGS["config"]),
    "topology": _TOPOLOGY.value,
    "images_per_chip": _IMAGES.value,
    "step": _STEP.value,
    "parallelism": config.parallelism,
    "compute_dtype": compute_dtype,
  }
  text = json.dumps({**settings, **measure(lowered, devices, step=_STEP.value)}, indent=2)
  pathlib.Path(_OUT.value).write_text(text + "\n", encoding="utf-8")
  print(text)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  cli.run(main)
