"""Image files through the network and into a folder: reading and writing in threads beside the device."""

import functools
import hashlib
import os
import pathlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from scops_jax.data.image_files import read_image, resize_pixels
from scops_jax.errors import UserError
from scops_jax.prediction_folder import ImageMaps, PredictionFolder, describe_source, output_stems
from scops_jax.predictor import compile_segmenter, fast_batch_size, pad_batch, padded_batch_size
from scops_jax.runs import Segmenter

# Larger originals are not kept while they wait for their maps but read again, so that memory is bounded.
_KEPT_PIXELS = 1 << 20
_MAX_THREADS = 16

T = TypeVar("T")


class _Loaded(NamedTuple):
  """An image on its way."""

  name: str
  path: pathlib.Path
  source: dict[str, Any]
  network_pixels: NDArray[np.uint8]  # [S, S, 3]
  pixels: NDArray[np.uint8] | None  # [H, W, 3]; None: read again for the overlay


def predict_images(
  segmenter: Segmenter,
  images: Mapping[str, pathlib.Path],
  out: str | pathlib.Path,
  *,
  probabilities: bool = False,
  crf: bool = False,
  batch_size: int | None = None,
) -> list[str]:
  """Writes what `python -m scops_jax.predict` promises (its --help) for image files.

  Reading and writing are done by threads beside the network, at most two batches ahead and behind, so memory
  does not depend on the number of images.

  Args:
    segmenter: the network.
    images: path by name, as find_images returns them; the order of parts.csv.
    out: the folder to write, or to go on with.
    probabilities: whether the soft maps are kept.
    crf: whether the maps are refined by dense_crf.
    batch_size: images that the network sees at once; None: as many as are fast.

  Returns:
    Why each image that could not be read was left out.

  Raises:
    UserError: `out` can't be written or holds other predictions, or no image can be read.
  """
  settings = {"network": _digest(segmenter), "step": segmenter.step, "crf": crf}
  folder = PredictionFolder(pathlib.Path(out), settings=settings, probabilities=probabilities)
  failures: list[str] = []

  def fail(reason: str) -> None:
    failures.append(reason)
    tqdm.write(f"left out: {reason}", file=sys.stderr)

  try:
    stems = output_stems(images)
    todo = {name: path for name, path in images.items() if not folder.is_done(name, path, stems[name])}
    size = padded_batch_size(len(images), batch_size or fast_batch_size())
    predict = compile_segmenter(segmenter, crf=crf)
    pool = ThreadPoolExecutor(min(_MAX_THREADS, max(2, os.cpu_count() or 1)))
    bar = tqdm(total=len(images), initial=len(images) - len(todo), unit="image", desc="predict")
    try:
      load = functools.partial(_load, image_size=segmenter.config.image_size)
      loaded = _succeeded(_ahead(pool, load, todo.items(), depth=2 * size), bar, fail)
      predicted = _predict(predict, _batches(loaded, size), size)
      write = functools.partial(_write, folder, stems)
      for item, rows in _succeeded(_ahead(pool, write, predicted, depth=2 * size), bar, fail):
        folder.add(stems[item.name], item.source, rows)
        bar.update()
    finally:
      bar.close()
      pool.shutdown(cancel_futures=True)
    folder.write_table(images, stems, failures)
  except OSError as error:
    raise UserError(f"can't write to --out={out} ({error}); what is done is kept: run it again") from error
  finally:
    folder.close()
  _summarize(len(images), len(todo), failures, folder.path)
  return failures


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


def _load(entry: tuple[str, pathlib.Path], *, image_size: int) -> _Loaded:
  name, path = entry
  try:
    source = describe_source(name, path)  # before it is read: if it changes now, it is done again next time
  except OSError as error:
    raise UserError(f"{path} can't be read: {error.strerror}") from error
  pixels = read_image(path).pixels
  small = resize_pixels(pixels, image_size)
  kept = pixels if pixels.shape[0] * pixels.shape[1] <= _KEPT_PIXELS else None
  return _Loaded(name, path, source, small, kept)


def _write(
  folder: PredictionFolder, stems: Mapping[str, str], predicted: tuple[_Loaded, ImageMaps]
) -> tuple[_Loaded, list[list[Any]]]:
  item, maps = predicted
  pixels = read_image(item.path).pixels if item.pixels is None else item.pixels
  return item, folder.write_image(stems[item.name], pixels, maps)


def _ahead(
  pool: ThreadPoolExecutor, function: Callable[[Any], T], arguments: Iterable[Any], *, depth: int
) -> Iterator[Future[T]]:
  """Yields the calls' futures in order, `depth` of them under way."""
  queue: deque[Future[T]] = deque()
  for argument in arguments:
    queue.append(pool.submit(function, argument))
    if len(queue) > depth:
      yield queue.popleft()
  while queue:
    yield queue.popleft()


def _succeeded(futures: Iterable[Future[T]], bar: tqdm, fail: Callable[[str], None]) -> Iterator[T]:
  """Yields the results; an image that can't be read is reported instead."""
  for future in futures:
    try:
      result = future.result()
    except UserError as error:
      fail(str(error))
      bar.update()
    else:
      yield result


def _batches(items: Iterable[_Loaded], size: int) -> Iterator[list[_Loaded]]:
  batch: list[_Loaded] = []
  for item in items:
    batch.append(item)
    if len(batch) == size:
      yield batch
      batch = []
  if batch:
    yield batch


def _predict(
  predict: Callable[[NDArray[np.uint8]], Any], batches: Iterable[list[_Loaded]], size: int
) -> Iterator[tuple[_Loaded, ImageMaps]]:
  """Yields the images with their maps; the device computes a batch while the one before is handed out."""
  queue: deque[tuple[list[_Loaded], Any]] = deque()

  def finish() -> Iterator[tuple[_Loaded, ImageMaps]]:
    batch, prediction = queue.popleft()
    labels, probs, centers = jax.device_get(prediction)
    for i, item in enumerate(batch):
      yield item, ImageMaps(labels[i], probs[i], centers[i])

  for batch in batches:
    pixels = np.stack([item.network_pixels for item in batch])
    queue.append((batch, predict(pad_batch(pixels, size))))
    if len(queue) > 1:
      yield from finish()
  while queue:
    yield from finish()
