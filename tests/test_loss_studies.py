"""The loss studies at a tiny size: every picture is written, and each loss does what its text says."""

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.losses import __main__ as command
from experiments.losses import pictures, studies
from experiments.losses.scene import NUM_PARTS, make_scene

EFFORT = command.Effort(steps=4, keep_every=2, moments=(0, 1, 2))


@pytest.fixture(scope="module")
def scene():
  return make_scene(16, reference_weights="random", reference_size=33)


@pytest.fixture(scope="module")
def results(scene, tmp_path_factory):
  out = tmp_path_factory.mktemp("losses")
  return out, command.run(out, scene, EFFORT)


def test_every_picture_is_written(results):
  out, _ = results
  studied = (*studies.WEIGHTS, *studies.BEYOND_THE_PAPER, "all")
  pictures_ = {f"{name}.{suffix}" for name in studied for suffix in ("png", "gif")}
  found = {path.name for path in out.iterdir()}
  assert found == pictures_ | {"failures.png", "weights.png", "results.json"}
  for name in pictures_:
    with Image.open(out / name) as picture:
      # Frames that look the same are written as one.
      assert getattr(picture, "n_frames", 1) in ((2, 3) if name.endswith("gif") else (1,))
      assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 3, name


def test_the_table_has_a_row_for_each_run(results):
  _, measured = results
  assert len(measured) == 1 + 5 + 1 + 10
  lines = command.table(measured).splitlines()
  assert len(lines) == 2 + len(measured)
  assert lines[0].startswith("| | concentration | equivariance")
  assert len({line.count("|") for line in lines}) == 1
  assert all(np.isfinite(list(values.values())).all() for values in measured.values())


@pytest.mark.parametrize("name", [*studies.WEIGHTS, *studies.BEYOND_THE_PAPER])
def test_each_loss_falls_when_it_is_alone(scene, name):
  start = studies.start_of(name, jax.random.key(0), scene)
  course = studies.optimise(start, scene, {name: 1.0}, steps=4, keep_every=2)
  losses = np.asarray(course.terms[name])
  assert losses.shape == (4,)
  assert losses[-1] < losses[0]
  assert course.variables.logits.shape == (3, 2, 16, 16, NUM_PARTS + 1)
  np.testing.assert_array_equal(course.variables.logits[0], start.logits)


def test_gradient_fields_are_red_where_the_loss_pushes_up():
  gradient = np.zeros((4, 6, 2))
  gradient[1, 1, 0], gradient[2, 2, 1] = -1.0, 1.0
  first, second = (field.astype(int) for field in pictures.gradient_field(gradient))
  assert (first[48, 32] @ [1, 0, -1]) > 50  # the cell (1, 1) of 4 × 6 in 128 × 128
  assert (second[80, 53] @ [1, 0, -1]) < -50
