"""Evaluation of a segmenter on a collection: landmark regression with its baselines, and part segmentation.

The networks come in as functions and the images as batches, so this module knows neither devices nor files.
Every image of the test split counts: the last batch's padding is marked by "valid" and dropped here.
"""

import io
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from scops_jax.data.pipeline import EVALUATION_FIELDS
from scops_jax.errors import UserError
from scops_jax.evaluation import factorization, segmentation_metrics
from scops_jax.evaluation.consistency import Consistency
from scops_jax.evaluation.landmark_regression import (
  LandmarkErrors,
  mean_shape_error,
  normalized_error,
  regress_landmarks,
)
from scops_jax.report.figures import pixel_positions
from scops_jax.report.gallery import Gallery, GalleryBuilder
from scops_jax.storage.files import replacing
from scops_jax.train_step import stream_key

Batch = Mapping[str, np.ndarray]
Predict = Callable[[Batch], Mapping[str, np.ndarray]]

_RIM = 0.7  # of the longest D·V, below which a position counts as the rim
# Points are in [-1, 1], so the edge of an image is 2 long.
_IMAGE_EDGE = 2.0
_WHOLE = 0.05  # half-image units from the frame within which a box is the whole image's: there are no boxes
_ERRORS = (
  "landmark_error_train",
  "landmark_error_test",
  "mean_shape_error_test",
  "dff_error_test",
  "landmark_errors_test",
)
# At landmarks: the likeliest channel, the likeliest part, and that at landmarks inside the object's box.
_KEYPOINTS = ("keypoint", "keypoint_fg", "keypoint_box")
_NORMALIZED = tuple(f"landmark_error_test_{unit}" for unit in ("eyes", "box_edge", "box_sides", "image"))
# Images whose predictions are kept for the figure.
FIGURE_IMAGES = 24


class Landmarks(NamedTuple):
  """One split's points, (x, y) in [-1, 1]."""

  centers: np.ndarray  # [N, K, 2] predicted part centres
  landmarks: np.ndarray  # [N, L, 2] annotated
  visible: np.ndarray  # [N, L] bool
  boxes: np.ndarray  # [N, 4] of the object, (x0, y0, x1, y1)


class Dff(NamedTuple):
  """The DFF baseline of a run: its part centres on both splits, and the part basis it starts SCOPS from."""

  part_basis: np.ndarray  # [K, C], for config.basis.initializer other than "normal"
  train_centers: np.ndarray  # [N, K, 2], of the regression's images
  test_centers: np.ndarray  # [M, K, 2]

  def save(self, path: pathlib.Path) -> None:
    """Writes an .npz."""
    with replacing(path) as temporary, temporary.open("wb") as file:
      np.savez(file, **self._asdict())

  @classmethod
  def load(cls, path: pathlib.Path) -> "Dff":
    """Reads what `save` wrote.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
      with np.load(io.BytesIO(path.read_bytes())) as arrays:
        return cls(**{name: arrays[name] for name in cls._fields})
    except FileNotFoundError as error:
      raise UserError(f"{path} is missing") from error
    except Exception as error:  # a damaged zip file raises errors of ten types
      raise UserError(f"{path} is damaged ({type(error).__name__})") from error


def fit_dff(
  features: Callable[[Batch], np.ndarray],
  *,
  train: Iterable[Batch],
  regression: Iterable[Batch],
  test: Iterable[Batch],
  config: ConfigDict,
) -> Dff:
  """Fits DFF to the first config.nmf.num_images training images; finds part centres on the other splits.

  Args:
    features: a batch → D·V `[B, h, w, C]`. It includes the saliency of test images, which SCOPS does not
      see: an advantage of the baseline.
    train: batches of the training images; only the first are read.
    regression: batches of the images that landmarks are regressed on.
    test: batches of the test images.
    config: the run's.

  Returns:
    The baseline.
  """
  fitted: list[np.ndarray] = []
  for batch in train:
    if sum(map(len, fitted)) >= config.nmf.num_images:
      break
    fitted.append(features(batch)[batch["valid"]])
  start = np.concatenate(fitted)[: config.nmf.num_images]
  basis = factorization.fit_dff(
    stream_key(config.seed, "nmf"),
    start,
    num_parts=config.num_parts,
    num_iterations=config.nmf.num_iterations,
  )
  # Where features have one length, D·V is short only at an object's soft rim, which shall be no cluster.
  rim = _RIM if config.semantic_assigned and config.reference_l2_normalize else factorization.BACKGROUND
  part_basis = basis
  if config.basis.initializer == "clusters":
    part_basis = factorization.cluster_basis(basis, start, background=rim)
  elif config.basis.initializer == "kmeans":
    part_basis = factorization.kmeans_basis(
      stream_key(config.seed, "kmeans"), start, num_parts=config.num_parts, background=rim
    )
  del fitted, start

  def centers(batches: Iterable[Batch]) -> np.ndarray:
    found = []
    for batch in batches:
      height, width = batch["image"].shape[1:3]
      values = features(batch)[batch["valid"]]
      maps = factorization.dff_maps(basis, values, height=height, width=width)
      found.append(np.asarray(factorization.map_centers(maps)))
    return np.concatenate(found)

  return Dff(np.asarray(part_basis), centers(regression), centers(test))


class Evaluation(NamedTuple):
  """What `evaluate` returns."""

  # The entries of evaluation.json but "step": errors are fractions of the normaliser; None where the
  # collection has no such ground truth.
  results: dict[str, Any]
  figure: dict[str, Any]  # the first test images: arguments of figures.part_figure
  gallery: Gallery


class _TestPredictions:
  """What is counted and kept of the test split, batch by batch."""

  def __init__(self, num_parts: int, num_classes: int) -> None:
    self._num_parts, self._num_classes = num_parts, num_classes
    self._tables: dict[str, np.ndarray] = {}  # of pixel counts, by what they compare with the labels
    self._images: list[np.ndarray] = []  # each image's table [K+1, 2] of labels and true foreground
    self._shown: list[Batch] = []
    self.gallery = GalleryBuilder(num_parts)
    self.consistency = Consistency(num_parts)

  def add(self, rows: Batch) -> Batch:
    """Counts a batch, and returns it."""
    labels, parts = rows["labels"], rows["parts"]
    # Where a collection has no ground-truth parts, its saliency is the foreground.
    foreground = parts > 0 if self._num_classes else rows["saliency"] >= 128
    self._images += [self._table(*pair, num_classes=2) for pair in zip(labels, foreground, strict=True)]
    if "crf_labels" in rows:
      self._count("foreground_crf", self._table(rows["crf_labels"], foreground, num_classes=2))
    if self._num_classes:
      self._count("parts", self._table(labels, parts, num_classes=self._num_classes))
    points = pixel_positions(rows["landmarks"], height=labels.shape[1], width=labels.shape[2])
    low, high = rows["box"][:, None, :2], rows["box"][:, None, 2:]
    boxed = rows["visible"] & ((rows["landmarks"] >= low) & (rows["landmarks"] <= high)).all(axis=-1)
    boxed &= _has_box(rows["box"])[:, None]
    for name, labelled, visible in (
      ("keypoint", labels, rows["visible"]),
      ("keypoint_fg", rows["likeliest_parts"], rows["visible"]),
      ("keypoint_box", rows["likeliest_parts"], boxed),
    ):
      table = segmentation_metrics.keypoint_table(labelled, points, visible, num_labels=self._num_parts + 1)
      self._count(name, table)
    if sum(len(shown["labels"]) for shown in self._shown) < FIGURE_IMAGES:
      self._shown.append({"images": rows["image"], "labels": labels, "centers": rows["centers"]})
    self.gallery.add(rows["image"], labels, rows["centers"], foreground=foreground)
    self.consistency.add(rows)
    return rows

  def _table(self, labels: np.ndarray, truth: np.ndarray, *, num_classes: int) -> np.ndarray:
    return segmentation_metrics.contingency(
      labels, truth, num_labels=self._num_parts + 1, num_classes=num_classes
    )

  def _count(self, name: str, table: np.ndarray) -> None:
    self._tables[name] = self._tables.get(name, 0) + table

  def measures(self) -> dict[str, Any]:
    """Returns the entries of evaluation.json; None where there is no such ground truth."""
    images = np.stack(self._images)
    refined, parts = self._tables.get("foreground_crf"), self._tables.get("parts")
    result: dict[str, Any] = {
      "foreground_iou": segmentation_metrics.foreground_iou(images.sum(axis=0)),
      "foreground_iou_mean": segmentation_metrics.mean_foreground_iou(images),
      "foreground_iou_crf": None if refined is None else segmentation_metrics.foreground_iou(refined),
      **dict.fromkeys(("nmi", "ari", "nmi_with_background", "ari_with_background")),
      **{f"{name}_{score}": None for name in _KEYPOINTS for score in ("nmi", "ari")},
      "part_purity": None if parts is None else segmentation_metrics.part_purity(parts),
      "part_area_fractions": segmentation_metrics.part_area_fractions(images.sum(axis=2)).tolist(),
    }
    if parts is not None:
      foreground = parts * (np.arange(self._num_classes) > 0)  # without the true background's pixels
      for suffix, table in (("", foreground), ("_with_background", parts)):
        result[f"nmi{suffix}"] = segmentation_metrics.normalized_mutual_information(table)
        result[f"ari{suffix}"] = segmentation_metrics.adjusted_rand_index(table)
    for name in _KEYPOINTS:
      if (table := self._tables[name]).any():
        result[f"{name}_nmi"] = segmentation_metrics.normalized_mutual_information(table)
        result[f"{name}_ari"] = segmentation_metrics.adjusted_rand_index(table)
    return result

  def figure(self) -> dict[str, Any]:
    """Returns the first images with their labels and centres."""
    names = ("images", "labels", "centers")
    return {name: np.concatenate([rows[name] for rows in self._shown])[:FIGURE_IMAGES] for name in names}


def evaluate(
  predict: Predict,
  *,
  regression: Iterable[Batch],
  test: Iterable[Batch],
  predict_refined: Predict | None = None,
  predict_centers: Predict | None = None,
  dff: Dff,
  num_classes: int,
  config: ConfigDict,
) -> Evaluation:
  """Measures the segmenter.

  Args:
    predict: a batch, whose "image" is uint8 `[B, H, W, 3]` and "saliency" uint8 `[B, H, W]`, → "labels"
      `[B, H, W]`, the likeliest channel, "likeliest_parts" `[B, H, W]`, 1 .. K, the same without the
      background, and "centers" `[B, K, 2]`. SCOPS takes the image alone.
    regression: batches of the images that landmarks are regressed on.
    test: batches of the test images.
    predict_refined: the same with "crf_labels" `[B, H, W]` too, for the test split; None: `predict`, and
      foreground_iou_crf is None.
    predict_centers: a batch → "centers" alone, for the regression, which needs no maps; None: `predict`.
    dff: the baseline of this run.
    num_classes: ground-truth part classes with the background; 0 if the collection has none.
    config: the run's.

  Returns:
    The measures, and test images to show.
  """
  predictions = _TestPredictions(config.num_parts, num_classes)

  train_points = _landmarks(_predicted(predict_centers or predict, regression))
  # Labels are scored on the test split alone, and a CRF is slow.
  test_points = _landmarks(map(predictions.add, _predicted(predict_refined or predict, test)))
  figure = predictions.figure()
  errors: dict[str, Any] = dict.fromkeys((*_ERRORS, *_NORMALIZED))
  image_errors = shown = predicted = None
  if train_points.visible.any():
    ours, errors = _landmark_errors(train_points, test_points, dff, config)
    image_errors = ours.test_errors
    shown = np.where(test_points.visible[..., None], test_points.landmarks, np.nan)
    predicted = ours.test_landmarks
    count = len(figure["images"])
    figure |= {"landmarks": shown[:count], "predicted": predicted[:count]}
  results = {
    **errors,
    **predictions.measures(),
    **predictions.consistency.measures(predict, batch_size=config.eval_batch_size),
    "num_train": len(train_points.centers),
    "num_test": len(test_points.centers),
  }
  gallery = predictions.gallery.build(errors=image_errors, landmarks=shown, predicted=predicted)
  return Evaluation(results, figure, gallery)


def _predicted(predict: Predict, batches: Iterable[Batch]) -> Iterator[Batch]:
  """Yields each batch's arrays and predictions, without the padding of the last batch."""
  for batch in batches:
    arrays = {**{name: batch[name] for name in EVALUATION_FIELDS}, **predict(batch)}
    yield {name: np.asarray(array)[batch["valid"]] for name, array in arrays.items()}


def _landmarks(batches: Iterable[Batch]) -> Landmarks:
  rows = ((batch["centers"], batch["landmarks"], batch["visible"], batch["box"]) for batch in batches)
  return Landmarks(*map(np.concatenate, zip(*rows, strict=True)))


def _has_box(boxes: np.ndarray) -> np.ndarray:
  """Returns which boxes `[N, 4]` are not the whole image, which stands for no box."""
  return (np.abs(boxes - np.array([-1, -1, 1, 1])) > _WHOLE).any(axis=1)


def _normalizer(split: Landmarks, unit: str) -> np.ndarray | None:
  """Returns the lengths `[N]` by config.data.landmark_normalizer; None for the distance between the eyes."""
  if unit == "image":
    return np.full(len(split.centers), _IMAGE_EDGE)
  return np.max(split.boxes[:, 2:] - split.boxes[:, :2], axis=1) if unit == "box" else None


def _landmark_errors(
  train: Landmarks, test: Landmarks, dff: Dff, config: ConfigDict
) -> tuple[LandmarkErrors, dict[str, Any]]:
  """Returns our regression, and the errors of it and of the baselines by name."""
  unit = config.data.landmark_normalizer
  options: dict[str, Any] = {"visible": (train.visible, test.visible)}
  if unit != "inter_ocular":
    options["normalizer"] = (_normalizer(train, unit), _normalizer(test, unit))
  elif not all(split.visible[:, :2].all(axis=1).any() for split in (train, test)):
    raise UserError(
      "data.landmark_normalizer=inter_ocular needs training and test images that show the first two "
      "landmarks together: take image or box"
    )
  ours = regress_landmarks(train.centers, train.landmarks, test.centers, test.landmarks, **options)
  theirs = regress_landmarks(dff.train_centers, train.landmarks, dff.test_centers, test.landmarks, **options)
  mean_shape = mean_shape_error(train.landmarks, test.landmarks, **options)
  each = [None if np.isnan(error) else float(error) for error in ours.test_landmark_errors]
  errors = dict(zip(_ERRORS, (ours.train, ours.test, mean_shape.test, theirs.test, each), strict=True))
  return ours, errors | _published_errors(ours.test_landmarks, test, eyes=unit == "inter_ocular")


def _published_errors(predicted: np.ndarray, test: Landmarks, *, eyes: bool) -> dict[str, float | None]:
  """Returns the test error in each unit that is in use, whichever the config takes.

  "eyes": the distance of the first two landmarks (Thewlis et al., ICCV 2017; SCOPS on faces); None unless
  that is the config's unit, since other objects have no eyes. "box_edge": the longer edge of the object's box
  (SCOPS on CUB). "box_sides": its width along x and its height along y (Choudhury et al., NeurIPS 2021;
  PDiscoNet, ICCV 2023). "image": the edge of the network's square (AutoLink, NeurIPS 2022). None too for
  boxes of a collection that has none.
  """
  sides = np.where(_has_box(test.boxes)[:, None], test.boxes[:, 2:] - test.boxes[:, :2], 0)
  between = np.linalg.norm(test.landmarks[:, :1] - test.landmarks[:, 1:2], axis=-1).reshape(-1, 1)
  lengths = (
    np.where(test.visible[:, :2].all(axis=1, keepdims=True), between, 0) if eyes else np.zeros_like(sides),
    sides.max(axis=1, keepdims=True),
    sides,
    np.full((len(sides), 1), _IMAGE_EDGE),
  )
  errors = (
    normalized_error(predicted, test.landmarks, visible=test.visible, lengths=each) for each in lengths
  )
  return dict(zip(_NORMALIZED, errors, strict=True))
