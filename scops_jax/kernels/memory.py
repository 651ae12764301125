"""How this process keeps and returns memory, where the C library is glibc."""

import ctypes
import ctypes.util
import gc
from collections.abc import Callable

import jax

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_LARGE = 1 << 20  # bytes
_EVERYTHING = (1 << 31) - 1  # bytes, the most that mallopt takes


def compute_in_calling_thread() -> None:
  """Makes JAX compute in the calling thread on a CPU; call it before JAX looks for devices."""
  # In JAX's own threads the system provides a step's temporaries, one block, with zeroed pages each time: up
  # to a third of a step's time. In the main thread `keep_freed_memory` avoids it.
  jax.config.update("jax_cpu_enable_async_dispatch", False)


def map_large_blocks() -> None:
  """Makes large blocks go back to the system as soon as they are freed, until `keep_freed_memory`."""
  # Otherwise parameters that are made before compilation share the heap with the garbage of compilation, and
  # keep it from going back: 70 MB for DeepLab.
  _set(_M_MMAP_THRESHOLD, _LARGE)
  _set(_M_TRIM_THRESHOLD, 2 * _LARGE)


def keep_freed_memory() -> None:
  """Returns unused memory to the system now; what the main thread frees later is kept for reuse.

  Call it after the first step: compilation leaves some hundred megabytes of garbage, and each later step
  needs as much memory as the one before.
  """
  gc.collect()
  trim = _c_function("malloc_trim")
  if trim is not None:
    trim(0)
  _set(_M_MMAP_MAX, 0)
  _set(_M_TRIM_THRESHOLD, _EVERYTHING)


def _set(parameter: int, value: int) -> None:
  mallopt = _c_function("mallopt")
  if mallopt is not None:
    mallopt(parameter, value)


def _c_function(name: str) -> Callable[..., int] | None:
  library = ctypes.util.find_library("c")
  return getattr(ctypes.CDLL(library), name, None) if library else None
