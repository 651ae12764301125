"""What `python -m scops_jax.predict` costs in addition to the network, and whether its memory grows.

python -m experiments.benchmarks.predict --workdir=runs/mine --images=data/my_faces/images --num=10000

The folder's images are repeated under new names (hard links) until there are --num of them. Before and after,
the network alone labels the same batch in memory repeatedly: in one process with all cores, as
`load_predictor` does, and on a CPU also in as many processes as predict starts.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import machine
from scops_jax.data.image_files import find_images, read_image, resize_pixels
from scops_jax.prediction.files import OutputFiles
from scops_jax.prediction.predictor import compile_segmenter, fast_batch_size
from scops_jax.prediction.processes import (
  Job,
  fast_process_count,
  open_program,
  pin_to_cores,
  shares_of_cores,
)
from scops_jax.prediction.restore import Segmenter, load_segmenter
from scops_jax.prediction.stream import make_job, predict_images

_FEW = 32  # images of the short call that measures the start-up time
_SAMPLE_SECONDS = 0.5
_NOWHERE = OutputFiles(pathlib.Path(os.devnull), probabilities=False)  # for jobs that write nothing


def main() -> None:
  """Measures and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--workdir", required=True, help="a run")
  parser.add_argument("--images", required=True, type=pathlib.Path, help="a folder")
  parser.add_argument("--num", type=int, default=10_000, help="number of images; 10000")
  options = parser.parse_args()
  segmenter = load_segmenter(options.workdir)
  found = list(find_images(str(options.images)).values())
  processes = fast_process_count(options.num)
  networks = {"network alone, one process": _Network(segmenter, found)}
  if processes > 1:
    networks[f"network alone, {processes} processes"] = _Processes(segmenter, found, processes)
  alone: dict[str, list[float]] = {name: [] for name in networks}

  def measure_networks() -> None:
    for name, network in networks.items():
      alone[name].append(network.seconds(options.num // 4))

  with tempfile.TemporaryDirectory(dir=options.images.parent) as temporary:
    root = pathlib.Path(temporary)
    images = _links(found, root / "images", options.num)
    few = dict(itertools.islice(images.items(), _FEW))
    fixed = _seconds(segmenter, few, root / "few", processes)
    measure_networks()
    with _sampled_memory() as memory:
      whole = (_seconds(segmenter, images, root / "out", processes) - fixed) / (options.num - _FEW)
    measure_networks()
  print("| | ms per image | images/s | input and output of predict |\n|---|---:|---:|---:|")
  for name, seconds in alone.items():
    mean = statistics.mean(seconds)
    print(f"| {name} | {1e3 * mean:.2f} | {1 / mean:.0f} | {100 * (1 - mean / whole):.0f} % |")
  print(f"| predict, {processes} processes | {1e3 * whole:.2f} | {1 / whole:.0f} | |")
  print(f"\n{options.num} images. The start-up of {fixed:.1f} s (compiling, first batch) is not counted.")
  for name, seconds in alone.items():
    print(f"{name}, before and after: {', '.join(f'{1e3 * s:.2f}' for s in seconds)} ms per image.")
  tenths = np.array_split(memory, min(10, len(memory)))
  print(f"Peak memory in each part of the run: {', '.join(f'{max(t):.0f}' for t in tenths)} MB.\n")
  print("\n".join(machine.describe(os.environ)))


def _seconds(
  segmenter: Segmenter, images: dict[str, pathlib.Path], out: pathlib.Path, processes: int
) -> float:
  began = time.perf_counter()
  predict_images(segmenter, images, out, processes=processes)
  return time.perf_counter() - began


@contextlib.contextmanager
def _sampled_memory() -> Iterator[list[float]]:
  """Yields a list that fills during the context: MB resident in this process and its children (Linux)."""
  samples: list[float] = []
  ended = threading.Event()

  def sample() -> None:
    while not ended.wait(_SAMPLE_SECONDS):
      ids = ["self", *(str(child.pid) for child in multiprocessing.active_children())]
      pages = [int(pathlib.Path(f"/proc/{i}/statm").read_text(encoding="ascii").split()[1]) for i in ids]
      samples.append(sum(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6)

  thread = threading.Thread(target=sample)
  thread.start()
  try:
    yield samples
  finally:
    ended.set()
    thread.join()


def _links(files: list[pathlib.Path], folder: pathlib.Path, count: int) -> dict[str, pathlib.Path]:
  folder.mkdir()
  links = {}
  for i in range(count):
    name = f"{i:06d}{files[i % len(files)].suffix}"
    links[name] = folder / name
    links[name].hardlink_to(files[i % len(files)])
  return links


class _Network:
  """The network alone, in this process, on a batch in memory."""

  def __init__(self, segmenter: Segmenter, files: list[pathlib.Path]) -> None:
    self._batch = _batch(segmenter, files)
    self._predict = compile_segmenter(segmenter, crf=False)
    self.seconds(1)  # compiles

  def seconds(self, count: int) -> float:
    """Returns seconds per image."""
    return _label(self._predict, self._batch, count)


class _Processes:
  """The network alone, in several processes at once, each with its share of the cores."""

  def __init__(self, segmenter: Segmenter, files: list[pathlib.Path], count: int) -> None:
    self._job = make_job(segmenter, _NOWHERE, crf=False, batch_size=fast_batch_size())
    self._batch = _batch(segmenter, files)
    self._shares = shares_of_cores(count)

  def seconds(self, count: int) -> float:
    """Returns seconds per image, without the start of the processes."""
    context = multiprocessing.get_context("spawn")
    shared = -(-count // len(self._shares))
    with context.Manager() as manager, ProcessPoolExecutor(len(self._shares), context) as pool:
      ready = manager.Barrier(len(self._shares))
      calls = [
        pool.submit(_label_alone, self._job, cores, self._batch, shared, ready) for cores in self._shares
      ]
      return statistics.mean(call.result() for call in calls) / len(self._shares)


def _label_alone(job: Job, cores: Sequence[int], batch: np.ndarray, count: int, ready: Any) -> float:
  pin_to_cores(cores)
  predict = open_program(job)
  _label(predict, batch, 1)
  ready.wait()
  return _label(predict, batch, count)


def _batch(segmenter: Segmenter, files: list[pathlib.Path]) -> np.ndarray:
  size = segmenter.config.image_size
  chosen = itertools.islice(itertools.cycle(files), fast_batch_size())
  return np.stack([resize_pixels(read_image(file).pixels, size) for file in chosen])


def _label(predict: Callable[[np.ndarray], Any], batch: np.ndarray, count: int) -> float:
  """Labels at least `count` images and returns seconds per image; fetching overlaps with the next batch."""
  began = time.perf_counter()
  before = None
  batches = -(-count // len(batch))
  for _ in range(batches):
    upcoming = predict(batch)
    if before is not None:
      jax.device_get(before)
    before = upcoming
  jax.device_get(before)
  return (time.perf_counter() - began) / (batches * len(batch))


if __name__ == "__main__":
  main()
