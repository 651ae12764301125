"""Image files through the network and into a folder, by threads beside the device or by processes."""

import contextlib
import functools
import hashlib
import os
import pathlib
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np
from tqdm import tqdm

from scops_jax.data.lookahead import ahead, batches
from scops_jax.errors import UserError
from scops_jax.prediction.files import (
  DoneImage,
  ImageFile,
  ImageMaps,
  LoadedImage,
  OutputFiles,
  load_image,
  pair_maps,
  stack_pixels,
  write_image,
)
from scops_jax.prediction.folder import PredictionFolder, image_files
from scops_jax.prediction.predictor import (
  compile_segmenter,
  fast_batch_size,
  padded_batch_size,
  portable_segmenter,
)
from scops_jax.prediction.processes import MAX_PROCESSES, Job, num_cores, predict_in_processes
from scops_jax.prediction.restore import Segmenter

_MAX_THREADS = 16
_REPAID = 1000  # images in which processes regain what they take to start

T = TypeVar("T")


def fast_process_count(num_images: int) -> int:
  """Returns how many processes label so many images soonest: on a CPU one a core, where there are many."""
  if jax.default_backend() != "cpu" or num_images < _REPAID:
    return 1
  return min(num_cores(), MAX_PROCESSES)


def predict_images(
  segmenter: Segmenter,
  images: Mapping[str, pathlib.Path],
  out: str | pathlib.Path,
  *,
  probabilities: bool = False,
  crf: bool = False,
  batch_size: int | None = None,
  processes: int | None = None,
) -> list[str]:
  """Writes what `python -m scops_jax.predict` promises (its --help) for image files.

  With one process, threads read and write beside the network, at most two batches ahead and behind; with
  more, each takes a batch from its files to its files. Memory does not depend on the number of images.

  Args:
    segmenter: the network.
    images: path by name, as find_images returns them; the order of parts.csv.
    out: the folder to write, or to go on with.
    probabilities: whether the soft maps are kept.
    crf: whether the maps are refined by dense_crf.
    batch_size: images that the network sees at once; None: as many as are fast.
    processes: that share the cores of a CPU; None: `fast_process_count` of what is to do. With more than
      one, each imports the program that calls this: it needs its `if __name__ == "__main__"`.

  Returns:
    Why each image that could not be read was left out.

  Raises:
    UserError: `out` can't be written or holds other predictions, no image can be read, or there are to be
      processes beside an accelerator.
  """
  if (processes or 1) > 1 and jax.default_backend() != "cpu":
    raise UserError(
      f"--processes={processes} is for CPUs, and this is a {jax.default_backend()}: leave it out"
    )
  settings = {"network": _digest(segmenter), "step": segmenter.step, "crf": crf}
  folder = PredictionFolder(pathlib.Path(out), settings=settings, probabilities=probabilities)
  failures: list[str] = []
  try:
    files = image_files(images)
    todo = [file for file in files if not folder.is_done(file)]
    size = padded_batch_size(len(images), batch_size or fast_batch_size())
    count = min(processes or fast_process_count(len(todo)), max(1, -(-len(todo) // size)))  # a batch each
    stream = _in_threads if count == 1 else functools.partial(_in_processes, count=count)
    with tqdm(total=len(files), initial=len(files) - len(todo), unit="image", desc="predict") as bar:

      def fail(error: UserError) -> None:
        failures.append(str(error))
        tqdm.write(f"left out: {error}", file=sys.stderr)
        bar.update()

      # Closed before the folder is, whatever ends it.
      with contextlib.closing(
        stream(segmenter, todo, folder.files, crf=crf, batch_size=size, fail=fail)
      ) as done:
        for image in done:
          folder.add(image)
          bar.update()
    folder.write_table(files, failures)
  except OSError as error:
    raise UserError(f"can't write to --out={out} ({error}); what is done is kept: run it again") from error
  finally:
    folder.close()
  _summarize(len(files), len(todo), failures, folder.files.path)
  return failures


def make_job(segmenter: Segmenter, out: OutputFiles, *, crf: bool, batch_size: int) -> Job:
  """Returns what processes are to do with batches of images."""
  program, weights = portable_segmenter(segmenter, crf=crf, batch_size=batch_size)
  return Job(program, weights, segmenter.config.image_size, batch_size, out)


def _summarize(total: int, todo: int, failures: list[str], out: pathlib.Path) -> None:
  if len(failures) == total:
    raise UserError(f"none of {total} images can be read: {out / 'failed.txt'} says why of each")
  before = f" ({total - todo} of them before)" if todo < total else ""
  left_out = f"; {len(failures)} can't be read, see {out / 'failed.txt'}" if failures else ""
  print(f"{total - len(failures)} images done{before}{left_out}: {out / 'parts.csv'}")


def _digest(segmenter: Segmenter) -> str:
  """Tells networks apart, wherever their directories are moved to."""
  digest = hashlib.sha256(f"{segmenter.config.segmenter} {segmenter.config.image_size}".encode())
  for leaf in jax.tree.leaves((segmenter.params, segmenter.batch_stats)):
    digest.update(np.asarray(leaf).tobytes())
  return digest.hexdigest()[:16]


def _in_processes(
  segmenter: Segmenter,
  todo: Sequence[ImageFile],
  out: OutputFiles,
  *,
  crf: bool,
  batch_size: int,
  count: int,
  fail: Callable[[UserError], None],
) -> Generator[DoneImage, None, None]:
  job = functools.partial(make_job, segmenter, out, crf=crf, batch_size=batch_size)
  return _succeeded(predict_in_processes(job, batches(todo, batch_size), count=count), fail)


def _in_threads(
  segmenter: Segmenter,
  todo: Sequence[ImageFile],
  out: OutputFiles,
  *,
  crf: bool,
  batch_size: int,
  fail: Callable[[UserError], None],
) -> Generator[DoneImage, None, None]:
  predict = compile_segmenter(segmenter, crf=crf)
  pool = ThreadPoolExecutor(min(_MAX_THREADS, max(2, os.cpu_count() or 1)))
  try:
    load = functools.partial(load_image, image_size=segmenter.config.image_size)
    loaded = _succeeded(ahead(pool, load, todo, depth=2 * batch_size), fail)
    predicted = _predict(predict, batches(loaded, batch_size), batch_size)
    write = functools.partial(write_image, out=out)
    yield from _succeeded(ahead(pool, write, predicted, depth=2 * batch_size), fail)
  finally:
    pool.shutdown(cancel_futures=True)


def _succeeded(
  results: Iterable[T | UserError], fail: Callable[[UserError], None]
) -> Generator[T, None, None]:
  """Yields the results; what is wrong with the other images is reported."""
  for result in results:
    if isinstance(result, UserError):
      fail(result)
    else:
      yield result


def _predict(
  predict: Callable[[Any], Any], loaded: Iterable[list[LoadedImage]], size: int
) -> Iterator[tuple[LoadedImage, ImageMaps]]:
  """Yields the images with their maps; the device computes a batch while the one before is handed out."""
  queue: deque[tuple[list[LoadedImage], Any]] = deque()

  def finish() -> Iterator[tuple[LoadedImage, ImageMaps]]:
    yield from pair_maps(*queue.popleft())

  for batch in loaded:
    queue.append((batch, predict(stack_pixels(batch, size))))
    if len(queue) > 1:
      yield from finish()
  while queue:
    yield from finish()
