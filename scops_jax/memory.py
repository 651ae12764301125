"""Memory of this process."""

import ctypes
import ctypes.util
import gc
from collections.abc import Callable

# mallopt's parameters (malloc.h of glibc).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 1 << 20  # bytes


def map_large_blocks() -> None:
  """Lets the C library (glibc) take large blocks from the system one by one, from now on.

  They go back when they are freed. Else it learns to keep them, and what compiling a step leaves lies between
  the parameters and can't go back: 70 MB more for DeepLab.
  """
  mallopt = _c_function("mallopt")
  if mallopt is not None:
    mallopt(_M_MMAP_THRESHOLD, _LARGE)
    mallopt(_M_TRIM_THRESHOLD, _LARGE)


def return_freed_memory() -> None:
  """Collects garbage, and gives freed memory back to the system where the C library would keep it (glibc).

  Compiling a step leaves some hundred megabytes.
  """
  gc.collect()
  trim = _c_function("malloc_trim")
  if trim is not None:
    trim(0)


def _c_function(name: str) -> Callable[..., int] | None:
  library = ctypes.util.find_library("c")
  return getattr(ctypes.CDLL(library), name, None) if library else None
