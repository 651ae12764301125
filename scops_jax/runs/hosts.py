"""The hosts of a run: processes that jax.distributed connects, each with devices of its own.

All hosts run the same program on the same config and share the work directory, which only the first writes.
A run of one process is a run on one host; nothing here communicates then.
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

# How long hosts wait for one another outside of training: preparing a large collection takes hours.
_TIMEOUT_MS = 24 * 3600 * 1000
_barriers = itertools.count()


def join(
  *, coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
  """Connects this process with those of the other hosts; call it before JAX touches a device.

  Args:
    coordinator_address: "HOST:PORT" of the first host; None where jax.distributed finds it (TPU pods, SLURM
      and other clusters).
    num_processes: the number of hosts; None as above.
    process_id: this host's number, from 0 on; None as above.

  Raises:
    UserError: no cluster is found, or a host did not come.
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
  """Returns whether this is the host that writes, prints and prepares data."""
  return jax.process_index() == 0


def broadcast_from_first(tree: T) -> T:
  """Returns the first host's numbers and arrays on every host; shapes must be equal on all."""
  return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def all_gather(tree: Any) -> Any:
  """Returns whole arrays `[B, ...]` on each host, of NumPy arrays `[B / hosts, ...]` or of sharded ones."""
  return tree if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


def any_host(fact: bool) -> bool:
  """Returns on every host whether `fact` is true on one of them."""
  return fact if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.bool_(fact)).any())


def first_host_first(function: Callable[..., T], *arguments: Any) -> T:
  """Calls `function` on the first host and then on the others; returns each host's own result.

  Raises:
    UserError: `function` failed on another host. An error on this host is raised as it is.
  """
  if jax.process_count() == 1:
    return function(*arguments)
  result, error = None, None
  for first in (True, False):
    if is_first() == first:
      try:
        result = function(*arguments)
      except Exception as raised:  # raised below, once the other hosts know of it
        error = raised
    _wait_for_all()
    failed = np.flatnonzero(multihost_utils.process_allgather(np.int32(error is not None)))
    if error is not None:
      raise error
    if failed.size:
      raise UserError(f"host {failed[0]} can't go on; its output says why")
  return result  # type: ignore[return-value]


def _wait_for_all() -> None:
  """Waits without the devices: on some machines a collective operation gives up after seconds."""
  barrier: Any = ocp.multihost.get_barrier_sync_fn()
  barrier(key=f"scops_jax_barrier_{next(_barriers)}", timeout_ms=_TIMEOUT_MS)
