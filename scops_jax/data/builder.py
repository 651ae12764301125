"""The base of every collection's tfds builder: one schema, filters, and a rule for bad examples."""

import dataclasses
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from numpy.typing import NDArray

from scops_jax.data.image_files import decode_image, encode_png
from scops_jax.data.workers import num_workers
from scops_jax.errors import UserError, printable
from scops_jax.progress import Bar

EMPTY = 0.005  # share of an image; a mask that covers less is of no use
_CHUNK = 64  # examples held in memory while they are read by threads


class FilteredError(Exception):
  """An example that the collection's rules leave out; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Example:
  """An image and its annotations.

  Coordinates are in pixels: an integer is the centre of a pixel, (0, 0) that of the top left one.
  """

  name: str
  image: bytes  # an encoded RGB picture, PNG or JPEG
  landmarks: NDArray[np.float32]  # [L, 2], (x, y)
  visible: NDArray[np.bool_]  # [L]
  saliency: NDArray[np.uint8] | None = None  # [H, W], 0..255 for 0..1; None: every pixel is foreground
  parts: NDArray[np.uint8] | None = None  # [H, W], index into PART_NAMES; None: no ground truth
  box: NDArray[np.float32] | None = None  # [4], see `corner_box`; None: the whole image


class CollectionBuilder(  # type: ignore[call-arg]
  tfds.core.GeneratorBasedBuilder, skip_registration=True
):
  """Writes a collection as array_record, without TensorFlow.

  A subclass names its landmarks and parts and defines `variant`, `open_source`, `list_records` and
  `read_example`. tfds writes to a temporary folder and renames it, so a data set is complete or absent.
  """

  VERSION = tfds.core.Version("2.0.0")  # of the schema; data sets of another version are prepared again
  # "train": images to train the network on; "test"; and, unless these are the training images, "regression":
  # images to fit the landmark regression on.
  splits: ClassVar[tuple[str, ...]] = ("train", "test")
  # A subclass whose names depend on the config or on files sets them before it calls `__init__` here.
  landmark_names: tuple[str, ...] = ()
  part_names: tuple[str, ...] = ()  # index 0 is the background; empty: no ground-truth parts

  def __init__(self, config: ConfigDict, *, variant: str | None = None) -> None:
    """Opens the config's data set, or that of a variant, prepared or not."""
    self.settings = config
    self.counts: dict[str, Counter] = {split: Counter() for split in self.splits}
    self.skipped: list[str] = []
    self._digest, self._train_digest = hashlib.sha256(), hashlib.sha256()
    name = self.variant(config) if variant is None else variant
    super().__init__(
      data_dir=config.data.cache_dir, config=tfds.core.BuilderConfig(name=name, version=self.VERSION)
    )

  @classmethod
  def variant(cls, config: ConfigDict) -> str:
    """The data set's folder name: configs that ask for different data get different names."""
    raise TypeError(f"{cls.__name__} must define variant")

  def open_source(self) -> None:
    """Reads what all examples need; called once, before `list_records`. Its errors are never skipped."""

  def list_records(self, split: str) -> Sequence[Any]:
    """The argument of `read_example` for each image of a split, in a fixed order."""
    raise TypeError(f"{type(self).__name__} must define list_records")

  def read_example(self, record: Any) -> Example:
    """Reads an image and its annotations; called from several threads.

    Raises:
      FilteredError: the collection leaves the image out; the message is the reason.
      UserError, OSError, ValueError: a file or an annotation, named in the message, can't be read.
    """
    raise TypeError(f"{type(self).__name__} must define read_example")

  def _info(self) -> tfds.core.DatasetInfo:
    count = len(self.landmark_names)
    features = tfds.features.FeaturesDict(
      {
        "name": tfds.features.Text(),
        "image": tfds.features.Image(shape=(None, None, 3)),
        "saliency": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
        "landmarks": tfds.features.Tensor(shape=(count, 2), dtype=np.float32),
        "visible": tfds.features.Tensor(shape=(count,), dtype=np.bool_),
        "box": tfds.features.Tensor(shape=(4,), dtype=np.float32),
        "parts": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
      }
    )
    metadata = tfds.core.MetadataDict(
      landmark_names=list(self.landmark_names), part_names=list(self.part_names)
    )
    return self.dataset_info_from_configs(features=features, metadata=metadata, disable_shuffling=True)

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterable]:
    self.open_source()
    return {split: self._generate_examples(split) for split in self.splits}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    records, counts = self.list_records(split), self.counts[split]
    has_foreground, shown = False, np.zeros(len(self.landmark_names), np.bool_)
    progress = Bar(len(records), f"preparing {self.name} {split}")
    with ThreadPoolExecutor(num_workers(self.settings.data)) as threads, progress:
      for start in range(0, len(records), _CHUNK):
        for outcome in threads.map(self._try_example, records[start : start + _CHUNK]):
          progress.update()
          counts["read"] += 1
          if isinstance(outcome, FilteredError):
            counts[f"filtered: {outcome}"] += 1
          elif isinstance(outcome, Exception):
            reason = printable(str(outcome), 500)
            if self.settings.data.on_bad_example != "skip":
              raise UserError(
                f"collection {self.name}: {reason} "
                "(repair or remove the file, or set data.on_bad_example=skip)"
              ) from outcome
            self.skipped.append(reason)
            counts["skipped: can't be read"] += 1
          else:
            features, digests, foreground = outcome
            self._digest.update(digests[0])
            if split == "train":
              self._train_digest.update(digests[1])
            has_foreground |= foreground >= EMPTY
            shown |= features["visible"]
            yield counts["written"], features
            counts["written"] += 1
    if not counts["written"]:
      raise UserError(f"collection {self.name} has no image in its {split} split ({describe(counts)})")
    if not has_foreground:
      raise UserError(
        f"collection {self.name}: every mask of the {split} split is empty: 255 is the object and 0 the "
        "background, so masks of 0 and 1 must be scaled; or set data.saliency=ones or auto"
      )
    if self.landmark_names:
      self._check_landmarks(split, shown)
    self._record_metadata()

  def _try_example(self, record: Any) -> tuple[dict[str, Any], tuple[bytes, bytes], float] | Exception:
    try:
      return self._encode(self.read_example(record))
    except (FilteredError, UserError, OSError, ValueError) as error:
      return error

  def _encode(self, example: Example) -> tuple[dict[str, Any], tuple[bytes, bytes], float]:
    """Checks an example; returns its features, two digests, and the mean of its saliency.

    The first digest is of all its content, the second of what the network is trained on: name, image and
    saliency.
    """
    if printable(example.name, 1000) != example.name:
      raise ValueError(
        f"{example.name}: the file's name is not UTF-8, or has control or over 1000 characters: rename it"
      )
    pixels = decode_image(example.image, f"{example.name}: the image")
    height, width = pixels.shape[:2]
    if min(height, width) < 2:
      raise ValueError(f"{example.name}: the image has {width} × {height} pixels, expected at least 2 × 2")
    saliency = np.full((height, width), 255, np.uint8) if example.saliency is None else example.saliency
    parts = np.zeros((height, width), np.uint8) if example.parts is None else example.parts
    landmarks, visible = np.asarray(example.landmarks, np.float32), np.asarray(example.visible, np.bool_)
    box = np.asarray((0, 0, width - 1, height - 1) if example.box is None else example.box, np.float32)
    count = len(self.landmark_names)
    for what, array, shape in (
      ("saliency", saliency, (height, width)),
      ("parts", parts, (height, width)),
      ("landmarks", landmarks, (count, 2)),
      ("visible", visible, (count,)),
      ("box", box, (4,)),
    ):
      if array.shape != shape:
        raise ValueError(f"{example.name}: {what} has shape {array.shape}, expected {shape}")
    if not np.isfinite(landmarks).all():
      raise ValueError(f"{example.name}: a landmark is not a number")
    if not (np.isfinite(box).all() and (box[:2] <= box[2:]).all()):
      raise ValueError(f"{example.name}: the object's box {box.tolist()} is empty")
    inside = ((landmarks >= -0.5) & (landmarks <= (width - 0.5, height - 0.5))).all(axis=1)
    if visible.any() and not (inside & visible).any():
      raise ValueError(f"{example.name}: all landmarks lie outside the image of {width} × {height} pixels")
    features = {
      "name": example.name,
      "image": io.BytesIO(example.image),
      "saliency": io.BytesIO(encode_png(saliency)),
      "parts": io.BytesIO(encode_png(parts)),
      "landmarks": landmarks,
      "visible": visible,
      "box": box,
    }
    # The digest is of pixels, not of encoded files, because encoders differ between machines.
    digest = hashlib.sha256(example.name.encode())
    for array in (pixels, saliency):
      digest.update(array.tobytes())
    trained = digest.digest()
    for array in (parts, landmarks, visible, box):
      digest.update(array.tobytes())
    return features, (digest.digest(), trained), float(saliency.mean()) / 255

  def _check_landmarks(self, split: str, shown: NDArray[np.bool_]) -> None:
    """Raises UserError unless the landmarks that a split's images show, [L], can serve."""
    if not shown.any():
      raise UserError(
        f"collection {self.name}: no image of the {split} split shows a landmark: coordinates are in pixels, "
        "and a landmark outside its image is hidden"
      )

  def _record_metadata(self) -> None:
    """Stores in the data set the counts, why examples were skipped, and digests of its content."""
    self.info.metadata.update(
      counts={split: dict(counts) for split, counts in self.counts.items()},
      skipped=list(self.skipped),
      digest=self._digest.hexdigest()[:16],
      train_digest=self._train_digest.hexdigest()[:16],
    )


def describe(counts: dict[str, int]) -> str:
  """Counts as text: "6 read, 1 filtered: too small, 5 written"."""
  return ", ".join(f"{count} {what}" for what, count in counts.items()) or "0 read"
