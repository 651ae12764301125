"""Consistency of a segmentation without any labels: an image's parts against those of its known warps.

An image is turned, shrunk and shifted by a known similarity, segmented again, and the result is brought back
into the image's own frame. Equivariance under known warps is how Thewlis et al. (ICCV 2017) train and judge
landmarks, and what SCOPS's second loss asks of parts; here it is measured, with warps that do not depend on
the run's config, so that runs compare. Distances are in pixels of the network's square.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import ndimage

from scops_jax.report.figures import pixel_positions

Batch = Mapping[str, np.ndarray]
Predict = Callable[[Batch], Mapping[str, np.ndarray]]

_SEED = 0  # of the warps
_IMAGES = 64  # that are warped
_CLIPS, _FRAMES = 4, 16
# Objects only shrink, so that hardly anything of them leaves the frame.
_ROTATION, _SMALLEST, _SHIFT = 30.0, 0.7, 0.1  # ± degrees; magnification, up to 1; ± of an edge
_KEPT = ("image", "saliency", "labels", "centers")


def similarity(
  angle: np.ndarray, scale: np.ndarray, shift: np.ndarray, *, size: tuple[int, int]
) -> np.ndarray:
  """Returns the maps from pixels of warped images to pixels of the images: A (p - c) + c + t.

  A turns by `angle` and divides by `scale`; c is the middle of the image.

  Args:
    angle: `[N]`, radians, from x towards y.
    scale: `[N]`, magnification of the object, > 0.
    shift: t `[N, 2]` (x, y), pixels.
    size: (height, width), pixels.

  Returns:
    `[N, 2, 3]`, (x, y, 1) → (x, y), float64.
  """
  cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
  matrix = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
  middle = (np.array(size[::-1]) - 1) / 2
  offset = middle + shift - matrix @ middle
  return np.concatenate([matrix, offset[..., None]], axis=-1)


def warp_pictures(pictures: np.ndarray, maps: np.ndarray) -> np.ndarray:
  """Warps pictures bilinearly; outside, their outermost pixels are repeated.

  Args:
    pictures: `[N, H, W]` or `[N, H, W, C]` uint8.
    maps: `[N, 2, 3]`, see `similarity`.

  Returns:
    Like `pictures`.
  """
  channels = np.moveaxis(pictures.reshape(*pictures.shape[:3], -1), -1, 1).astype(np.float32)
  warped = np.empty_like(channels)
  for planes, results, each in zip(channels, warped, maps, strict=True):
    # SciPy counts in rows and columns.
    matrix, offset = each[::-1, 1::-1], each[::-1, 2]
    for plane, result in zip(planes, results, strict=True):
      ndimage.affine_transform(plane, matrix, offset, output=result, order=1, mode="nearest")
  return np.rint(np.moveaxis(warped, 1, -1)).astype(np.uint8).reshape(pictures.shape)


def unwarp_labels(labels: np.ndarray, maps: np.ndarray) -> np.ndarray:
  """Brings label maps of warped images back: the label at the nearest pixel of the warped image.

  Args:
    labels: `[N, H, W]` integers ≥ 0, of the warped images.
    maps: `[N, 2, 3]`, see `similarity`.

  Returns:
    `[N, H, W]` int16 in the frame of the images; -1 where the warped image does not show the pixel.
  """
  height, width = labels.shape[1:]
  x, y = np.meshgrid(np.arange(width), np.arange(height))
  found = np.full(labels.shape, -1, np.int16)
  for picture, result, each in zip(labels, found, maps, strict=True):
    inverse = np.linalg.inv(each[:, :2])
    columns, rows = (
      np.floor(a * (x - each[0, 2]) + b * (y - each[1, 2]) + 0.5).astype(int) for a, b in inverse
    )
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    result[inside] = picture[rows[inside], columns[inside]]
  return found


class Consistency:
  """Keeps the first test images; `measures` then segments warps and clips of them."""

  def __init__(self, num_parts: int) -> None:
    self._num_parts = num_parts
    self._rows: list[Batch] = []

  def add(self, rows: Batch) -> None:
    """Takes a batch: "image" and "saliency" uint8, and "labels" and "centers" as predicted."""
    if sum(len(kept["image"]) for kept in self._rows) < _IMAGES:
      self._rows.append({name: rows[name] for name in _KEPT})

  def measures(self, predict: Predict, *, batch_size: int) -> dict[str, Any]:
    """Returns the entries of evaluation.json.

    - warp_center_error: mean distance, in pixels, of a part's centre in a warped image, brought back, from
      its centre in the image, over the parts that have a pixel in both.
    - warp_label_agreement: of all pixels that the warped image shows and either calls foreground, the share
      with equal labels.
    - warp_part_agreement: for each part, of the pixels with its label in the warped image, the share with
      that label in the image: the part's purity without ground truth. None for a part without a pixel.
    - clip_center_jitter: in clips of an image that turns, shrinks and moves along a circle in 16 frames, the
      mean distance of a part's centres in consecutive frames once the motion is undone, in pixels.
    - clip_label_flicker: there, of all pixels that both of two consecutive frames show and either calls
      foreground, the share whose labels differ.

    Args:
      predict: as `evaluate.evaluate` takes it; it sees "image" and "saliency", both warped.
      batch_size: images a call.

    Returns:
      The five; None where no part has a pixel.
    """
    rows = {name: np.concatenate([kept[name] for kept in self._rows])[:_IMAGES] for name in _KEPT}
    size = rows["labels"].shape[1:]
    labels, centers = _segment(predict, rows, _random_maps(len(rows["labels"]), size), batch_size)
    own = pixel_positions(rows["centers"], height=size[0], width=size[1])
    agreement = [_share(rows["labels"] == part, labels == part) for part in range(1, self._num_parts + 1)]

    clips = {name: np.repeat(array[:_CLIPS], _FRAMES, axis=0) for name, array in rows.items()}
    maps = np.tile(_clip_maps(size), (len(clips["labels"]) // _FRAMES, 1, 1))
    frames, places = _segment(predict, clips, maps, batch_size)
    # The motion is a circle: the first frame follows the last.
    following = np.roll(np.arange(len(frames)).reshape(-1, _FRAMES), -1, axis=1).ravel()
    steady = _label_agreement(frames, frames[following])
    return {
      "warp_center_error": self._distance((own, rows["labels"]), (centers, labels)),
      "warp_label_agreement": _label_agreement(rows["labels"], labels),
      "warp_part_agreement": agreement,
      "clip_center_jitter": self._distance((places, frames), (places[following], frames[following])),
      "clip_label_flicker": None if steady is None else 1 - steady,
    }

  def _distance(self, one: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]) -> float | None:
    """Returns the mean distance of centres `[N, K, 2]` where both label maps `[N, H, W]` have the part."""
    parts = np.arange(1, self._num_parts + 1)
    present = [np.stack([np.isin(parts, labels) for labels in each], axis=0) for each in (one[1], other[1])]
    distances = np.linalg.norm(one[0] - other[0], axis=-1)[present[0] & present[1]]
    return float(distances.mean()) if distances.size else None


def _random_maps(count: int, size: tuple[int, int]) -> np.ndarray:
  rng = np.random.default_rng(_SEED)
  angle = np.deg2rad(rng.uniform(-_ROTATION, _ROTATION, count))
  shift = rng.uniform(-_SHIFT, _SHIFT, (count, 2)) * size[::-1]
  return similarity(angle, rng.uniform(_SMALLEST, 1, count), shift, size=size)


def _clip_maps(size: tuple[int, int]) -> np.ndarray:
  phase = 2 * np.pi * np.arange(_FRAMES) / _FRAMES
  circle = np.stack([np.cos(phase), np.sin(phase)], axis=-1)
  scale = (1 + _SMALLEST) / 2 + (1 - _SMALLEST) / 2 * circle[:, 0]
  return similarity(np.deg2rad(_ROTATION) * circle[:, 1], scale, _SHIFT * circle * size[::-1], size=size)


def _segment(
  predict: Predict, rows: Batch, maps: np.ndarray, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
  """Segments warped images; returns labels and part centres `[N, K, 2]` in pixels, both brought back."""
  warped = {name: warp_pictures(rows[name], maps) for name in ("image", "saliency")}
  labels, centers = [], []
  for start in range(0, len(maps), batch_size):
    # The last batch is filled with its last image, because networks are compiled for one size.
    chosen = np.minimum(np.arange(start, start + batch_size), len(maps) - 1)
    found = predict({name: pictures[chosen] for name, pictures in warped.items()})
    labels.append(np.asarray(found["labels"]))
    centers.append(np.asarray(found["centers"]))
  label_maps = np.concatenate(labels)[: len(maps)]
  height, width = label_maps.shape[1:]
  places = pixel_positions(np.concatenate(centers)[: len(maps)], height=height, width=width)
  places = np.einsum("nij,nkj->nki", maps[..., :2], places) + maps[:, None, :, 2]
  return unwarp_labels(label_maps, maps), places


def _label_agreement(one: np.ndarray, other: np.ndarray) -> float | None:
  """Returns the share of equal labels where both show a pixel and either calls it foreground."""
  either = (one >= 0) & (other >= 0) & ((one > 0) | (other > 0))
  return _share(one == other, either)


def _share(hits: np.ndarray, mask: np.ndarray) -> float | None:
  count = np.count_nonzero(mask)
  return float(np.count_nonzero(hits & mask) / count) if count else None
