"""jax.jit with options of XLA: programs are fast on a CPU, and a training step's is small on a TPU."""

import contextvars
import functools
from collections.abc import Callable
from typing import Any

import jax

from scops_jax.kernels.platforms import target

# An empty list of the operations that go to YNNPACK: its convolutions take up to twice as long as Eigen's.
_ALWAYS = {"xla_cpu_experimental_ynn_fusion_type": ""}
_IN_TRAINING = {
  # One operation after another: side by side they share the same cores and need up to twice the memory.
  "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
  # Keeps the optimization barriers until the operations are ordered. Without them, what the backward pass
  # recomputes is computed long before its use (`resnet.TrainedBottleneck`), and the gradients of kernels long
  # after their inputs (`kernels.convolution`).
  "xla_disable_hlo_passes": "cse_barrier_expander",
}
# KiB on the chip that one operation may hold its windows in; v5e's default is 16384. Loops over a window are
# unrolled, so that code grows with it. Less still makes operations slower (experiments/scaling).
_IN_TRAINING_ON_TPU = {"xla_tpu_scoped_vmem_limit_kib": "10240"}
_for_training = contextvars.ContextVar("for_training", default=False)


def compiler_options(*, training: bool = False) -> dict[str, str]:
  """Returns jax.jit's compiler_options for the platform that is compiled for; `training` for a training step.

  They change speed and memory, not results. Options that this version of XLA lacks are left out.
  """
  wanted = wanted_options(training=training)
  return {name: value for name, value in wanted.items() if _exists(name, value)}


def wanted_options(*, training: bool = False) -> dict[str, str]:
  """Returns what compiler_options does, before options that this process's XLA lacks are left out."""
  if target() == "cpu":
    return {**_ALWAYS, **_IN_TRAINING} if training else _ALWAYS
  return _IN_TRAINING_ON_TPU if training and target() == "tpu" else {}


def jit(function: Callable, *, training: bool = False, **options: Any) -> jax.stages.Wrapped:
  """Compiles as jax.jit does with `options` and compiler_options."""
  wanted = compiler_options(training=training)
  if training:
    function = traced_for_training(function)
  return jax.jit(function, compiler_options=wanted, **options)


def is_traced_for_training() -> bool:
  """Returns whether `jit` with training=True is tracing now.

  Operations then have gradients of their own that are faster than those JAX derives, but work in reverse mode
  only (jax.grad, jax.vjp), and some are fast only with the options of training.
  """
  return _for_training.get()


def traced_for_training(function: Callable) -> Callable:
  """Returns the function, whose traces are for training (`is_traced_for_training`), as those of `jit` are."""

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
