"""What the demo's page shows, without the page: reading photographs, drawing, packing."""

import csv
import io
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from scops_jax.demo import photos
from scops_jax.demo.photos import Look, Network, Photo, draw, open_photos, pack
from scops_jax.prediction.model_file import write_model
from tests import tiny_run


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
  path = tmp_path_factory.mktemp("model") / "tiny.scops"
  write_model(tiny_run.efficientnet_segmenter()._replace(part_names=("head", "body", "tail")), path)
  return [Network(path, "first"), Network(path, "second")]


def picture(height=410, width=420):
  rng = np.random.default_rng(0)
  blocks = rng.integers(0, 256, (height // 10, width // 10, 3)).astype(np.uint8)
  return Image.fromarray(np.kron(blocks, np.ones((10, 10, 1), np.uint8)))


def test_photos_that_can_not_be_read_are_named(tmp_path, monkeypatch):
  picture().save(tmp_path / "a.png")
  (tmp_path / "b.jpg").write_text("no image")
  picture(100, 2000).save(tmp_path / "c.png")
  found, problems = open_photos([str(tmp_path / name) for name in ("a.png", "b.jpg", "c.png")])
  assert [(photo.name, photo.image.size) for photo in found] == [("a.png", (420, 410)), ("c.png", (1600, 80))]
  assert len(problems) == 1
  assert problems[0].startswith("b.jpg is not")
  monkeypatch.setattr(photos, "MAX_PHOTOS", 2)
  assert open_photos([str(tmp_path / "a.png")] * 5)[1] == [
    "3 photos are left out: the page shows 2 at a time"
  ]


def test_parts_are_switched_and_maps_found_once(networks, monkeypatch):
  photo = Photo("a.png", picture())
  (none,) = draw(networks[0], [photo], Look(shown=[], legend=False))
  np.testing.assert_array_equal(np.asarray(none), np.asarray(picture()))
  calls = []
  monkeypatch.setattr(photos.Predictor, "find_maps", lambda self, images: calls.append(images))
  (every,) = draw(networks[0], [photo], Look(legend=False))
  # 9 is a part that only the other network may have.
  (same,) = draw(networks[0], [photo], Look(shown=[1, 2, 3, 9], legend=False))
  assert calls == []
  np.testing.assert_array_equal(np.asarray(every), np.asarray(same))
  assert (np.asarray(every) != np.asarray(none)).any()


def test_the_packed_results(networks):
  data = pack(networks, [Photo("a.png", picture()), Photo("a.png", picture())], Look())
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    names = archive.namelist()
    stems = ("01_a", "02_a")
    assert names == [
      *(
        f"{n}/{f}"
        for n in ("first", "second")
        for s in stems
        for f in (f"overlays/{s}.jpg", f"labels/{s}.png")
      ),
      "parts.csv",
    ]
    with Image.open(io.BytesIO(archive.read("first/labels/01_a.png"))) as labels:
      assert labels.size == (420, 410)
      areas = np.bincount(np.asarray(labels).ravel(), minlength=4)
    rows = list(csv.DictReader(io.StringIO(archive.read("parts.csv").decode())))
  assert len(rows) == 2 * 2 * 3
  assert (rows[1]["network"], rows[1]["image"], rows[1]["name"]) == ("first", "01_a", "body")
  assert [int(row["area"]) for row in rows[:3]] == areas[1:].tolist()
  large = picture().resize((2000, 1000))
  with zipfile.ZipFile(io.BytesIO(pack(networks[:1], [Photo("a.png", large)], Look()))) as archive:
    assert archive.namelist() == ["overlays/01_a.jpg", "labels/01_a.png", "parts.csv"]
    # As predict's: of the photograph as it is, not of the reduced one that is shown.
    with Image.open(io.BytesIO(archive.read("labels/01_a.png"))) as labels:
      assert labels.size == large.size


def test_drawn_faces_to_begin_with():
  faces = photos.drawn_faces()
  assert [face.image.size for face in faces] == [(128, 128)] * 3


def test_the_command_says_what_is_missing():
  def call(*arguments):
    code = "import sys; sys.modules['gradio'] = None; sys.argv[0] = 'x'; import runpy; "
    code += "runpy.run_module('scops_jax.demo', run_name='__main__')"
    return subprocess.run(
      [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )

  result = call("--workdir=toy_faces")
  assert (result.returncode, result.stderr.count("\n")) == (1, 1)
  assert "Gradio" in result.stderr
  assert 'pip install "scops_jax[demo]"' in result.stderr
  result = call("--workdir=a", "--workdir=b", "--workdir=c")
  assert result.stderr == "error: --workdir= is given 3 times: give one network, or two to compare\n"
