"""Memory of this process."""

import ctypes
import ctypes.util
import gc
from collections.abc import Callable

import jax

# mallopt's parameters (malloc.h of glibc).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_LARGE = 1 << 20  # bytes
_EVERYTHING = (1 << 31) - 1  # bytes, the most that mallopt takes


def compute_in_calling_thread() -> None:
  """Lets JAX compute on a CPU in the thread that calls it; of no effect once JAX has looked for its devices.

  JAX's own threads take a step's temporaries, one block, from the system every time, which zeroes its pages:
  up to a third of a step's time. What the main thread takes can be kept (`keep_freed_memory`).
  """
  jax.config.update("jax_cpu_enable_async_dispatch", False)


def map_large_blocks() -> None:
  """Lets the C library (glibc) take large blocks from the system one by one, until `keep_freed_memory`.

  Parameters that are made before a step is compiled then do not lie among what compiling leaves, which could
  not go back: 70 MB for DeepLab. Steps are faster with blocks that are kept.
  """
  _set(_M_MMAP_THRESHOLD, _LARGE)
  _set(_M_TRIM_THRESHOLD, 2 * _LARGE)


def keep_freed_memory() -> None:
  """Gives back to the system what is freed by now, and keeps what the main thread frees from now on (glibc).

  Compiling a step leaves some hundred megabytes of garbage; each step wants as much as the last.
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
