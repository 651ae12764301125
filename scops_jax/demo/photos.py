"""The photographs of a visit and what networks say about them, without the page."""

import csv
import io
import pathlib
import zipfile
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from scops_jax.data.image_files import read_image
from scops_jax.data.toy_faces.drawing import draw_numbered_face
from scops_jax.errors import UserError
from scops_jax.geometry import pixels_from_points
from scops_jax.prediction.labels import label_pixels
from scops_jax.prediction.overlay import overlay_parts
from scops_jax.prediction.predictor import PartPrediction, Predictor
from scops_jax.prediction.restore import load_segmenter
from scops_jax.report.overlays import PALETTE

MAX_PHOTOS = 24
_LONGEST = 1600  # pixels; larger photographs are reduced
_EXAMPLES = ((7, 0, 3), (7, 0, 8), (7, 0, 11))  # numbers of drawn faces that no run is trained on


class Network:
  """A network, with and without the CRF."""

  def __init__(self, source: str, title: str) -> None:
    """Loads it; raises UserError as `load_segmenter` does."""
    self.title = title.replace("/", "_")
    self._segmenter = load_segmenter(source)
    self.num_parts: int = self._segmenter.config.num_parts
    self.part_names = self._segmenter.part_names
    self.knows_drawn_faces: bool = self._segmenter.config.data.name == "toy_faces"
    self._predictors: dict[bool, Predictor] = {}

  def find(self, photos: Sequence["Photo"], *, crf: bool) -> list[PartPrediction]:
    """Returns the maps of photographs, which keep them for the next time."""
    if crf not in self._predictors:
      # One image a call: one program, whatever the number of photographs.
      self._predictors[crf] = Predictor(self._segmenter, batch_size=1, crf=crf)
    for photo in photos:
      if (self, crf) not in photo.maps:
        (photo.maps[self, crf],) = self._predictors[crf].find_maps([photo.image])
    return [photo.maps[self, crf] for photo in photos]


class Photo:
  """A photograph, reduced if it is large, its full (width, height), and the maps that networks have found."""

  def __init__(self, name: str, image: Image.Image) -> None:
    self.name = name
    self.image = image
    self.full_size = image.size
    if max(image.size) > _LONGEST:
      self.image = image.copy()
      self.image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    self.maps: dict[tuple[Network, bool], PartPrediction] = {}


class Look(NamedTuple):
  """How overlays are drawn."""

  shown: Collection[int] | None = None  # parts; None: all
  opacity: float = 0.5
  numbers: bool = True
  legend: bool = True
  crf: bool = False


def open_photos(paths: Sequence[str]) -> tuple[list[Photo], list[str]]:
  """Reads photographs, MAX_PHOTOS at most; returns them, and why others are left out."""
  photos, problems = [], []
  for path in map(pathlib.Path, paths[:MAX_PHOTOS]):
    try:
      photos.append(Photo(path.name, read_image(path).image))
    except UserError as error:
      problems.append(str(error).replace(str(path), path.name))
  if len(paths) > MAX_PHOTOS:
    problems.append(f"{len(paths) - MAX_PHOTOS} photos are left out: the page shows {MAX_PHOTOS} at a time")
  return photos, problems


def drawn_faces() -> list[Photo]:
  """Returns drawn faces to begin with."""
  faces = enumerate(map(draw_numbered_face, _EXAMPLES), 1)
  return [Photo(f"face_{i}.png", Image.fromarray(face.image)) for i, face in faces]


def draw(network: Network, photos: Sequence[Photo], look: Look) -> list[Image.Image]:
  """Draws a network's parts over photographs."""
  return [
    overlay_parts(
      photo.image,
      maps.probs,
      maps.centers,
      names=network.part_names,
      # The other network may have more parts.
      shown=None if look.shown is None else [part for part in look.shown if part <= network.num_parts],
      opacity=look.opacity,
      numbers=look.numbers,
      legend=look.legend,
    )
    for photo, maps in zip(photos, network.find(photos, crf=look.crf), strict=True)
  ]


def pack(networks: Sequence[Network], photos: Sequence[Photo], look: Look) -> bytes:
  """Returns a zip of the overlays as they are shown, and index maps and a table of the parts at full size."""
  stream, table = io.BytesIO(), io.StringIO()
  rows = csv.writer(table, lineterminator="\n")
  rows.writerow(("network", "image", "part", "name", "x", "y", "area"))
  with zipfile.ZipFile(stream, "w") as archive:
    for network in networks:
      folder = f"{network.title}/" if len(networks) > 1 else ""
      maps = network.find(photos, crf=look.crf)
      for number, (photo, overlay, found) in enumerate(
        zip(photos, draw(network, photos, look), maps, strict=True), 1
      ):
        width, height = photo.full_size
        labels = label_pixels(found.probs, height=height, width=width)
        stem = f"{number:02}_{pathlib.Path(photo.name).stem}"
        picture = Image.fromarray(labels.labels)
        picture.putpalette(PALETTE)
        archive.writestr(f"{folder}overlays/{stem}.jpg", _encoded(overlay, "JPEG"))
        archive.writestr(f"{folder}labels/{stem}.png", _encoded(picture, "PNG"))
        places = pixels_from_points(found.centers, width=width, height=height, square=found.probs.shape[0])
        for part, (x, y) in enumerate(np.round(places, 3).tolist(), 1):
          name = network.part_names[part - 1] if network.part_names else ""
          rows.writerow((network.title, stem, part, name, x, y, int(labels.areas[part])))
    archive.writestr("parts.csv", table.getvalue())
  return stream.getvalue()


def _encoded(image: Image.Image, form: str) -> bytes:
  stream = io.BytesIO()
  image.save(stream, form, **({"quality": 92} if form == "JPEG" else {}))
  return stream.getvalue()
