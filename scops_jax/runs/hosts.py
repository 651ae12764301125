"""The hosts of a run: processes that jax.distributed joins, each with devices of its own.

All run the same program on the same config. The first alone writes; the others see its files in the shared
work directory. A run on one host is the case of one process, and nothing here communicates then.
"""

import itertools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from scops_jax.errors import UserError

T = TypeVar("T")

# How long hosts wait for one another outside of training: a large collection takes hours to prepare.
_PATIENCE_MS = 24 * 3600 * 1000
_turns = itertools.count()


def join(
  *, coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
  """Joins this process with those of the other hosts; to be called before JAX touches a device.

  Args:
    coordinator_address: "HOST:PORT" of the first host; None: the cluster says it (TPU pods, SLURM and others
      that jax.distributed knows).
    num_processes: how many hosts; None: likewise.
    process_id: this one's number, from 0 on; None: likewise.

  Raises:
    UserError: the cluster can't be found, or a host did not come.
  """
  try:
    jax.distributed.initialize(coordinator_address, num_processes, process_id)
  except (RuntimeError, TypeError, ValueError) as error:
    detail = " ".join(str(error).split())
    raise UserError(
      f"--multihost can't join the hosts: {detail}; where no cluster is found, give --coordinator_address, "
      "--num_processes and --process_id"
    ) from error


def is_first() -> bool:
  """Whether this is the host that writes, prints and prepares data."""
  return jax.process_index() == 0


def first_says(values: T) -> T:
  """Returns the first host's values on every host: a tree of numbers and arrays of the same shapes."""
  if jax.process_count() == 1:
    return values
  return multihost_utils.broadcast_one_to_all(values)


def first_then_others(work: Callable[[], T]) -> T:
  """Calls `work` on the first host and, when it is done there, on the others; returns each host's result.

  Raises:
    UserError: `work` failed on another host. What it raises here is raised here.
  """
  if jax.process_count() == 1:
    return work()
  result, error = None, None
  for first in (True, False):
    if is_first() == first:
      try:
        result = work()
      except Exception as raised:  # raised again below, when the other hosts know of it
        error = raised
    _wait_for_all()
    failed = np.flatnonzero(multihost_utils.process_allgather(np.int32(error is not None)))
    if error is not None:
      raise error
    if failed.size:
      raise UserError(f"host {failed[0]} can't go on; it says why")
  return result  # type: ignore[return-value]


def _wait_for_all() -> None:
  """A barrier of the hosts alone: one of their devices would give up after seconds on some machines."""
  barrier: Any = ocp.multihost.get_barrier_sync_fn()
  barrier(key=f"scops_jax_turn_{next(_turns)}", timeout_ms=_PATIENCE_MS)
