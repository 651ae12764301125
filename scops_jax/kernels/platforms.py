"""Which form of a function a program holds, that which is fast on CPUs or that for other platforms."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax
from jax import lax

_every_platform = contextvars.ContextVar("every_platform", default=False)


@contextlib.contextmanager
def every_platform() -> Iterator[None]:
  """Lets programs that are traced inside hold the form for each platform, as an exported one needs.

  Otherwise the form is that of the default backend: tracing a gradient of both takes half as long again.
  """
  token = _every_platform.set(True)
  try:
    yield
  finally:
    _every_platform.reset(token)


Form = Callable[..., jax.Array]


def call(*arrays: jax.Array, on_cpu: Form, elsewhere: Form) -> jax.Array:
  """Returns what the form for the platform gives for the arrays."""
  if _every_platform.get():
    return lax.platform_dependent(*arrays, cpu=on_cpu, default=elsewhere)
  return (on_cpu if jax.default_backend() == "cpu" else elsewhere)(*arrays)
