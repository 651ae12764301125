"""Runs image files through the network and writes the results to a folder, in threads or in processes."""

import contextlib
import functools
import hashlib
import os
import pathlib
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from scops_jax.data.lookahead import ahead, batches
from scops_jax.errors import UserError, printable
from scops_jax.prediction.files import (
  DoneImage,
  ImageFile,
  OutputFiles,
  load_image,
  predict_batch,
  write_image,
)
from scops_jax.prediction.folder import PredictionFolder, image_files
from scops_jax.prediction.predictor import (
  compile_segmenter,
  fast_batch_size,
  padded_batch_size,
  predict_parts,
)
from scops_jax.prediction.processes import Job, fast_process_count, predict_in_processes
from scops_jax.prediction.restore import Segmenter
from scops_jax.progress import Bar, say
from scops_jax.storage.paths import as_path

_MAX_THREADS = 16


def predict_images(
  segmenter: Segmenter,
  images: Mapping[str, pathlib.Path],
  out: str | pathlib.Path,
  *,
  probabilities: bool = False,
  crf: bool = False,
  marks: bool = True,
  batch_size: int | None = None,
  processes: int | None = None,
) -> list[str]:
  """Labels image files and writes what `python -m scops_jax.predict --help` describes.

  In one process, threads read and write files while the network runs, at most two batches ahead of it and
  behind. In several, each process takes a batch from its files to its results. The images in memory are
  bounded, however many there are.

  Args:
    segmenter: the network.
    images: path by name, as find_images returns them; parts.csv lists them in this order.
    out: the folder to write or to continue.
    probabilities: whether to keep the soft maps.
    crf: whether to refine the maps with dense_crf.
    marks: whether overlays have numbered part centres and a legend.
    batch_size: images per call of the network; None: `fast_batch_size`.
    processes: how many share the cores of a CPU; None: `fast_process_count` of the images that are not done
      yet. If there are several, each imports the main program: it needs `if __name__ == "__main__"`.

  Returns:
    For each image that could not be labelled, the reason.

  Raises:
    UserError: `out` can't be written or holds predictions with other settings, no image can be read, or
      several processes are asked for on an accelerator.
  """
  if (processes or 1) > 1 and jax.default_backend() != "cpu":
    raise UserError(f"processes={processes} is for CPUs, and this is a {jax.default_backend()}: leave it out")
  out = as_path(out)
  names = segmenter.part_names
  settings = {
    "network": _digest(segmenter),
    "step": segmenter.step,
    "crf": crf,
    "marks": marks,
    "part_names": list(names),
  }
  failures: list[str] = []
  try:
    writes = OutputFiles(out, probabilities, names, marks)
    with contextlib.closing(PredictionFolder(writes, settings=settings)) as folder:
      files = image_files(images)
      todo = folder.unfinished(files)
      size = padded_batch_size(len(images), batch_size or fast_batch_size())
      num_batches = -(-len(todo) // size)
      count = min(processes or fast_process_count(len(todo)), max(1, num_batches))
      with Bar(len(files), "predict", done=len(files) - len(todo), first="compiling") as bar:
        if count == 1:
          stream = _in_threads(segmenter, todo, folder.files, crf=crf, batch_size=size)
        else:
          job = functools.partial(make_job, segmenter, folder.files, crf=crf, batch_size=size)
          stream = predict_in_processes(job, batches(todo, size), count=count)
        with contextlib.closing(stream):  # before the folder is closed
          for outcome in stream:
            if isinstance(outcome, UserError):
              failures.append(str(outcome))
              say(f"left out: {printable(str(outcome), None)}")
            else:
              folder.add(outcome)
            bar.update()
      folder.write_table(files, failures)
      folder.write_contact_sheet(files, num_parts=segmenter.config.num_parts)
  except OSError as error:
    raise UserError(f"can't write to out={out} ({error}); finished images are kept: run it again") from error
  _summarize(len(files), len(todo), failures, out)
  return failures


def make_job(segmenter: Segmenter, out: OutputFiles, *, crf: bool, batch_size: int) -> Job:
  """Returns the network as a program for other processes, and where they write the results."""
  weights = jax.device_get((segmenter.params, segmenter.batch_stats))
  size = segmenter.config.image_size

  def predict(images: jax.Array, weights: Any) -> tuple[Any, ...]:
    return tuple(predict_parts(segmenter, images, weights, crf=crf))  # a type that needs no import there

  images = jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8)
  program = jax.export.export(jax.jit(predict))(images, weights)
  return Job(bytes(program.serialize()), weights, size, batch_size, out)


def _summarize(total: int, todo: int, failures: list[str], out: pathlib.Path) -> None:
  if len(failures) == total:
    raise UserError(f"none of {total} images can be labelled: {out / 'failed.txt'} gives the reasons")
  before = f" ({total - todo} of them before)" if todo < total else ""
  left_out = f"; {len(failures)} can't be read, see {out / 'failed.txt'}" if failures else ""
  print(f"{total - len(failures)} images done{before}{left_out}: {out / 'parts.csv'}")


def _digest(segmenter: Segmenter) -> str:
  """Returns a digest of the weights, which identifies a network even if its directory is moved."""
  digest = hashlib.sha256(f"{segmenter.config.segmenter} {segmenter.config.image_size}".encode())
  for leaf in jax.tree.leaves((segmenter.params, segmenter.batch_stats)):
    digest.update(np.asarray(leaf).tobytes())
  return digest.hexdigest()[:16]


def _in_threads(
  segmenter: Segmenter, todo: Sequence[ImageFile], out: OutputFiles, *, crf: bool, batch_size: int
) -> Generator[DoneImage | UserError, None, None]:
  predict = compile_segmenter(segmenter, crf=crf)
  load = functools.partial(load_image, image_size=segmenter.config.image_size)
  write = functools.partial(write_image, out=out)
  pool = ThreadPoolExecutor(min(_MAX_THREADS, max(2, os.cpu_count() or 1)))
  try:
    loaded = batches(ahead(pool, load, todo, depth=2 * batch_size), batch_size)
    predicted = (image for batch in loaded for image in predict_batch(predict, batch, size=batch_size))
    yield from ahead(pool, write, predicted, depth=2 * batch_size)
  finally:
    pool.shutdown(cancel_futures=True)
