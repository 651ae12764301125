"""Landmark error: how well a linear map of the part centres predicts annotated landmarks."""

from dataclasses import dataclass, field

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
    test_landmarks: `[M, L, 2]` float64, the landmarks predicted for every test image, scored or not.
    test_errors: `[M]` float64, every test image's error, NaN where it is not scored.
  """

  train: float
  test: float
  num_train: int
  num_test: int
  left_out_train: int
  left_out_test: int
  test_landmarks: np.ndarray = field(repr=False, compare=False)
  test_errors: np.ndarray = field(repr=False, compare=False)


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
  landmarks it shows; coordinates of hidden landmarks are not read. An image without a positive normaliser or
  without a visible landmark is not scored, and the result counts such images.

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
    ValueError: Shapes disagree, a value is not finite, a length is negative, no training image shows some
      landmark, or no image of a split can be scored.

  Differs from the release: an image whose eyes coincide is left out of the mean; the release counts it with
  an error of 0. With Z such images of N, the release's error is ours times (N - Z) / N.
  """
  splits = (("train", train_pred, train_gt), ("test", test_pred, test_gt))
  (x, y, shown), (test_x, test_y, test_shown) = (
    _checked(name, pred, gt, None if visible is None else visible[i])
    for i, (name, pred, gt) in enumerate(splits)
  )
  if x.shape[1] != test_x.shape[1] or y.shape[1] != test_y.shape[1]:
    raise ValueError(
      "train and test must have the same numbers of part centres and landmarks, got "
      f"{x.shape[1] // 2} and {y.shape[1]} against {test_x.shape[1] // 2} and {test_y.shape[1]}"
    )
  predicted, test_predicted = _fit_and_predict(x, y, shown, test_x)
  lengths = [
    _lengths(name, gt, mask, None if normalizer is None else normalizer[i])
    for i, (name, gt, mask) in enumerate((("train", y, shown), ("test", test_y, test_shown)))
  ]
  train_errors = _image_errors("train", predicted, y, shown, lengths[0])
  test_errors = _image_errors("test", test_predicted, test_y, test_shown, lengths[1])
  scored_train, scored_test = ~np.isnan(train_errors), ~np.isnan(test_errors)
  return LandmarkErrors(
    train=float(train_errors[scored_train].mean()),
    test=float(test_errors[scored_test].mean()),
    num_train=int(scored_train.sum()),
    num_test=int(scored_test.sum()),
    left_out_train=int((~scored_train).sum()),
    left_out_test=int((~scored_test).sum()),
    test_landmarks=test_predicted,
    test_errors=test_errors,
  )


def mean_shape_error(
  train_gt: np.ndarray,
  test_gt: np.ndarray,
  *,
  visible: tuple[np.ndarray, np.ndarray] | None = None,
  normalizer: tuple[np.ndarray, np.ndarray] | None = None,
) -> LandmarkErrors:
  """Scores a baseline that does not look at the image: the mean of the training landmarks.

  It is `regress_landmarks` from one constant part centre.

  Args:
    train_gt: `[N, L, 2]` landmarks, see `regress_landmarks`.
    test_gt: `[M, L, 2]`.
    visible: As for `regress_landmarks`.
    normalizer: As for `regress_landmarks`.

  Returns:
    As `regress_landmarks`.

  Raises:
    ValueError: As `regress_landmarks`.
  """
  return regress_landmarks(
    np.zeros((len(train_gt), 1, 2)),
    train_gt,
    np.zeros((len(test_gt), 1, 2)),
    test_gt,
    visible=visible,
    normalizer=normalizer,
  )


def _checked(
  split: str, pred: np.ndarray, gt: np.ndarray, visible: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns predictions `[N, 2K]`, landmarks `[N, L, 2]` (0 where hidden) and visibility `[N, L]`."""
  pred = np.asarray(pred, np.float64)
  gt = np.asarray(gt, np.float64)
  for name, points in ((f"{split}_pred", pred), (f"{split}_gt", gt)):
    if points.ndim != 3 or points.shape[2] != 2 or 0 in points.shape:
      raise ValueError(f"{name} must be [N, points, 2] with at least one image and point, got {points.shape}")
  if len(pred) != len(gt):
    raise ValueError(f"{split}_pred has {len(pred)} images but {split}_gt has {len(gt)}")
  if visible is None:
    visible = np.ones(gt.shape[:2], bool)
  visible = np.asarray(visible)
  if visible.shape != gt.shape[:2] or visible.dtype != bool:
    raise ValueError(f"visible of {split} must be bool {gt.shape[:2]}, got {visible.dtype} {visible.shape}")
  gt = np.where(visible[..., None], gt, 0.0)
  for name, points in ((f"{split}_pred", pred), (f"{split}_gt", gt)):
    bad = np.flatnonzero(~np.isfinite(points).all(axis=(1, 2)))
    if bad.size:
      raise ValueError(f"{name} has a value that is not finite in {bad.size} images, first {bad[0]}")
  return pred.reshape(len(pred), -1), gt, visible


def _fit_and_predict(
  x: np.ndarray, y: np.ndarray, visible: np.ndarray, test_x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the predicted landmarks `[N, L, 2]` and `[M, L, 2]` of both splits."""
  missing = np.flatnonzero(~visible.any(axis=0))
  if missing.size:
    raise ValueError(f"no training image shows landmarks {missing.tolist()}: nothing to fit them to")
  predicted = np.empty_like(y)
  test_predicted = np.empty((len(test_x), *y.shape[1:]))
  for landmark in range(y.shape[1]):
    rows = visible[:, landmark]
    x_mean, x_scale = _mean_and_deviation(x[rows])
    y_mean, y_scale = _mean_and_deviation(y[rows, landmark])
    standard_y = (y[rows, landmark] - y_mean) / y_scale
    matrix = np.linalg.lstsq((x[rows] - x_mean) / x_scale, standard_y, rcond=None)[0]
    predicted[:, landmark] = (x - x_mean) / x_scale @ matrix * y_scale + y_mean
    test_predicted[:, landmark] = (test_x - x_mean) / x_scale @ matrix * y_scale + y_mean
  return predicted, test_predicted


def _mean_and_deviation(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the mean and the population deviation `[D]` of `[N, D]`, 1 where a column is constant."""
  mean = values.mean(axis=0)
  deviation = values.std(axis=0)
  return mean, np.where(deviation > _CONSTANT * np.abs(values).max(axis=0), deviation, 1.0)


def _lengths(split: str, gt: np.ndarray, visible: np.ndarray, normalizer: np.ndarray | None) -> np.ndarray:
  """Returns each image's normaliser `[N]`, 0 where it is unknown."""
  if normalizer is None:
    if gt.shape[1] < 2:
      raise ValueError("one landmark has no inter-ocular distance: give normalizer=")
    eyes = np.linalg.norm(gt[:, 0] - gt[:, 1], axis=-1)
    return np.where(visible[:, :2].all(axis=1), eyes, 0.0)
  normalizer = np.asarray(normalizer, np.float64)
  if normalizer.shape != (len(gt),) or not (np.isfinite(normalizer) & (normalizer >= 0)).all():
    raise ValueError(
      f"normalizer of {split} must be {len(gt)} finite lengths >= 0, got shape {normalizer.shape}, "
      f"minimum {normalizer.min(initial=np.inf)}"
    )
  return normalizer


def _image_errors(
  split: str, predicted: np.ndarray, gt: np.ndarray, visible: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
  """Returns each image's error `[N]`, NaN where it is not scored."""
  scored = (lengths > 0) & visible.any(axis=1)
  if not scored.any():
    raise ValueError(f"no {split} image has both a positive normaliser and a visible landmark")
  distances = np.linalg.norm(predicted - gt, axis=-1)[scored]
  errors = np.full(len(gt), np.nan)
  errors[scored] = distances.mean(axis=1, where=visible[scored]) / lengths[scored]
  return errors
