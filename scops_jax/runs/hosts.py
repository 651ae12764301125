"""The hosts of a run: processes that jax.distributed connects, each with devices of its own.

All hosts run the same program on the same config and share the work directory, which only the first writes.
A run of one process is a run on one host; nothing here communicates then.
"""

import contextlib
import ctypes
import itertools
import signal
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
_notices: list[Callable[[int], None]] = []  # JAX's handler of SIGTERM, once it has one


def join(
  *,
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout: int = 300,
) -> None:
  """Connects this process with those of the other hosts; call it before JAX touches a device.

  Args:
    coordinator_address: "HOST:PORT" of the first host; None where jax.distributed finds it (TPU VMs, GKE,
      SLURM, Open MPI).
    num_processes: the number of hosts; None as above.
    process_id: this host's number, from 0 on; None as above.
    timeout: how long to wait for the other hosts, seconds.

  Raises:
    UserError: no cluster is found, or a host did not come.
  """
  try:
    jax.distributed.initialize(coordinator_address, num_processes, process_id, initialization_timeout=timeout)
    _keep_sigterm()
  except (RuntimeError, TypeError, ValueError) as error:
    detail = " ".join(str(error).split())
    raise UserError(
      f"--multihost can't join the hosts: {detail}; where no cluster is found, give --coordinator_address, "
      "--num_processes and --process_id"
    ) from error


def _keep_sigterm() -> None:
  """Gives SIGTERM back to Python's handlers, and keeps JAX's for `announce_stop`.

  jax.distributed.initialize has replaced the process's handler by its own, which ends nothing but notes the
  signal for `reached_stop`. So outside of training SIGTERM would have no effect.
  """
  set_handler = ctypes.CDLL(None).signal
  set_handler.restype, set_handler.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
  handler = set_handler(signal.SIGTERM, None)
  if handler:
    _notices.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(handler))
  with contextlib.suppress(ValueError):  # only the main thread may; nor are signals for another one
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def announce_stop() -> None:
  """Makes all hosts stop after the same step, as `reached_stop` tells; a signal handler may call it."""
  for notice in _notices:
    notice(signal.SIGTERM)


def reached_stop(step: int) -> bool:
  """Returns whether all hosts stop after this step, because one of them has called `announce_stop`.

  All hosts call it before the first step and after each one. They agree in the background within about a
  second, on a step that none of them has done yet; no host waits for another and no device is used.
  """
  return multihost_utils.reached_preemption_sync_point(step)


def leave() -> None:
  """Waits for all hosts to call this, and disconnects: a host that just ends is an error of the others."""
  if jax.process_count() > 1:
    jax.distributed.shutdown()


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
