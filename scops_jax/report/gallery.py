"""The test images of the report, the worst ones and a sample of the others, and the mean look of each part.

Only after the last image are the worst ones known: until then all are kept, compressed.
"""

import io
import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from scops_jax.errors import UserError
from scops_jax.report.figures import pixel_positions
from scops_jax.report.markup import encoded
from scops_jax.storage.files import replacing
from scops_jax.storage.paths import as_path

GALLERY_FILE = "gallery.npz"  # beside a run's report, for `python -m scops_jax.report`
LANDMARK_ERROR = "landmark error"  # what a gallery's errors are called where there are landmarks
# Pixels along the longer side of a kept picture.
_LONGEST_SIDE = 256
_JPEG_QUALITY = 85
# The appearance of a part is averaged over a square about its centre: the edge of the square as a fraction of
# the image's shorter one, and the number of samples along it.
_WINDOW = 0.5
_WINDOW_SAMPLES = 64


@dataclass(frozen=True)
class Gallery:
  """Some images of a test split with what was predicted on them.

  Points are (x, y) in [-1, 1], -1 and 1 being the centres of the first and last pixel.

  Attributes:
    indices: `[N]` positions in the test split, ascending.
    images: N JPEG files, RGB, at most 256 pixels along the longer side.
    labels: `[N, h, w]` uint8, 0 .. K; as large as the pictures.
    foreground: `[N, h, w]` bool, what the foreground is compared with.
    centers: `[N, K, 2]` part centres; meaningless where a part has no pixel.
    landmarks: `[N, L, 2]` annotated, NaN where hidden; None: no landmarks.
    predicted: `[N, L, 2]` predicted landmarks, NaN where there is no prediction, or None.
    errors: `[N]`, NaN where an image is not scored.
    error_name: what `errors` measure, such as "landmark error".
    num_worst: how many of the images were chosen for their error.
    test_errors: `[M]`, `errors` of all M test images.
    appearance: `[K, 64, 64, 4]` uint8 RGBA: the mean of a part's pixels about its centre, over all test
      images; alpha is how often a pixel belongs to the part, 255 for the pixel that does most often.
    num_present: `[K]` test images on which a part has a pixel.
    names: of the N images; empty where they are not known.
    landmark_names: L; empty where they are not known.
    landmark_normalizer: config.data.landmark_normalizer of the evaluation, which may differ from the run's;
      "" in files of earlier versions.
  """

  indices: np.ndarray
  images: tuple[bytes, ...]
  labels: np.ndarray
  foreground: np.ndarray
  centers: np.ndarray
  landmarks: np.ndarray | None
  predicted: np.ndarray | None
  errors: np.ndarray
  error_name: str
  num_worst: int
  test_errors: np.ndarray
  appearance: np.ndarray
  num_present: np.ndarray
  names: tuple[str, ...] = ()
  landmark_names: tuple[str, ...] = ()
  landmark_normalizer: str = ""

  @property
  def num_test(self) -> int:
    """M, the images in the test split."""
    return len(self.test_errors)

  def name(self, i: int) -> str:
    """Returns the name of the kept image i, or its position in the test split."""
    return self.names[i] if self.names else str(self.indices[i])

  def save(self, path: str | pathlib.Path) -> None:
    """Writes an .npz, from which `load` makes the same gallery."""
    arrays = {name: value for name, value in vars(self).items() if value is not None}
    files = [np.frombuffer(file, np.uint8) for file in self.images]
    arrays["images"] = np.concatenate(files) if files else np.zeros(0, np.uint8)
    arrays["image_sizes"] = [len(file) for file in files]
    for name in ("names", "landmark_names"):
      arrays[name] = np.array(arrays[name], str)
    with replacing(path) as temporary, temporary.open("wb") as file:
      np.savez_compressed(file, **arrays)

  @classmethod
  def load(cls, path: str | pathlib.Path) -> "Gallery":
    """Reads what `save` wrote.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
      with np.load(io.BytesIO(as_path(path).read_bytes())) as arrays:
        values: dict[str, Any] = dict(arrays)
      ends = np.cumsum(values.pop("image_sizes"))
      values["images"] = tuple(part.tobytes() for part in np.split(values["images"], ends[:-1]))
      for name in ("names", "landmark_names"):
        values[name] = tuple(values[name].tolist())
      values = {"landmarks": None, "predicted": None, "landmark_normalizer": ""} | values
      values |= {name: str(values[name]) for name in ("error_name", "landmark_normalizer")}
      values["num_worst"] = int(values["num_worst"])
      return cls(**values)
    except FileNotFoundError as error:
      raise UserError(f"{path} is missing: evaluate the run again (--mode=eval)") from error
    except Exception as error:  # a damaged zip file raises errors of ten types
      raise UserError(
        f"{path} is damaged ({type(error).__name__}): evaluate the run again (--mode=eval)"
      ) from error


class GalleryBuilder:
  """Collects the batches of a test split; `build` chooses among them."""

  def __init__(self, num_parts: int) -> None:
    self._images: list[bytes] = []  # JPEG files
    self._labels: list[bytes] = []  # PNG files
    self._foreground: list[bytes] = []  # PNG files
    self._centers: list[np.ndarray] = []
    self._foreground_errors: list[float] = []
    self._appearance = _Appearance(num_parts)

  def add(
    self, images: np.ndarray, labels: np.ndarray, centers: np.ndarray, *, foreground: np.ndarray
  ) -> None:
    """Adds a batch.

    Args:
      images: `[B, H, W, 3]` uint8 RGB.
      labels: `[B, H, W]` integers, 0 .. K.
      centers: `[B, K, 2]` in [-1, 1].
      foreground: `[B, H, W]` bool, the true foreground.
    """
    self._appearance.add(images, labels, centers)
    for image, label_map, points, truth in zip(images, labels, centers, foreground, strict=True):
      small = _shrink(image, Image.Resampling.BOX)
      self._images.append(encoded(small, "JPEG", quality=_JPEG_QUALITY, subsampling=0))
      self._labels.append(_encoded_labels(label_map))
      self._foreground.append(_encoded_labels(truth))
      self._centers.append(np.asarray(points))
      union = np.sum((label_map > 0) | truth)
      overlap = np.sum((label_map > 0) & truth)
      self._foreground_errors.append(1 - overlap / union if union else np.nan)

  def build(
    self,
    *,
    errors: np.ndarray | None = None,
    landmarks: np.ndarray | None = None,
    predicted: np.ndarray | None = None,
    max_images: int = 60,
    max_worst: int = 24,
  ) -> Gallery:
    """Chooses evenly spaced images, which are the same for every run, and the worst of the others.

    Args:
      errors: `[M]` landmark errors of all M images added, NaN where not scored; None: the images are ranked
        by 1 − intersection over union of predicted and true foreground.
      landmarks: `[M, L, 2]` annotated landmarks, NaN where hidden, or None.
      predicted: `[M, L, 2]` predicted landmarks, NaN where there is no prediction, or None.
      max_images: the number of images to keep.
      max_worst: at most so many are kept for their error; images without an error are not.

    Returns:
      The gallery.
    """
    error_name = "1 − foreground IoU" if errors is None else LANDMARK_ERROR
    errors = np.asarray(self._foreground_errors if errors is None else errors, np.float64)
    indices, num_worst = _choose(errors, max_images=max_images, max_worst=max_worst)
    return Gallery(
      indices=indices,
      images=tuple(self._images[i] for i in indices),
      labels=_decoded(self._labels, indices),
      foreground=_decoded(self._foreground, indices) > 0,
      centers=np.stack([self._centers[i] for i in indices]),
      landmarks=None if landmarks is None else landmarks[indices],
      predicted=None if predicted is None else predicted[indices],
      errors=errors[indices],
      error_name=error_name,
      num_worst=num_worst,
      test_errors=errors,
      appearance=self._appearance.rgba(),
      num_present=self._appearance.num_present,
    )


class _Appearance:
  """The mean of each part's pixels about its centre, over images.

  For part k and offset d, with sums over images: coverage(d) = Σ m_k(c_k + d), colour(d) =
  Σ m_k(c_k + d) I(c_k + d) / coverage(d). m_k is 1 on the part's pixels and 0 elsewhere, also outside the
  image; c_k + d is rounded to pixels.
  """

  def __init__(self, num_parts: int) -> None:
    self._colors = np.zeros((num_parts, _WINDOW_SAMPLES, _WINDOW_SAMPLES, 3))
    self._coverage = np.zeros((num_parts, _WINDOW_SAMPLES, _WINDOW_SAMPLES))
    self.num_present = np.zeros(num_parts, np.int64)

  def add(self, images: np.ndarray, labels: np.ndarray, centers: np.ndarray) -> None:
    height, width = labels.shape[1:]
    offsets = ((np.arange(_WINDOW_SAMPLES) + 0.5) / _WINDOW_SAMPLES - 0.5) * _WINDOW * min(height, width)
    rows = np.arange(len(labels))[:, None, None]
    positions = pixel_positions(centers, height=height, width=width)[..., None] + offsets
    for part, (x, y) in enumerate(np.rint(positions).astype(int).transpose(1, 2, 0, 3)):
      inside = ((x >= 0) & (x < width))[:, None, :] & ((y >= 0) & (y < height))[:, :, None]
      pixels = (rows, np.clip(y, 0, height - 1)[:, :, None], np.clip(x, 0, width - 1)[:, None, :])
      mask = inside & (labels[pixels] == part + 1)
      self._coverage[part] += mask.sum(axis=0)
      self._colors[part] += np.where(mask[..., None], images[pixels], 0).sum(axis=0)
      self.num_present[part] += np.any(labels == part + 1, axis=(1, 2)).sum()

  def rgba(self) -> np.ndarray:
    colors = self._colors / np.maximum(self._coverage, 1)[..., None]
    most = np.maximum(self._coverage.max(axis=(1, 2), keepdims=True), 1)
    alpha = 255 * self._coverage / most
    return np.rint(np.concatenate([colors, alpha[..., None]], axis=-1)).astype(np.uint8)


def _choose(errors: np.ndarray, *, max_images: int, max_worst: int) -> tuple[np.ndarray, int]:
  """Returns the positions to keep, ascending, and how many of them are there for their error."""
  count = len(errors)
  if count <= max_images:
    return np.arange(count), 0
  # NaN sorts last, ties by position.
  ranked = np.argsort(-errors, kind="stable")[: np.isfinite(errors).sum()]
  wanted = max_images - min(max_worst, len(ranked))
  sample = np.arange(wanted) * count // wanted
  worst = ranked[~np.isin(ranked, sample)][: max_images - wanted]
  return np.sort(np.concatenate([worst, sample])), len(worst)


def _encoded_labels(labels: np.ndarray) -> bytes:
  """Returns the PNG of a label map, reduced like the pictures."""
  return encoded(_shrink(labels.astype(np.uint8), Image.Resampling.NEAREST), "PNG")


def _decoded(files: list[bytes], indices: np.ndarray) -> np.ndarray:
  return np.stack([np.asarray(Image.open(io.BytesIO(files[i]))) for i in indices])


def _shrink(array: np.ndarray, resampling: Image.Resampling) -> Image.Image:
  picture = Image.fromarray(array)
  picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), resampling, reducing_gap=None)
  return picture
