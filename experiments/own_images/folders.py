"""Writes drawings in the layout of a folder of own images."""

import csv
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scops_jax.data.builder import encode_png


class Drawing(NamedTuple):
  """One object; landmarks maps a name to (x, y, visible), in pixels."""

  image: NDArray[np.uint8]
  saliency: NDArray[np.uint8]
  parts: NDArray[np.uint8]
  landmarks: dict[str, tuple[float, float, bool]]


def write_folder(out: pathlib.Path, drawings: Iterable[Drawing]) -> None:
  """Writes images/ (JPEG), saliency/, parts/ and landmarks.csv; files are named by their number."""
  for folder in ("images", "saliency", "parts"):
    (out / folder).mkdir(parents=True, exist_ok=True)
  with (out / "landmarks.csv").open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["image", "landmark", "x", "y", "visible"])
    for index, drawing in enumerate(drawings):
      stem = f"{index:05d}"
      Image.fromarray(drawing.image).save(out / "images" / f"{stem}.jpg", quality=92)
      for folder, array in (("saliency", drawing.saliency), ("parts", drawing.parts)):
        (out / folder / f"{stem}.png").write_bytes(encode_png(array))
      for landmark, (x, y, visible) in drawing.landmarks.items():
        writer.writerow([f"{stem}.jpg", landmark, f"{x:.2f}", f"{y:.2f}", int(visible)])
