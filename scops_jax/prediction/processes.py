"""Labels image files in several processes, each pinned to its own share of the CPU's cores.

XLA splits every operation of a network among all cores and waits for the slowest of them; a core that also
reads or writes files delays the others. A process on a core of its own never waits.

This module imports little, so that processes start fast. They import it while the network is traced, then
load the traced program. Each compiles it for itself: programs that were compiled in another process crash if
they sort, as the CRF does (jaxlib 0.10.2).
"""

import functools
import multiprocessing
import os
import pathlib
import pickle
import signal
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import jax
import jax.export
import numpy as np
from numpy.typing import NDArray

from scops_jax.data.lookahead import ahead
from scops_jax.errors import UserError
from scops_jax.kernels.compilation import jit
from scops_jax.prediction.files import (
  DoneImage,
  ImageFile,
  OutputFiles,
  load_image,
  predict_batch,
  write_image,
)

_MAX_PROCESSES = 16  # each takes about 0.4 GB
_MIN_IMAGES = 1000  # for fewer, starting processes takes longer than they save


class Job(NamedTuple):
  """What the processes do with each batch of images."""

  program: bytes  # from jax.export; maps images uint8 [B, S, S, 3] and the weights to labels, probs, centers
  weights: Any
  image_size: int  # S, pixels
  batch_size: int  # B
  out: OutputFiles


def fast_process_count(num_images: int) -> int:
  """Returns how many processes label so many images fastest: one per core on a CPU, one elsewhere."""
  if jax.default_backend() != "cpu" or num_images < _MIN_IMAGES:
    return 1
  return max(1, min(len(_cores()), _MAX_PROCESSES))


def predict_in_processes(
  make_job: Callable[[], Job], batches: Iterable[list[ImageFile]], *, count: int
) -> Generator[DoneImage | UserError, None, None]:
  """Yields each image when its files are written, or the reason why it can't be read.

  Args:
    make_job: returns the job; called while the processes start.
    batches: of at most the job's batch_size images.
    count: processes; they share the cores that this one may use.

  Raises:
    UserError: a process was killed.
  """
  context = multiprocessing.get_context("spawn")
  shares = context.SimpleQueue()
  for cores in shares_of_cores(count):
    shares.put(cores)
  with tempfile.TemporaryDirectory() as folder:
    pool = ProcessPoolExecutor(count, context, initializer=_start, initargs=(shares,))
    try:
      # Ctrl-C is this process's to handle; the others inherit that it is blocked.
      before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
      for _ in range(count):
        pool.submit(int)  # a process starts only when there is something to do
      signal.pthread_sigmask(signal.SIG_SETMASK, before)
      path = pathlib.Path(folder) / "job.pickle"
      path.write_bytes(pickle.dumps(make_job()))
      for outcomes in ahead(pool, functools.partial(_label, path), batches, depth=2 * count):
        yield from outcomes
    except BrokenProcessPool as error:
      raise UserError(
        "a process of predict was killed, usually because memory ran out; finished images are kept: run it "
        "again, with processes=1 if memory is short"
      ) from error
    finally:
      pool.shutdown(cancel_futures=True)


def shares_of_cores(count: int) -> list[list[int]]:
  """Deals this process's cores out to `count` processes; shares are empty where there are too few cores."""
  cores = _cores()
  return [cores[i::count] for i in range(count)]


def pin_to_cores(cores: Sequence[int]) -> None:
  """Restricts this process to these cores, if there are any; call it before JAX counts them."""
  if cores:
    os.sched_setaffinity(0, cores)


def open_program(job: Job) -> Callable[[NDArray[np.uint8]], Any]:
  """Returns a job's network as a function of images; it is compiled at the first call."""
  program = jit(jax.export.deserialize(bytearray(job.program)).call)
  weights = jax.device_put(job.weights)
  return lambda images: program(images, weights)


def _cores() -> list[int]:
  """Returns the cores that this process may use; none where the system does not support pinning."""
  return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _start(shares: Any) -> None:
  """Prepares a new process."""
  threading.Thread(target=_exit_with_parent, daemon=True).start()
  pin_to_cores(shares.get())


def _exit_with_parent() -> None:
  """Ends this process when its parent is gone; otherwise it would wait for a batch forever."""
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()
    os._exit(1)


@functools.cache
def _open_job(path: pathlib.Path) -> tuple[Job, Callable[[NDArray[np.uint8]], Any]]:
  job = pickle.loads(path.read_bytes())
  return job, open_program(job)


def _label(path: pathlib.Path, batch: list[ImageFile]) -> list[DoneImage | UserError]:
  """Reads, labels and writes the images of a batch, as the job in the file `path` says."""
  job, predict = _open_job(path)
  loaded = [load_image(file, image_size=job.image_size) for file in batch]
  predicted = predict_batch(predict, loaded, size=job.batch_size)
  return [write_image(image, out=job.out) for image in predicted]
