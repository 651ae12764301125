"""Memory of this process."""

import ctypes
import ctypes.util
import gc


def return_freed_memory() -> None:
  """Collects garbage, and gives freed memory back to the system where the C library would keep it (glibc).

  Compiling a step leaves some hundred megabytes.
  """
  gc.collect()
  library = ctypes.util.find_library("c")
  trim = getattr(ctypes.CDLL(library), "malloc_trim", None) if library else None
  if trim is not None:
    trim(0)
