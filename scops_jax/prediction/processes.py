"""Processes that label image files, each with cores of its own.

XLA divides every operation of a network among all cores and waits for the slowest of them, and whatever else
a core does meanwhile makes the others wait. On a core of its own, a process waits for nobody.

They start with little to import, while the network is traced, and are then given the program. Each compiles
it: XLA's compiled programs crash in another process if they sort, as the CRF does (jaxlib 0.10.2).
"""

import contextlib
import multiprocessing
import os
import queue
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
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
  LoadedImage,
  OutputFiles,
  load_image,
  pair_maps,
  stack_pixels,
  write_image,
)

MAX_PROCESSES = 16  # each takes about 0.4 GB
_END_SECONDS = 10.0  # that a process has to end by itself when there is no more to do


class Job(NamedTuple):
  """What the processes are to do with batches of images."""

  program: bytes  # jax.export: images [B, S, S, 3] and weights → labels, probs, centers
  weights: Any
  image_size: int  # S, pixels
  batch_size: int  # B
  out: OutputFiles


def num_cores() -> int:
  """Returns how many cores processes can be given: 1 where the system lets nobody choose."""
  return max(1, len(_cores()))


def predict_in_processes(
  make_job: Callable[[], Job], batches: Iterable[list[ImageFile]], *, count: int
) -> Iterator[DoneImage | UserError]:
  """Yields what became of each image: done, or why it can't be read.

  Args:
    make_job: says what is done with them; called while the processes start.
    batches: of at most its batch_size images.
    count: processes; they share the cores that this one may use.

  Raises:
    UserError: a process was ended from outside.
    OSError: a file can't be written.
  """
  context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
  idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
  workers = [_Worker(context, cores) for cores in shares_of_cores(count)]

  def call(batch: list[ImageFile]) -> list[DoneImage | UserError]:
    worker = idle.get()
    try:
      return worker(batch)
    finally:
      idle.put(worker)

  pool = ThreadPoolExecutor(count)
  try:
    job = make_job()
    for worker in workers:
      worker.give(job)
      idle.put(worker)
    for outcomes in ahead(pool, call, batches, depth=2 * count):
      yield from outcomes
  finally:
    pool.shutdown(cancel_futures=True)
    for worker in workers:
      worker.end()


class _Worker:
  """A process as a function of batches."""

  def __init__(self, context: Any, cores: Sequence[int]) -> None:
    self._connection, theirs = context.Pipe()
    self._process = context.Process(target=_work, args=(theirs, cores), daemon=True)
    self._process.start()
    theirs.close()  # so that its end closes when the process is gone

  def give(self, job: Job) -> None:
    """Says what is to be done with the batches."""
    with self._reporting_its_end():
      self._connection.send(job)

  def __call__(self, batch: list[ImageFile]) -> list[DoneImage | UserError]:
    with self._reporting_its_end():
      self._connection.send(batch)
      answer = self._connection.recv()
    if isinstance(answer, Exception):
      raise answer
    return answer

  @contextlib.contextmanager
  def _reporting_its_end(self) -> Iterator[None]:
    try:
      yield
    except (EOFError, ConnectionError) as error:
      self._process.join(_END_SECONDS)
      raise UserError(
        f"a process of predict was ended (exit code {self._process.exitcode}; -9 is mostly for want of "
        "memory); what is done is kept: run it again, with --processes=1 if memory is short"
      ) from error

  def end(self) -> None:
    self._connection.close()
    self._process.join(_END_SECONDS)
    self._process.terminate()


def shares_of_cores(count: int) -> list[list[int]]:
  """Returns which of this process's cores each of `count` is given; none where there are too few."""
  cores = _cores()
  return [cores[i::count] for i in range(count)]


def open_program(job: Job, cores: Sequence[int]) -> Callable[[NDArray[np.uint8]], Any]:
  """Returns the network of a job, for this process to run on these cores from now on; empty: on any."""
  if cores:
    os.sched_setaffinity(0, cores)  # before JAX counts them
  program = jit(jax.export.deserialize(bytearray(job.program)).call)
  weights = jax.device_put(job.weights)
  return lambda images: program(images, weights)


def _cores() -> list[int]:
  """Returns the cores that processes can be given; none where the system lets nobody choose."""
  return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _work(connection: Connection, cores: Sequence[int]) -> None:
  """Answers batches until the other end is closed, which it also is when that process is killed."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other end decides what an interruption ends
  with contextlib.suppress(EOFError, ConnectionError):
    job = connection.recv()
    predict = open_program(job, cores)
    while True:
      batch = connection.recv()
      connection.send(_answer(batch, predict, job))


def _answer(
  batch: list[ImageFile], predict: Callable[[NDArray[np.uint8]], Any], job: Job
) -> list[DoneImage | UserError] | Exception:
  """Returns what became of the images, or what the other end is to raise."""
  try:
    return _label(batch, predict, job)
  except Exception as error:
    error.add_note(traceback.format_exc())
    return error


def _label(
  batch: list[ImageFile], predict: Callable[[NDArray[np.uint8]], Any], job: Job
) -> list[DoneImage | UserError]:
  loaded = [load_image(file, image_size=job.image_size) for file in batch]
  outcomes: list[DoneImage | UserError] = [image for image in loaded if isinstance(image, UserError)]
  images = [image for image in loaded if isinstance(image, LoadedImage)]
  if images:
    prediction = predict(stack_pixels(images, job.batch_size))
    outcomes += [write_image(predicted, out=job.out) for predicted in pair_maps(images, prediction)]
  return outcomes
