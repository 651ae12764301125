"""A run on each published collection in miniature: prepared, trained for two steps, evaluated."""

import pytest

from scops_jax import train
from scops_jax.runs import setup
from tests import tiny
from tests.miniatures import aflw, celeba_wild, cub_parts, pascal_parts

# Measures that need ground truth.
PARTS = {"nmi", "ari", "nmi_with_background", "ari_with_background", "part_purity"}
LANDMARKS = {
  "landmark_error_train",
  "landmark_error_test",
  "mean_shape_error_test",
  "dff_error_test",
  "landmark_errors_test",
  "keypoint_nmi",
  "keypoint_ari",
  "keypoint_fg_nmi",
  "keypoint_fg_ari",
  "keypoint_box_nmi",
  "keypoint_box_ari",
  "landmark_error_test_eyes",
  "landmark_error_test_box_edge",
  "landmark_error_test_box_sides",
  "landmark_error_test_image",
}
EYES = {"landmark_error_test_eyes"}
# Collection: the writer of its miniature, what its config needs, images of the regression and of the test,
# what is null in its evaluation.json.
COLLECTIONS = {
  "aflw": (aflw.write, {}, (4, 3), PARTS),
  "celeba_wild": (celeba_wild.write, {}, (2, 2), PARTS),
  "cub_parts": (cub_parts.write, {"data.landmark_normalizer": "box"}, (3, 2), PARTS | EYES),
  "pascal_parts": (pascal_parts.write, {"pascal.category": "horse"}, (4, 3), LANDMARKS),
}


pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.mark.parametrize("name", COLLECTIONS)
def test_a_collection_with_faults_trains_and_evaluates(name, tmp_path, monkeypatch):
  write, settings, (num_train, num_test), unknown = COLLECTIONS[name]
  write(tmp_path / "published")
  monkeypatch.setattr(setup, "create_networks", lambda config: tiny.networks())
  config = tiny.config(
    **{
      "num_steps": 2,
      # The reference sees 4 × 4 cells: not only the corners, which are background.
      "image_size": 32,
      "reference_image_size": 32,
      "segmenter_weights": "random",
      "reference_weights": "random",
      "nmf.num_images": 4,
      "nmf.num_iterations": 2,
      "data.name": name,
      "data.dir": str(tmp_path / "published"),
      "data.cache_dir": str(tmp_path / "cache"),
      "data.on_bad_example": "skip",
    }
    | settings
  )
  results = train.train_and_evaluate(config, tmp_path / "run")
  assert (results["num_train"], results["num_test"], results["step"]) == (num_train, num_test, 2)
  assert {measure for measure, value in results.items() if value is None} == unknown
  assert unknown == LANDMARKS or results["landmark_error_test"] > 0
