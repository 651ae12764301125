"""Landmark error: how well a linear map of the part centres predicts annotated landmarks."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

# Deviations below this fraction of the values' size are rounding of a constant coordinate.
_CONSTANT = 1e-12


@dataclass(frozen=True)
class LandmarkErrors:
  """Result of `regress_landmarks`; errors are fractions of the normaliser, not per cent.

  Attributes:
    train: Mean error over the scored training images.
    test: Mean error over the scored test images.
    num_train: Training images scored.
    num_test: Test images scored.
    left_out_train: Training images not scored: their normaliser is 0 or unknown, or they show no landmark.
    left_out_test: Test images not scored, for the same reasons.
    test_landmarks: `[M, L, 2]` float64, the landmarks predicted for every test image, scored or not; NaN for
      a landmark that no training image shows.
    test_errors: `[M]` float64, every test image's error, NaN where it is not scored.
    test_landmark_errors: `[L]` float64, every landmark's mean distance over the normaliser, over the scored
      test images that show it; NaN where there is none.
  """

  train: float
  test: float
  num_train: int
  num_test: int
  left_out_train: int
  left_out_test: int
  test_landmarks: np.ndarray = field(repr=False, compare=False)
  test_errors: np.ndarray = field(repr=False, compare=False)
  test_landmark_errors: np.ndarray = field(repr=False, compare=False)


class _Split(NamedTuple):
  """The checked images of a split."""

  name: str  # in error messages
  centers: np.ndarray  # [N, 2K]
  landmarks: np.ndarray  # [N, L, 2], 0 where hidden
  visible: np.ndarray  # [N, L] bool
  lengths: np.ndarray  # [N] normalisers, 0 where unknown


def regress_landmarks(
  train_pred: np.ndarray,
  train_gt: np.ndarray,
  test_pred: np.ndarray,
  test_gt: np.ndarray,
  *,
  visible: tuple[np.ndarray, np.ndarray] | None = None,
  normalizer: tuple[np.ndarray, np.ndarray] | None = None,
) -> LandmarkErrors:
  """Fits landmarks linearly to part centres on the training images and scores the fit on both splits.

  Coordinates are standardised by the mean and the population deviation of the training images (a deviation
  of 0 counts as 1). Y = X M is solved by least squares without intercept, in the minimum-norm sense if it is
  singular, and predictions are mapped back. The error of an image is the mean distance between predicted and
  annotated landmarks over the normaliser of the image; the error of a split is the mean over its images
  (section 4.1 of the paper, following Thewlis et al., ICCV 2017). All in float64.

  Each landmark is fitted to the training images that show it, and the error of an image is a mean over the
  landmarks it shows; coordinates of hidden landmarks are not read. A landmark that no training image shows is
  predicted as NaN and not counted. An image without a positive normaliser or without a landmark to count is
  not scored, and the result counts such images.

  Args:
    train_pred: `[N, K, 2]` part centres, in any affine frame, pixels or [-1, 1].
    train_gt: `[N, L, 2]` landmarks in a unit that is the same along x and y, such as pixels.
    test_pred: `[M, K, 2]`.
    test_gt: `[M, L, 2]`.
    visible: Boolean `[N, L]` and `[M, L]`; None: every landmark is visible.
    normalizer: `[N]` and `[M]` lengths in the landmarks' unit; None: the distance between the first two
      landmarks (the eyes), unknown where one of them is hidden.

  Returns:
    The errors, the numbers of images behind them, and the test images' predicted landmarks and errors.

  Raises:
    ValueError: Shapes disagree, a value is not finite, a length is negative, or no image of a split can be
      scored.

  Differs from the release: an image whose eyes coincide is left out of the mean; the release counts it with
  an error of 0. With Z such images of N, the release's error is ours times (N - Z) / N.
  """
  shown, lengths = visible or (None, None), normalizer or (None, None)
  train = _checked("train", train_pred, train_gt, visible=shown[0], normalizer=lengths[0])
  test = _checked("test", test_pred, test_gt, visible=shown[1], normalizer=lengths[1])
  points, test_points = ((len(split.centers[0]) // 2, len(split.landmarks[0])) for split in (train, test))
  if points != test_points:
    raise ValueError(
      "train and test must have the same numbers of part centres and landmarks, got "
      f"{points[0]} and {points[1]} against {test_points[0]} and {test_points[1]}"
    )
  fitted = train.visible.any(axis=0)
  train, test = (split._replace(visible=split.visible & fitted) for split in (train, test))
  predicted, test_predicted = _fit_and_predict(train, test)
  errors, test_errors = _image_errors(train, predicted), _image_errors(test, test_predicted)
  scored, test_scored = ~np.isnan(errors), ~np.isnan(test_errors)
  return LandmarkErrors(
    train=float(errors[scored].mean()),
    test=float(test_errors[test_scored].mean()),
    num_train=int(scored.sum()),
    num_test=int(test_scored.sum()),
    left_out_train=int((~scored).sum()),
    left_out_test=int((~test_scored).sum()),
    test_landmarks=test_predicted,
    test_errors=test_errors,
    test_landmark_errors=_landmark_errors(test, test_predicted),
  )


def normalized_error(
  predicted: np.ndarray, landmarks: np.ndarray, *, visible: np.ndarray, lengths: np.ndarray
) -> float | None:
  """Returns the error of predicted landmarks in units of one length, or of one along x and one along y.

  The mean over images of the mean over an image's visible landmarks of ‖(p - g) / s‖. Images without a
  positive length or a visible landmark are left out, and so are landmarks without a prediction.

  Args:
    predicted: p `[N, L, 2]`, NaN where there is no prediction.
    landmarks: g `[N, L, 2]`.
    visible: `[N, L]` bool.
    lengths: s, `[N, 1]` or `[N, 2]` (along x, along y), in the landmarks' unit.

  Returns:
    A fraction; None if no image is left.
  """
  visible = visible & np.isfinite(predicted).all(axis=-1)
  scored = visible.any(axis=1) & (lengths > 0).all(axis=1)
  if not scored.any():
    return None
  offsets = np.where(visible[..., None], predicted - landmarks, 0)[scored] / lengths[scored, None]
  return float(np.linalg.norm(offsets, axis=-1).mean(axis=1, where=visible[scored]).mean())


def mean_shape_error(
  train_gt: np.ndarray,
  test_gt: np.ndarray,
  *,
  visible: tuple[np.ndarray, np.ndarray] | None = None,
  normalizer: tuple[np.ndarray, np.ndarray] | None = None,
) -> LandmarkErrors:
  """Scores the mean of the training landmarks, a baseline that does not look at the image.

  It is `regress_landmarks` from one constant part centre; see there for the arguments, the result and what
  raises.
  """
  train, test = (np.zeros((len(landmarks), 1, 2)) for landmarks in (train_gt, test_gt))
  return regress_landmarks(train, train_gt, test, test_gt, visible=visible, normalizer=normalizer)


def _checked(
  split: str,
  pred: np.ndarray,
  gt: np.ndarray,
  *,
  visible: np.ndarray | None,
  normalizer: np.ndarray | None,
) -> _Split:
  pred, gt = np.asarray(pred, np.float64), np.asarray(gt, np.float64)
  for name, points in ((f"{split}_pred", pred), (f"{split}_gt", gt)):
    if points.ndim != 3 or points.shape[2] != 2 or 0 in points.shape:
      raise ValueError(f"{name} must be [N, points, 2] with at least one image and point, got {points.shape}")
  if len(pred) != len(gt):
    raise ValueError(f"{split}_pred has {len(pred)} images but {split}_gt has {len(gt)}")
  visible = np.ones(gt.shape[:2], bool) if visible is None else np.asarray(visible)
  if visible.shape != gt.shape[:2] or visible.dtype != bool:
    raise ValueError(f"visible of {split} must be bool {gt.shape[:2]}, got {visible.dtype} {visible.shape}")
  gt = np.where(visible[..., None], gt, 0.0)
  for name, points in ((f"{split}_pred", pred), (f"{split}_gt", gt)):
    bad = np.flatnonzero(~np.isfinite(points).all(axis=(1, 2)))
    if bad.size:
      raise ValueError(f"{name} has a value that is not finite in {bad.size} images, first {bad[0]}")
  if normalizer is None:
    if gt.shape[1] < 2:
      raise ValueError("one landmark has no inter-ocular distance: give normalizer=")
    eyes = np.linalg.norm(gt[:, 0] - gt[:, 1], axis=-1)
    lengths = np.where(visible[:, :2].all(axis=1), eyes, 0.0)
  else:
    lengths = np.asarray(normalizer, np.float64)
  if lengths.shape != (len(gt),) or not (np.isfinite(lengths) & (lengths >= 0)).all():
    raise ValueError(
      f"normalizer of {split} must be {len(gt)} finite lengths >= 0, got shape {lengths.shape}, "
      f"minimum {lengths.min(initial=np.inf)}"
    )
  return _Split(split, pred.reshape(len(pred), -1), gt, visible, lengths)


def _fit_and_predict(train: _Split, test: _Split) -> tuple[np.ndarray, ...]:
  """Returns the predicted landmarks `[N, L, 2]` and `[M, L, 2]` of both splits."""
  predictions = tuple(np.full_like(split.landmarks, np.nan) for split in (train, test))
  for landmark in np.flatnonzero(train.visible.any(axis=0)):
    rows = train.visible[:, landmark]
    x, y = train.centers[rows], train.landmarks[rows, landmark]
    x_mean, x_scale = _mean_and_deviation(x)
    y_mean, y_scale = _mean_and_deviation(y)
    matrix = np.linalg.lstsq((x - x_mean) / x_scale, (y - y_mean) / y_scale, rcond=None)[0]
    for split, predicted in zip((train, test), predictions, strict=True):
      predicted[:, landmark] = (split.centers - x_mean) / x_scale @ matrix * y_scale + y_mean
  return predictions


def _mean_and_deviation(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the mean and the population deviation `[D]` of `[N, D]`, 1 where a column is constant."""
  mean = values.mean(axis=0)
  deviation = values.std(axis=0)
  return mean, np.where(deviation > _CONSTANT * np.abs(values).max(axis=0), deviation, 1.0)


def _image_errors(split: _Split, predicted: np.ndarray) -> np.ndarray:
  """Returns each image's error `[N]`, NaN where it is not scored."""
  scored = (split.lengths > 0) & split.visible.any(axis=1)
  if not scored.any():
    raise ValueError(f"no {split.name} image has both a positive normaliser and a visible landmark")
  distances = np.linalg.norm(predicted - split.landmarks, axis=-1)[scored]
  errors = np.full(len(scored), np.nan)
  errors[scored] = distances.mean(axis=1, where=split.visible[scored]) / split.lengths[scored]
  return errors


def _landmark_errors(split: _Split, predicted: np.ndarray) -> np.ndarray:
  """Returns each landmark's error `[L]`, NaN where no scored image shows it."""
  scored = split.lengths > 0
  shown = split.visible[scored]
  distances = np.linalg.norm(predicted - split.landmarks, axis=-1)[scored] / split.lengths[scored, None]
  return np.where(shown, distances, 0).sum(axis=0) / np.where(shown.any(axis=0), shown.sum(axis=0), np.nan)
