"""What one pass of a frozen reference costs: seconds of a CPU core, or the roofline of a TPU.

python -m experiments.dino.reference_cost
TPU_SKIP_MDS_QUERY=1 python -m experiments.dino.reference_cost --tpu

--tpu compiles for a TPU v5e without one (pip install "libtpu==0.0.42.*") and takes the compiler's own counts
of operations and of bytes to and from memory. Weights are random, which takes as long. Prints Markdown.
"""

import argparse
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from scops_jax import models

_PEAK_FLOPS, _PEAK_BYTES = 197e12, 819e9  # of a TPU v5e a second, bfloat16 operations and HBM


class Case(NamedTuple):
  """A reference at a size."""

  name: str
  layers: tuple[str, ...]
  side: int


# The paper's at its size, and transformers with about as many cells, then with the configs' 32 × 32.
CASES = (
  Case("vgg19", ("relu5_2", "relu5_4"), 256),
  Case("dinov2_vits14_reg", ("norm",), 252),
  Case("dinov3_vits16", ("norm",), 256),
  Case("dinov2_vitb14_reg", ("norm",), 252),
  Case("dinov3_vitb16", ("norm",), 256),
  Case("dinov2_vits14_reg", ("norm",), 448),
  Case("dinov2_vitb14_reg", ("norm",), 448),
  Case("dinov3_vitb16", ("norm",), 512),
)


def _program(case: Case, batch: int, dtype: Any) -> tuple[Any, Any, Any]:
  """Returns the pass, and the shapes of its variables and images."""
  module = models.create_reference(case.name, case.layers)
  images = jax.ShapeDtypeStruct((batch, case.side, case.side, 3), dtype)
  variables = jax.eval_shape(module.init, jax.random.key(0), images)
  return module.apply, variables, images


def cpu_seconds(case: Case, *, batch: int, repeats: int) -> float:
  """Returns the median time an image of the compiled pass in float32, over all threads (core-seconds)."""
  apply, variables, images = _program(case, batch, jnp.float32)
  rng = np.random.default_rng(0)
  # Random kernels, so that no arithmetic is on denormal numbers.
  arrays = jax.tree.map(lambda leaf: 0.02 * rng.standard_normal(leaf.shape, np.float32), variables)
  arrays, x = jax.device_put((arrays, rng.standard_normal(images.shape, np.float32)))
  compiled = jax.jit(apply)
  jax.block_until_ready(compiled(arrays, x))
  found = []
  for _ in range(repeats):
    began = time.process_time()  # of all threads: what else the machine does matters little
    jax.block_until_ready(compiled(arrays, x))
    found.append(time.process_time() - began)
  return float(np.median(found)) / batch


def tpu_cost(case: Case, *, batch: int) -> tuple[float, float]:
  """Returns the operations and bytes an image of the pass, compiled for a TPU v5e in bfloat16."""
  topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
  here = SingleDeviceSharding(topology.devices[0])
  apply, variables, images = _program(case, batch, jnp.bfloat16)
  arguments = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), (variables, images)
  )
  cost = jax.jit(apply).trace(*arguments).lower(lowering_platforms=("tpu",)).compile().cost_analysis()
  return cost["flops"] / batch, cost["bytes accessed"] / batch


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--tpu", action="store_true", help="the roofline of a TPU v5e instead of time here")
  parser.add_argument("--batch", type=int, help="images a pass; 2 on a CPU, 32 for a TPU")
  parser.add_argument("--repeats", type=int, default=3, help="passes, of which the median is taken")
  options = parser.parse_args()
  if options.tpu:
    print("| reference | image | cells | GFLOP | MB | FLOP / byte | bound by | ms at least |")
    print("|---|---:|---:|---:|---:|---:|---|---:|")
  else:
    print("| reference | image | cells | core-seconds an image |\n|---|---:|---:|---:|")
  for case in CASES:
    apply, variables, images = _program(case, 1, jnp.float32)
    cells = "×".join(map(str, jax.eval_shape(apply, variables, images)[0].shape[1:3]))
    row = f"| `{case.name}` {', '.join(case.layers)} | {case.side} | {cells} |"
    if options.tpu:
      flops, moved = tpu_cost(case, batch=options.batch or 32)
      times = {"operations": flops / _PEAK_FLOPS, "memory": moved / _PEAK_BYTES}
      bound = max(times, key=lambda name: times[name])
      row += (
        f" {flops / 1e9:.1f} | {moved / 1e6:.0f} | {flops / moved:.0f} | {bound} | {1e3 * times[bound]:.3f} |"
      )
    else:
      seconds = cpu_seconds(case, batch=options.batch or 2, repeats=options.repeats)
      row += f" {seconds:.2f} |"
    print(row, flush=True)


if __name__ == "__main__":
  main()
