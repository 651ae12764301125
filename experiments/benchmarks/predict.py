"""What `python -m scops_jax.predict` costs beside the network, on many images, and whether its memory grows.

python -m experiments.benchmarks.predict --workdir=runs/mine --images=data/my_faces/images --num=10000

The folder's images are given as often as it takes, each time under another name (hard links). The network
alone, before and after, labels a batch that is in memory over and over.
"""

import argparse
import contextlib
import itertools
import os
import pathlib
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np

from experiments.benchmarks import machine
from scops_jax.data.image_files import find_images, read_image, resize_pixels
from scops_jax.prediction_stream import predict_images
from scops_jax.predictor import compile_segmenter, fast_batch_size
from scops_jax.runs import Segmenter, load_segmenter

_FEW = 32  # images of the call that the start is measured with
_SAMPLE_SECONDS = 0.5


def main() -> None:
  """Measures and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--workdir", required=True, help="a run")
  parser.add_argument("--images", required=True, type=pathlib.Path, help="a folder")
  parser.add_argument("--num", type=int, default=10_000, help="images in all; 10000")
  options = parser.parse_args()
  segmenter = load_segmenter(options.workdir)
  found = list(find_images(str(options.images)).values())
  network = _Network(segmenter, found)
  with tempfile.TemporaryDirectory(dir=options.images.parent) as temporary:
    root = pathlib.Path(temporary)
    images = _links(found, root / "images", options.num)
    few = dict(itertools.islice(images.items(), _FEW))
    fixed = _seconds(segmenter, few, root / "few")
    alone = [network.seconds(options.num // 4)]
    with _sampled_memory() as memory:
      whole = (_seconds(segmenter, images, root / "out") - fixed) / (options.num - _FEW)
    alone.append(network.seconds(options.num // 4))
  print("| | ms an image | images/s |\n|---|---:|---:|")
  for name, seconds in (("network alone", statistics.mean(alone)), ("predict", whole)):
    print(f"| {name} | {1e3 * seconds:.2f} | {1 / seconds:.0f} |")
  share = 1 - statistics.mean(alone) / whole
  print(f"\n{options.num} images; input and output are {100 * share:.0f} % of the time.")
  print(
    f"Starting, {fixed:.1f} s to compile and for a first batch, is not counted. The network before and after:"
  )
  print(f"{', '.join(f'{1e3 * s:.2f}' for s in alone)} ms an image.")
  tenths = np.array_split(memory, 10)
  print(f"Memory over the run, tenth by tenth: {', '.join(f'{max(t):.0f}' for t in tenths)} MB.\n")
  print("\n".join(machine.describe(os.environ)))


def _seconds(segmenter: Segmenter, images: dict[str, pathlib.Path], out: pathlib.Path) -> float:
  began = time.perf_counter()
  predict_images(segmenter, images, out)
  return time.perf_counter() - began


@contextlib.contextmanager
def _sampled_memory() -> Iterator[list[float]]:
  """Yields a list that grows with this process's resident memory in MB while the context lasts (Linux)."""
  samples: list[float] = []
  ended = threading.Event()

  def sample() -> None:
    while not ended.wait(_SAMPLE_SECONDS):
      pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
      samples.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)

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
  """The network on a batch that is in memory."""

  def __init__(self, segmenter: Segmenter, files: list[pathlib.Path]) -> None:
    size = segmenter.config.image_size
    chosen = itertools.islice(itertools.cycle(files), fast_batch_size())
    pixels = [resize_pixels(read_image(file).pixels, size) for file in chosen]
    self._batch = np.stack(pixels)
    self._predict = compile_segmenter(segmenter, crf=False)
    self.seconds(2 * len(pixels))  # compiles

  def seconds(self, count: int) -> float:
    """Returns the time an image; a batch is under way while the one before is fetched."""
    began = time.perf_counter()
    before = None
    batches = -(-count // len(self._batch))
    for _ in range(batches):
      upcoming = self._predict(self._batch)
      if before is not None:
        jax.device_get(before)
      before = upcoming
    jax.device_get(before)
    return (time.perf_counter() - began) / (batches * len(self._batch))


if __name__ == "__main__":
  main()
