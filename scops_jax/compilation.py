"""XLA's options for programs on a CPU; other devices have none."""

import functools
from collections.abc import Callable
from typing import Any

import jax

# XLA would else give matrix products, convolutions and reductions to YNNPACK, whose convolutions take up to
# twice as long as those of Eigen, which XLA has too. The list of what YNNPACK gets is empty.
_ALWAYS = {"xla_cpu_experimental_ynn_fusion_type": ""}
# XLA would else run operations of a step side by side where it can. They share the cores anyway, and hold up
# to twice as much memory. It would also drop the optimization barriers before it orders the operations: then
# what the backward pass computes again is computed long before it is needed (`resnet.TrainedBottleneck`), and
# the gradients of kernels long after their inputs were there (`models.convolution`).
_IN_TRAINING = {
  "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
  "xla_disable_hlo_passes": "cse_barrier_expander",
}


def compiler_options(*, training: bool = False) -> dict[str, str] | None:
  """Returns what jax.jit takes as compiler_options on the default backend; `training` for a training step.

  They change speed and memory alone. One that this version of XLA does not have is left out.
  """
  if jax.default_backend() != "cpu":
    return None
  wanted = {**_ALWAYS, **_IN_TRAINING} if training else _ALWAYS
  return {name: value for name, value in wanted.items() if _exists(name, value)}


def jit(function: Callable, *, training: bool = False, **options: Any) -> jax.stages.Wrapped:
  """Compiles as jax.jit with these options of it, and compiler_options."""
  return jax.jit(function, compiler_options=compiler_options(training=training), **options)


@functools.cache
def _exists(name: str, value: str) -> bool:
  program = jax.jit(lambda: 0, compiler_options={name: value}).lower()
  try:
    program.compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True
