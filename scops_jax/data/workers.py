"""How many threads or processes of this host read and decode images."""

import os

from ml_collections import ConfigDict

_MOST = 32  # more wait for one another: Python's own work is done by one at a time


def num_workers(options: ConfigDict) -> int:
  """Returns config.data.num_threads or, where it is 0, the number of this process's cores, at most 32."""
  if options.num_threads:
    return options.num_threads
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  return min(cores, _MOST)
