"""XLA's options for programs on a CPU; other devices have none."""

import contextvars
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
_for_training = contextvars.ContextVar("for_training", default=False)


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
  wanted = compiler_options(training=training)
  if training and wanted is not None:
    function = _traced_for_training(function)
  return jax.jit(function, compiler_options=wanted, **options)


def is_traced_for_training() -> bool:
  """Says whether what is traced now is compiled by `jit` with training, on a CPU.

  What is fast there may be slow without the options: they keep barriers, and sums from YNNPACK.
  """
  return _for_training.get()


def _traced_for_training(function: Callable) -> Callable:
  @functools.wraps(function)
  def traced(*arguments: Any) -> Any:
    token = _for_training.set(True)
    try:
      return function(*arguments)
    finally:
      _for_training.reset(token)

  return traced


@functools.cache
def _exists(name: str, value: str) -> bool:
  program = jax.jit(lambda: 0, compiler_options={name: value}).lower()
  try:
    program.compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True
