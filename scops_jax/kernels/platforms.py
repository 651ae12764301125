"""Functions in two forms, one that is fast on CPUs and one for other platforms."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax
from jax import lax

_every_platform = contextvars.ContextVar("every_platform", default=False)
_target = contextvars.ContextVar("target", default="")


@contextlib.contextmanager
def every_platform() -> Iterator[None]:
  """Programs that are traced inside hold both forms, as an exported one needs to run on every platform.

  Others hold the form of `target()` alone: tracing gradients of both takes half as long again.
  """
  token = _every_platform.set(True)
  try:
    yield
  finally:
    _every_platform.reset(token)


@contextlib.contextmanager
def targeting(platform: str) -> Iterator[None]:
  """Programs that are traced inside are for "cpu", "cuda" or "tpu", whatever devices this process has."""
  token = _target.set(platform)
  try:
    yield
  finally:
    _target.reset(token)


def target() -> str:
  """Returns the platform that programs are traced for: the default backend, unless `targeting` names one."""
  return _target.get() or jax.default_backend()


Form = Callable[..., jax.Array]


def call(*arrays: jax.Array, on_cpu: Form, elsewhere: Form) -> jax.Array:
  """Calls the form for the platform with the arrays."""
  if _every_platform.get():
    return lax.platform_dependent(*arrays, cpu=on_cpu, default=elsewhere)
  return (on_cpu if target() == "cpu" else elsewhere)(*arrays)
