"""Labels a video file: the video with its parts drawn over it, and a table of the parts in every frame.

FFmpeg decodes and encodes, run by imageio-ffmpeg, which brings its own copy: 70 MB that only videos need, so
it is an extra, "video".
"""

import contextlib
import csv
import errno
import os
import pathlib
import warnings
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from scops_jax.data.image_files import MAX_PIXELS
from scops_jax.data.lookahead import batches
from scops_jax.errors import UserError, printable
from scops_jax.geometry import pixels_from_points
from scops_jax.prediction.labels import label_pixels
from scops_jax.prediction.overlay import overlay_parts
from scops_jax.prediction.predictor import Predictor, fast_batch_size
from scops_jax.prediction.segmenter import Segmenter
from scops_jax.progress import Bar
from scops_jax.storage.files import replacing
from scops_jax.storage.paths import as_path

_COLUMNS = ("frame", "seconds", "part", "x", "y", "area", "mean_probability")


class _Video(NamedTuple):
  frames: Generator[Image.Image, None, None]
  fps: float
  num_frames: int  # about; 1 where it is unknown


def predict_video(
  segmenter: Segmenter,
  path: str | os.PathLike[str],
  out: str | os.PathLike[str],
  *,
  crf: bool = False,
  marks: bool = True,
  batch_size: int | None = None,
) -> pathlib.Path:
  """Writes OUT/STEM_parts.mp4 (H.264, without sound) and OUT/STEM_parts.csv.

  The table has a line for each frame and part: frame (from 0), seconds, part (1..K), x, y (its centre, pixels
  of the frame), area (pixels) and mean_probability (empty if the area is 0). Every frame stands alone.

  Args:
    segmenter: the network.
    path: of the video.
    out: the folder to write; files of these names are replaced.
    crf: whether to refine the maps with dense_crf.
    marks: whether frames have numbered part centres and a legend.
    batch_size: frames per call of the network; None: `fast_batch_size`.

  Returns:
    The path of the written video.

  Raises:
    UserError: the extra is not installed, the file is no video that FFmpeg reads, or `out` can't be written.
  """
  path, batch_size = pathlib.Path(path), batch_size or fast_batch_size()
  video = _open(path)
  predictor = Predictor(segmenter, batch_size=batch_size, crf=crf)
  target = as_path(out) / f"{path.stem}_parts.mp4"
  options: dict[str, Any] = {"names": segmenter.part_names, "numbers": marks, "legend": marks}
  number = 0
  try:
    with (
      contextlib.ExitStack() as stack,
      replacing(target.with_suffix(".csv")) as table,
      replacing(target) as temporary,
      table.open("w", encoding="utf-8", newline="") as file,
      Bar(video.num_frames, "predict", unit="frame", first="compiling") as bar,
    ):
      rows = csv.writer(file, lineterminator="\n")
      rows.writerow(_COLUMNS)
      write = None
      for batch in batches(video.frames, batch_size):
        for frame, maps in zip(batch, predictor.find_maps(batch), strict=True):
          rows.writerows(_rows(number, number / video.fps, frame, maps.probs, maps.centers))
          picture = _even(overlay_parts(frame, maps.probs, maps.centers, **options))
          if write is None:
            write = stack.enter_context(_writer(temporary, picture.size, video.fps))
          write.send(picture.tobytes())
          number += 1
          bar.update()
      if write is None:
        raise UserError(f"{path} has no frame that can be read")
      stack.close()  # FFmpeg finishes the file before it gets its name
  except OSError as error:
    raise UserError(f"can't write to out={out} ({error})") from error
  print(f"{number} frames done: {target}")
  return target


def _ffmpeg() -> Any:
  try:
    import imageio_ffmpeg
  except ModuleNotFoundError as error:
    raise UserError(
      'video files need imageio-ffmpeg, which is not installed: pip install "scops_jax[video]"'
    ) from error
  return imageio_ffmpeg


def _open(path: pathlib.Path) -> _Video:
  # Of local files only: a playlist must not make FFmpeg fetch anything.
  reader = _ffmpeg().read_frames(str(path.resolve()), input_params=["-protocol_whitelist", "file,pipe"])
  try:
    with _starting_ffmpeg():
      meta = next(reader)
    width, height = meta["size"]
    if not 0 < width * height <= MAX_PIXELS or not meta["fps"] > 0:
      raise ValueError(f"{width} × {height} pixels at {meta['fps']} frames a second")
  except Exception as error:  # of many types, with FFmpeg's output
    detail = printable(" ".join(str(error).split())[-200:]) or type(error).__name__
    raise UserError(f"{path} is no video that can be read ({detail})") from error
  num_frames = max(1, round(meta["duration"] * meta["fps"]))
  return _Video(_frames(reader, (width, height), path), meta["fps"], num_frames)


def _frames(
  reader: Iterator[bytes], size: tuple[int, int], path: pathlib.Path
) -> Generator[Image.Image, None, None]:
  with contextlib.closing(reader):  # type: ignore[type-var]
    try:
      for data in reader:
        yield Image.frombytes("RGB", size, data)
    except RuntimeError as error:
      raise UserError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from error


@contextlib.contextmanager
def _writer(path: pathlib.Path, size: tuple[int, int], fps: float) -> Iterator[Any]:
  """Yields a generator that takes frames; the file is whole when the context ends."""
  # The temporary name's suffix does not say the format, and sizes are even already.
  writer = _ffmpeg().write_frames(
    str(path), size, fps=fps, quality=7, macro_block_size=1, output_params=["-f", "mp4"]
  )
  with contextlib.closing(writer):
    with _starting_ffmpeg():
      writer.send(None)
    yield writer
  # The library does not say how FFmpeg ended, and a file that it did not finish can't be opened.
  try:
    with contextlib.closing(_open(path).frames) as frames:
      next(frames, None)
  except UserError as error:
    raise OSError(errno.EIO, f"FFmpeg did not finish the video: {error}") from error


@contextlib.contextmanager
def _starting_ffmpeg() -> Iterator[None]:
  """Keeps JAX's warning about forks from the terminal: the child becomes FFmpeg at once."""
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", r"os\.fork\(\)", RuntimeWarning)
    yield


def _even(picture: Image.Image) -> Image.Image:
  """Adds a row or column of white where the size is odd, which H.264's usual pixel format can't hold."""
  width, height = picture.size
  size = (width + width % 2, height + height % 2)
  if size == picture.size:
    return picture
  padded = Image.new("RGB", size, "white")
  padded.paste(picture)
  return padded


def _rows(
  number: int, seconds: float, frame: Image.Image, probs: np.ndarray, centers: np.ndarray
) -> Iterator[list[Any]]:
  width, height = frame.size
  found = label_pixels(probs, height=height, width=width)
  places = pixels_from_points(centers, width=width, height=height, square=probs.shape[0])
  for part, (x, y) in enumerate(np.round(places, 3).tolist(), 1):
    area = int(found.areas[part])
    yield [
      number,
      round(seconds, 3),
      part,
      x,
      y,
      area,
      round(float(found.mean_probs[part]), 4) if area else None,
    ]
