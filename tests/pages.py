"""A small report: six images of H ≠ W, three parts, three landmarks, all figures known by hand."""

import dataclasses

import numpy as np

from scops_jax.config import default_config
from scops_jax.report.gallery import GalleryBuilder

NUM_IMAGES, NUM_PARTS, HEIGHT, WIDTH = 6, 3, 40, 60
ERRORS = np.array([0.1, 0.4, np.nan, 0.2, 0.3, 0.05])
WORST_FIRST = ["1", "4", "3", "0", "5", "2"]
RESULTS = {
  "landmark_error_train": 0.1,
  "landmark_error_test": 0.21,
  "mean_shape_error_test": 0.6,
  "dff_error_test": 0.3,
  "landmark_errors_test": [0.2, 0.22, None],
  "foreground_iou": 0.9,
  "foreground_iou_mean": 0.88,
  "nmi": 0.5,
  "ari": None,
  "nmi_with_background": 0.6,
  "ari_with_background": None,
  "keypoint_nmi": 0.7,
  "keypoint_ari": 0.65,
  "keypoint_fg_nmi": 0.8,
  "keypoint_fg_ari": 0.75,
  "landmark_error_test_eyes": 0.21,
  "landmark_error_test_box_edge": 0.31,
  "landmark_error_test_box_sides": None,
  "landmark_error_test_image": 0.11,
  "warp_center_error": 1.25,
  "warp_label_agreement": 0.92,
  "warp_part_agreement": [0.9, 0.8, None],
  "clip_center_jitter": 0.5,
  "clip_label_flicker": 0.06,
  "part_area_fractions": [0.7, 0.295, 0.005],
  "num_train": 20,
  "num_test": NUM_IMAGES,
  "step": 30,
}
RECORDS = [
  {
    "step": step,
    "loss": 300.0 / step,
    "lr": 1e-3,
    "images_per_second": 5.0,
    **dict.fromkeys(
      ("concentration", "equivariance", "landmark_equivariance", "semantic_consistency", "orthonormality"),
      1.0 / step,
    ),
  }
  for step in (10, 20, 30)
]


def config(**overrides):
  result = default_config()
  result.update_from_flattened_dict({"num_parts": NUM_PARTS, "num_steps": 30} | overrides)
  return result


def scene():
  """Grey images; part 1 left, part 2 right, part 3 a small square in the first image only."""
  images = np.full((NUM_IMAGES, HEIGHT, WIDTH, 3), 128, np.uint8)
  labels = np.zeros((NUM_IMAGES, HEIGHT, WIDTH), np.uint8)
  labels[:, 10:30, 5:25] = 1
  labels[:, 10:30, 35:55] = 2
  labels[0, 32:38, 5:55] = 3
  centers = np.zeros((NUM_IMAGES, NUM_PARTS, 2))
  centers[:, 0] = (14.5 / 59 * 2 - 1, 0.0)
  centers[:, 1] = (44.5 / 59 * 2 - 1, 0.0)
  centers[:, 2] = (0.0, 34.5 / 39 * 2 - 1)
  return images, labels, centers


def gallery(*, annotated=True, named=True):
  images, labels, centers = scene()
  builder = GalleryBuilder(NUM_PARTS)
  builder.add(images, labels, centers, foreground=labels > 0)
  if not annotated:
    return with_names(builder.build()) if named else builder.build()
  landmarks = np.zeros((NUM_IMAGES, 3, 2))
  landmarks[0, 1] = np.nan
  predicted = np.full((NUM_IMAGES, 3, 2), 0.1)
  predicted[:, 2] = np.nan
  built = builder.build(errors=ERRORS, landmarks=landmarks, predicted=predicted)
  return with_names(built) if named else built


def with_names(built):
  names = tuple(f"folder/a long name of the image number {i}.jpg" for i in built.indices)
  return dataclasses.replace(built, names=names, landmark_names=("left_eye", "right_eye", "tail"))
