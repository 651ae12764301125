"""Evaluation of a segmenter on a collection: landmark regression with its baselines, and part segmentation.

The networks come in as functions and the images as batches, so this module knows neither devices nor files.
Every image of the test split counts: the last batch's padding is marked by "valid" and dropped here.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from scops_jax.errors import UserError
from scops_jax.evaluation import factorization, segmentation_metrics
from scops_jax.evaluation.landmark_regression import LandmarkErrors, mean_shape_error, regress_landmarks
from scops_jax.report.gallery import Gallery, GalleryBuilder
from scops_jax.storage.files import replacing
from scops_jax.train_step import stream_key

Batch = Mapping[str, np.ndarray]
Predict = Callable[[np.ndarray], Mapping[str, np.ndarray]]

# Points are in [-1, 1], so the edge of an image is 2 long.
_IMAGE_EDGE = 2.0
_ERRORS = ("landmark_error_train", "landmark_error_test", "mean_shape_error_test", "dff_error_test")
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
      with np.load(path) as arrays:
        return cls(**{name: arrays[name] for name in cls._fields})
    except (OSError, ValueError, KeyError) as error:
      raise UserError(f"the run's baseline can't be read ({error}): train in another --workdir") from error


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
  clustered = config.basis.initializer == "clusters"
  part_basis = factorization.cluster_basis(basis, start) if clustered else basis
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
  figure: dict[str, Any]  # the first test images: arguments of visualize.part_figure
  gallery: Gallery


class _TestPredictions:
  """Accumulates the segmentation measures over the batches of the test split."""

  def __init__(self, num_parts: int, num_classes: int) -> None:
    self._num_parts, self._num_classes = num_parts, num_classes
    self._foreground = np.zeros((num_parts + 1, 2), np.int64)
    self._foreground_crf: np.ndarray | None = None  # until there are refined labels
    self._classes = np.zeros((num_parts + 1, max(num_classes, 1)), np.int64)
    self._areas: list[np.ndarray] = []
    self._figure: list[tuple[np.ndarray, ...]] = []
    self.gallery = GalleryBuilder(num_parts)

  def add(self, rows: Batch) -> Batch:
    """Counts a batch, and returns it."""
    labels, parts = rows["labels"], rows["parts"]
    num_labels = self._num_parts + 1
    # Where a collection has no ground-truth parts, its saliency is the foreground.
    truth = parts > 0 if self._num_classes else rows["saliency"] >= 128
    self._foreground += segmentation_metrics.contingency(labels, truth, num_labels=num_labels, num_classes=2)
    if "crf_labels" in rows:
      table = segmentation_metrics.contingency(
        rows["crf_labels"], truth, num_labels=num_labels, num_classes=2
      )
      self._foreground_crf = table if self._foreground_crf is None else self._foreground_crf + table
    if self._num_classes:
      self._classes += segmentation_metrics.contingency(
        labels, parts, num_labels=num_labels, num_classes=self._num_classes, mask=truth
      )
    self._areas.append(segmentation_metrics.label_counts(labels, num_labels=num_labels))
    if sum(len(images) for images, _, _ in self._figure) < FIGURE_IMAGES:
      self._figure.append((rows["image"], labels, rows["centers"]))
    self.gallery.add(rows["image"], labels, rows["centers"], foreground=truth)
    return rows

  def measures(self) -> dict[str, Any]:
    known = self._num_classes > 0
    refined = self._foreground_crf
    areas = segmentation_metrics.part_area_fractions(np.concatenate(self._areas))
    return {
      "foreground_iou": segmentation_metrics.foreground_iou(self._foreground),
      "foreground_iou_crf": None if refined is None else segmentation_metrics.foreground_iou(refined),
      "nmi": segmentation_metrics.normalized_mutual_information(self._classes) if known else None,
      "ari": segmentation_metrics.adjusted_rand_index(self._classes) if known else None,
      "part_area_fractions": areas.tolist(),
    }

  def figure_arrays(self) -> dict[str, Any]:
    columns = zip(*self._figure, strict=True)
    stacked = [np.concatenate(column)[:FIGURE_IMAGES] for column in columns]
    return dict(zip(("images", "labels", "centers"), stacked, strict=True))


def evaluate(
  predict: Predict,
  *,
  regression: Iterable[Batch],
  test: Iterable[Batch],
  predict_refined: Predict | None = None,
  dff: Dff,
  num_classes: int,
  config: ConfigDict,
) -> Evaluation:
  """Measures the segmenter.

  Args:
    predict: images uint8 `[B, H, W, 3]` → "labels" `[B, H, W]` and "centers" `[B, K, 2]`.
    regression: batches of the images that landmarks are regressed on.
    test: batches of the test images.
    predict_refined: the same with "crf_labels" `[B, H, W]` too, for the test split; None: `predict`, and
      foreground_iou_crf is None.
    dff: the baseline of this run.
    num_classes: ground-truth part classes with the background; 0 if the collection has none.
    config: the run's.

  Returns:
    The measures, and test images to show.
  """
  predictions = _TestPredictions(config.num_parts, num_classes)

  train_points = _landmarks(_predicted(predict, regression))
  # Labels are scored on the test split alone, and a CRF is slow.
  test_points = _landmarks(map(predictions.add, _predicted(predict_refined or predict, test)))
  figure = predictions.figure_arrays()
  errors: dict[str, float | None] = dict.fromkeys(_ERRORS)
  if train_points.visible.any():
    ours, errors = _landmark_errors(train_points, test_points, dff, config)
    shown = np.where(test_points.visible[..., None], test_points.landmarks, np.nan)
    gallery = predictions.gallery.build(
      errors=ours.test_errors, landmarks=shown, predicted=ours.test_landmarks
    )
    count = len(figure["images"])
    figure |= {"landmarks": shown[:count], "predicted": ours.test_landmarks[:count]}
  else:
    gallery = predictions.gallery.build()
  results = {
    **errors,
    **predictions.measures(),
    "num_train": len(train_points.centers),
    "num_test": len(test_points.centers),
  }
  return Evaluation(results, figure, gallery)


def _predicted(predict: Predict, batches: Iterable[Batch]) -> Iterator[Batch]:
  """Yields each batch's arrays and predictions, without the padding of the last batch."""
  for batch in batches:
    arrays = {**batch, **predict(batch["image"])}
    yield {name: np.asarray(array)[batch["valid"]] for name, array in arrays.items()}


def _landmarks(batches: Iterable[Batch]) -> Landmarks:
  rows = ((batch["centers"], batch["landmarks"], batch["visible"], batch["box"]) for batch in batches)
  return Landmarks(*map(np.concatenate, zip(*rows, strict=True)))


def _landmark_errors(
  train: Landmarks, test: Landmarks, dff: Dff, config: ConfigDict
) -> tuple[LandmarkErrors, dict[str, float | None]]:
  """Returns our regression, and the errors of it and of the baselines by name.

  Landmarks that are visible in no image of the regression are not counted, and are NaN in ours.
  """
  shown = np.asarray(train.visible.any(axis=0))
  train, test = (
    split._replace(landmarks=split.landmarks[:, shown], visible=split.visible[:, shown])
    for split in (train, test)
  )
  options: dict[str, Any] = {"visible": (train.visible, test.visible)}
  if config.data.landmark_normalizer == "image":
    options["normalizer"] = tuple(np.full(len(split.centers), _IMAGE_EDGE) for split in (train, test))
  elif config.data.landmark_normalizer == "box":
    options["normalizer"] = tuple(
      np.max(split.boxes[:, 2:] - split.boxes[:, :2], axis=1) for split in (train, test)
    )
  elif not (len(shown) > 1 and shown[:2].all()):
    raise UserError(
      "data.landmark_normalizer=inter_ocular needs images of the regression that show the first two "
      "landmarks: take image or box"
    )
  ours = regress_landmarks(train.centers, train.landmarks, test.centers, test.landmarks, **options)
  theirs = regress_landmarks(dff.train_centers, train.landmarks, dff.test_centers, test.landmarks, **options)
  mean_shape = mean_shape_error(train.landmarks, test.landmarks, **options)
  predicted = np.full((len(test.centers), len(shown), 2), np.nan)
  predicted[:, shown] = ours.test_landmarks
  ours = dataclasses.replace(ours, test_landmarks=predicted)
  return ours, dict(zip(_ERRORS, (ours.train, ours.test, mean_shape.test, theirs.test), strict=True))
