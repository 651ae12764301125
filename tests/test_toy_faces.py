import os
import pathlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from scops_jax.data.toy_faces.canvas import PART_NAMES, Canvas
from scops_jax.data.toy_faces.drawing import LANDMARK_NAMES, draw_eyes, draw_face
from scops_jax.data.toy_faces.hair import Hair
from scops_jax.data.toy_faces.processes import FaceProcesses
from scops_jax.data.toy_faces.shapes import Head

ROOT = pathlib.Path(__file__).parent.parent
COUNT = 48
EYES, NOSE, MOUTH = (PART_NAMES.index(name) for name in ("eyes", "nose", "mouth"))


@pytest.fixture(scope="module")
def faces():
  return [draw_face(np.random.default_rng((0, 0, index))) for index in range(COUNT)]


def test_shapes_and_types(faces):
  for face in faces:
    assert (face.image.shape, face.image.dtype) == ((128, 128, 3), np.uint8)
    assert (face.saliency.shape, face.saliency.dtype) == ((128, 128), np.uint8)
    assert (face.parts.shape, face.parts.dtype) == ((128, 128), np.uint8)
    assert (face.landmarks.shape, face.landmarks.dtype) == ((len(LANDMARK_NAMES), 2), np.float32)
    assert (face.visible.shape, face.visible.dtype) == ((len(LANDMARK_NAMES),), np.bool_)


def test_same_seed_same_bytes(faces):
  again = draw_face(np.random.default_rng((0, 0, 5)))
  for field in ("image", "saliency", "landmarks", "visible", "parts"):
    np.testing.assert_array_equal(getattr(again, field), getattr(faces[5], field))
  other = draw_face(np.random.default_rng((1, 0, 5)))
  assert not np.array_equal(other.image, faces[5].image)


def test_landmarks_lie_on_their_parts(faces):
  """Within three pixels of a visible landmark there is its part, unless dark glasses or hair cover it."""
  found = np.zeros((COUNT, 5), bool)
  for row, face in enumerate(faces):
    for column, part in enumerate((EYES, EYES, NOSE, MOUTH, MOUTH)):
      x, y = np.round(face.landmarks[column]).astype(int)
      window = face.parts[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4]
      found[row, column] = part in window or not face.visible[column]
  assert (found.mean(axis=0) >= 0.9).all()


def test_landmarks_are_centres_of_drawn_eyes():
  """An integer coordinate is a pixel's centre: a face looking straight ahead is symmetric about it."""
  head = Head((64.0, 64.0), 40.0, roll=0.0, yaw=0.0, pitch=0.0, top=1.2, chin=1.2, jaw=1.0)
  rng = np.random.default_rng(0)
  canvas = Canvas(Image.new("RGB", (128, 128)))
  centres = head.surface(draw_eyes(rng, canvas, head, (240, 200, 170), Hair.sample(rng)))
  columns = np.nonzero(canvas.parts() == EYES)[1]
  np.testing.assert_allclose(columns.mean(), 64.0, atol=0.3)
  np.testing.assert_allclose(centres.mean(axis=0)[0], 64.0, atol=1e-9)


def test_left_is_the_images_left(faces):
  """Roll is within ±30°, so the left eye and mouth corner stay at the image's left."""
  for face in faces:
    left_eye, right_eye, _, left_mouth, right_mouth = face.landmarks
    assert left_eye[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert left_mouth[1] + right_mouth[1] > left_eye[1] + right_eye[1]
    assert 12 < np.linalg.norm(right_eye - left_eye) < 40


def test_visible_means_inside_the_image(faces):
  for face in faces:
    inside = ((face.landmarks >= -0.5) & (face.landmarks < 127.5)).all(axis=-1)
    np.testing.assert_array_equal(face.visible, inside)


def test_saliency_is_soft_and_nearly_the_person(faces):
  person = np.stack([face.parts > 0 for face in faces])
  saliency = np.stack([face.saliency for face in faces]) / 255
  found = saliency > 0.5
  overlap = (person & found).sum() / (person | found).sum()
  assert 0.93 < overlap < 0.995  # wrong at the edge, but not by much
  assert 0.02 < ((saliency > 0.1) & (saliency < 0.9)).mean() < 0.2


def test_faces_vary(faces):
  """Every part occurs, colours and places differ."""
  shares = np.stack([np.bincount(face.parts.ravel(), minlength=len(PART_NAMES)) for face in faces])
  assert ((shares > 0).mean(axis=0) > [0.99, 0.85, 0.99, 0.99, 0.99, 0.99, 0.9, 0.8, 0.1]).all()
  assert np.stack([face.landmarks.mean(axis=0) for face in faces]).std(axis=0).min() > 8
  assert np.stack([face.image.mean(axis=(0, 1)) for face in faces]).std(axis=0).min() > 15
  angles = [np.degrees(np.arctan2(*(face.landmarks[1] - face.landmarks[0])[::-1])) for face in faces]
  assert np.std(angles) > 10


def test_other_sizes():
  face = draw_face(np.random.default_rng(0), size=64)
  assert face.image.shape == (64, 64, 3)
  assert face.visible.all()
  assert face.landmarks.max() < 64


SCRIPT = """
print("main")
from scops_jax.config import default_config
from scops_jax.data.collection import prepare_collection
config = default_config()
config.data.cache_dir = "{cache}"
config.toy_faces.num_train, config.toy_faces.num_test = 3, 1
print(prepare_collection(config).counts["train"]["written"])
"""


@pytest.mark.parametrize("caller", ["script", "stdin", "interactive", "command"])
def test_any_main_module_can_prepare_faces(caller, tmp_path):
  """A script without a main guard, a pipe, a notebook's interpreter: drawing never runs the caller again."""
  code = SCRIPT.format(cache=tmp_path / "cache")
  (tmp_path / "script.py").write_text(code)
  arguments = {
    "script": [str(tmp_path / "script.py")],
    "stdin": ["-"],
    "interactive": ["-q", "-i", "-"],
    "command": ["-c", code],
  }[caller]
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  result = subprocess.run(
    [sys.executable, *arguments],
    input=code,
    capture_output=True,
    text=True,
    check=False,
    cwd=tmp_path,
    env=environment,
  )
  assert result.stdout.split() == ["main", "3"], result.stderr


def test_modules_that_only_the_caller_sees_are_found(tmp_path):
  """The caller's sys.path holds for the processes that draw, and modules in its folder hide nothing."""
  (tmp_path / "queue.py").write_text("raise RuntimeError")
  code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.path.remove('')\n" + SCRIPT.format(
    cache=tmp_path
  )
  result = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
  )
  assert result.stdout.split() == ["main", "3"], result.stderr


def test_processes_draw_the_same_faces(faces):
  with FaceProcesses(2) as processes, ThreadPoolExecutor(4) as threads:
    drawn = list(threads.map(processes.draw, [(0, 0, index) for index in range(6)]))
  for face, expected in zip(drawn, faces, strict=False):
    np.testing.assert_array_equal(face.image, expected.image)


def test_a_process_that_ends_is_an_error():
  message = "a process that draws toy faces ended"
  with FaceProcesses(1) as processes, pytest.raises(RuntimeError, match=message):
    processes.draw(("no number",))
