"""Measures of part segmentations, from tables of pixel counts that may be added over batches."""

from typing import NamedTuple

import numpy as np


def contingency(labels: np.ndarray, truth: np.ndarray, *, num_labels: int, num_classes: int) -> np.ndarray:
  """Counts the pixels of every pair (predicted label, true class); tables of batches may be added.

  Args:
    labels: Integer or boolean array of any shape, 0 .. num_labels - 1.
    truth: Integer or boolean array of that shape, 0 .. num_classes - 1.
    num_labels: Rows of the table.
    num_classes: Columns of the table.

  Returns:
    `[num_labels, num_classes]` int64.

  Raises:
    ValueError: Shapes differ, or a label or class is out of range.
    TypeError: An array is of the wrong kind.
  """
  sides = (("labels", np.asarray(labels), num_labels), ("truth", np.asarray(truth), num_classes))
  for name, values, size in sides:
    if values.dtype.kind not in "biu":
      raise TypeError(f"{name} must be integers, got {values.dtype}")
    if values.size and (values.min() < 0 or values.max() >= size):
      raise ValueError(f"{name} must be in 0 .. {size - 1}, got {values.min()} .. {values.max()}")
  if sides[0][1].shape != sides[1][1].shape:
    raise ValueError(f"labels and truth must have one shape, got {sides[0][1].shape}, {sides[1][1].shape}")
  rows, columns = (values.ravel().astype(np.int64) for _, values, _ in sides)
  counts = np.bincount(rows * num_classes + columns, minlength=num_labels * num_classes)
  return counts.reshape(num_labels, num_classes)


def foreground_iou(table: np.ndarray) -> float:
  """Intersection over union of predicted and true foreground, pooled over all counted pixels.

  One ratio of sums over all images, as in PASCAL VOC (Everingham et al., IJCV 2015). Large objects weigh more
  than in a mean of one ratio per image.

  Args:
    table: `[K+1, classes]` counts of `contingency`; row 0 and column 0 are background, the others foreground.

  Returns:
    A fraction in [0, 1].

  Raises:
    ValueError: Neither the prediction nor the truth has a foreground pixel.
  """
  table = _checked_table(table)
  union = table.sum() - table[0, 0]
  if union == 0:
    raise ValueError("foreground IoU is undefined: no pixel is foreground in the prediction or the truth")
  return float(table[1:, 1:].sum() / union)


def mean_foreground_iou(tables: np.ndarray) -> float:
  """The same as the mean of one ratio per image, in which every object weighs the same (GANSeg, CVPR 2022).

  Args:
    tables: `[N, K+1, classes]`, a table of `foreground_iou` for each image. Images without a foreground pixel
      in the prediction and in the truth are left out.

  Returns:
    A fraction in [0, 1].

  Raises:
    ValueError: No image has a foreground pixel in the prediction or the truth.
  """
  unions = tables.sum(axis=(1, 2)) - tables[:, 0, 0]
  if not unions.any():
    raise ValueError("foreground IoU is undefined: no pixel is foreground in the prediction or the truth")
  return float((tables[:, 1:, 1:].sum(axis=(1, 2))[unions > 0] / unions[unions > 0]).mean())


def normalized_mutual_information(table: np.ndarray) -> float:
  """Mutual information of labels and classes over the mean of their entropies.

  NMI = 2 I(U; V) / (H(U) + H(V)): Strehl & Ghosh (JMLR 2002) with the arithmetic mean (Vinh et al., JMLR
  2010); Choudhury et al. (NeurIPS 2021) score unsupervised parts by it, on foreground pixels.

  Args:
    table: `[labels, classes]` counts of `contingency`.

  Returns:
    A fraction in [0, 1]; 1 when both sides are a single group, 0 when one of them is.

  Raises:
    ValueError: The table is empty, negative or not of rank 2.
  """
  joint = _checked_table(table) / np.sum(table)
  entropies = _entropy(joint.sum(axis=1)) + _entropy(joint.sum(axis=0))
  if entropies == 0:
    return 1.0
  # I(U; V) = H(U) + H(V) - H(U, V); rounding may leave it just below 0.
  return float(max(0.0, 2 * (entropies - _entropy(joint)) / entropies))


def adjusted_rand_index(table: np.ndarray) -> float:
  """Agreement of labels and classes on pairs of pixels, corrected for chance.

  With n pixels, counts n_ij, row sums a_i and column sums b_j, and C(n) = n (n - 1) / 2 (Hubert & Arabie,
  J. Classification 1985):
  ARI = (Σ C(n_ij) - E) / ((Σ C(a_i) + Σ C(b_j)) / 2 - E), E = Σ C(a_i) Σ C(b_j) / C(n).

  Args:
    table: `[labels, classes]` counts of `contingency`.

  Returns:
    At most 1; 0 on average for random labels; 1 when both sides are a single group or all pixels alone.

  Raises:
    ValueError: The table is empty, negative or not of rank 2.
  """
  counts = _checked_table(table).astype(np.float64)
  both, rows, columns = (_pairs(sums) for sums in (counts, counts.sum(axis=1), counts.sum(axis=0)))
  pairs = _pairs(counts.sum())
  expected = rows * columns / pairs if pairs else 0.0
  largest = (rows + columns) / 2
  return 1.0 if largest == expected else float((both - expected) / (largest - expected))


def part_purity(table: np.ndarray) -> list[float | None]:
  """Returns each part's share of pixels that belong to its most frequent class.

  The purity of a cluster (Manning, Raghavan & Schütze, Introduction to Information Retrieval, 2008, 16.3).
  Pixels of the background are a class too, so a part that spills over the object is less pure.

  Args:
    table: `[K+1, classes]` counts of `contingency`; row 0 is the predicted background.

  Returns:
    K fractions; None for a part without a pixel.
  """
  parts = _checked_table(table)[1:]
  return [float(row.max() / row.sum()) if row.any() else None for row in parts]


def part_area_fractions(counts: np.ndarray) -> np.ndarray:
  """Each part's share of the predicted foreground, averaged over images.

  Images without predicted foreground are left out.

  Args:
    counts: `[N, K+1]` pixel counts of each image, background first.

  Returns:
    `[K]` float64 that sum to 1, or zeros when no image has predicted foreground.

  Raises:
    ValueError: `counts` is empty, negative or not of rank 2.
  """
  parts = _checked_table(counts)[:, 1:]
  foreground = parts.sum(axis=1)
  parts, foreground = parts[foreground > 0], foreground[foreground > 0]
  if not len(parts):
    return np.zeros(parts.shape[1])
  return (parts / foreground[:, None]).mean(axis=0)


class KeypointMeasures(NamedTuple):
  """Agreement of the predicted channel at visible landmarks with the landmarks' indices."""

  keypoint_nmi: float
  keypoint_ari: float
  keypoint_fg_nmi: float
  keypoint_fg_ari: float


def keypoint_measures(probs: np.ndarray, points: np.ndarray, visible: np.ndarray) -> KeypointMeasures:
  """Scores the channels predicted at landmarks as a clustering of the landmarks, pooled over the images.

  Every visible landmark is a sample. Its class is its index, its label the likeliest channel at the nearest
  pixel: of all channels for keypoint_nmi and keypoint_ari, as PDiscoNet (van der Klis et al., ICCV 2023) and
  MPAE (ICCV 2025) score parts on the whole image, and of the parts alone for keypoint_fg_nmi and
  keypoint_fg_ari, after the foreground measures of Choudhury et al. (NeurIPS 2021), who take them inside the
  object's box. NMI has the arithmetic mean of the entropies; see `normalized_mutual_information` and
  `adjusted_rand_index`.

  `keypoint_table` and `keypoint_scores` do the same in batches, without the maps of all images.

  Args:
    probs: `[N, H, W, K+1]` floats, background first.
    points: `[N, L, 2]` (x, y) in pixels; an integer is the centre of a pixel.
    visible: `[N, L]` bool. Hidden landmarks and those outside the image are not counted.

  Returns:
    The four measures.

  Raises:
    ValueError: Shapes disagree, there is no part, or no landmark is counted.
    TypeError: `visible` is not bool.
  """
  probs = np.asarray(probs)
  if probs.ndim != 4 or probs.shape[3] < 2:
    raise ValueError(f"probs must be [N, H, W, K+1] with K >= 1, got shape {probs.shape}")
  tables = [
    keypoint_table(labels, points, visible, num_labels=probs.shape[3])
    for labels in (probs.argmax(axis=-1), probs[..., 1:].argmax(axis=-1) + 1)
  ]
  return keypoint_scores(*tables)


def keypoint_table(
  labels: np.ndarray, points: np.ndarray, visible: np.ndarray, *, num_labels: int
) -> np.ndarray:
  """Counts the pairs (label at the nearest pixel, landmark); tables of batches may be added.

  Args:
    labels: `[B, H, W]` integers, 0 .. num_labels - 1.
    points: `[B, L, 2]`, see `keypoint_measures`; a coordinate half way between two pixels is rounded up.
    visible: `[B, L]` bool.
    num_labels: K+1.

  Returns:
    `[num_labels, L]` int64.

  Raises:
    ValueError: Shapes disagree, or a label is out of range.
    TypeError: `visible` is not bool, or `labels` are not integers.
  """
  labels, points, visible = np.asarray(labels), np.asarray(points), np.asarray(visible)
  if visible.dtype != bool:
    raise TypeError(f"visible must be bool, got {visible.dtype}")
  if labels.ndim != 3 or visible.ndim != 2 or points.shape != (*visible.shape, 2):
    raise ValueError(
      "expected maps [B, H, W], points [B, L, 2] and visible [B, L], got shapes "
      f"{labels.shape}, {points.shape}, {visible.shape}"
    )
  if len(visible) != len(labels):
    raise ValueError(f"there are {len(labels)} maps, but points and visible of {len(visible)} images")
  image, landmark = np.nonzero(visible)
  x, y = np.floor(points[image, landmark] + 0.5).T
  inside = (x >= 0) & (x < labels.shape[2]) & (y >= 0) & (y < labels.shape[1])
  image, landmark = image[inside], landmark[inside]
  found = labels[image, y[inside].astype(int), x[inside].astype(int)]
  return contingency(found, landmark, num_labels=num_labels, num_classes=visible.shape[1])


def keypoint_scores(table: np.ndarray, foreground_table: np.ndarray) -> KeypointMeasures:
  """Returns the measures of tables of `keypoint_table`, of the likeliest channels and the likeliest parts.

  Raises:
    ValueError: No landmark is counted.
  """
  return KeypointMeasures(
    normalized_mutual_information(table),
    adjusted_rand_index(table),
    normalized_mutual_information(foreground_table),
    adjusted_rand_index(foreground_table),
  )


def _checked_table(table: np.ndarray) -> np.ndarray:
  table = np.asarray(table)
  if table.ndim != 2 or table.min(initial=0) < 0 or table.sum() == 0:
    raise ValueError(f"expected a table of pixel counts of rank 2, not all 0, got shape {table.shape}")
  return table


def _entropy(probabilities: np.ndarray) -> float:
  """Entropy in nats; 0 log 0 = 0."""
  positive = probabilities[probabilities > 0]
  return float(-(positive * np.log(positive)).sum())


def _pairs(counts: np.ndarray) -> float:
  """Number of pairs within groups of these sizes."""
  return float((counts * (counts - 1) / 2).sum())
