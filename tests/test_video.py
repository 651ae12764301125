"""Video files in and out: every frame once, in order, with its parts; bad files; the extra."""

import csv
import sys

import numpy as np
import pytest
from PIL import Image

from scops_jax.data.image_files import is_video
from scops_jax.errors import UserError
from scops_jax.prediction.predictor import Predictor
from scops_jax.prediction.video import predict_video
from tests import tiny_run

WIDTH, HEIGHT, FRAMES = 64, 48, 11


@pytest.fixture(scope="module")
def segmenter():
  return tiny_run.tiny_segmenter()


@pytest.fixture
def clip(tmp_path):
  """Frames of growing brightness."""
  ffmpeg = pytest.importorskip("imageio_ffmpeg")
  path = tmp_path / "clip.mp4"
  writer = ffmpeg.write_frames(str(path), (WIDTH, HEIGHT), fps=5, quality=9)
  writer.send(None)
  blocks = np.kron(np.random.default_rng(0).integers(0, 100, (6, 8, 3)), np.ones((8, 8, 1)))
  for number in range(FRAMES):
    writer.send((blocks + 15 * number).astype(np.uint8).tobytes())
  writer.close()
  return path


def read(path):
  ffmpeg = pytest.importorskip("imageio_ffmpeg")
  reader = ffmpeg.read_frames(str(path))
  meta = next(reader)
  width, height = meta["size"]
  return meta, [np.frombuffer(data, np.uint8).reshape(height, width, 3) for data in reader]


def test_every_frame_has_its_parts(segmenter, clip, tmp_path):
  out = tmp_path / "new" / "out"
  path = predict_video(segmenter, clip, out, batch_size=4)
  assert sorted(entry.name for entry in out.iterdir()) == ["clip_parts.csv", "clip_parts.mp4"]
  meta, frames = read(path)
  assert (len(frames), meta["fps"]) == (FRAMES, 5)
  _, originals = read(clip)
  predict = Predictor(segmenter)
  for index in (0, FRAMES - 1):
    expected = np.asarray(predict.overlay(Image.fromarray(originals[index]))).astype(int)
    shown = frames[index][: expected.shape[0], : expected.shape[1]]
    assert np.abs(shown - expected).mean() < 6
    assert np.abs(shown - np.asarray(predict.overlay(originals[FRAMES // 2]))).mean() > 10
  with (out / "clip_parts.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  assert [(row["frame"], row["part"]) for row in rows] == [
    (str(frame), str(part)) for frame in range(FRAMES) for part in (1, 2, 3)
  ]
  assert rows[-1]["seconds"] == "2.0"
  areas = np.bincount(predict(originals[-1]).labels.ravel(), minlength=4)
  assert [int(row["area"]) for row in rows[-3:]] == areas[1:].tolist()


def test_a_video_that_ffmpeg_does_not_finish_is_no_result(segmenter, clip, tmp_path, monkeypatch):
  ffmpeg = pytest.importorskip("imageio_ffmpeg")
  write_frames = ffmpeg.write_frames
  # As on a full disk: FFmpeg stops before it writes the index of the frames.

  def stopped(*arguments, output_params, **options):
    return write_frames(*arguments, output_params=[*output_params, "-fs", "1"], **options)

  monkeypatch.setattr(ffmpeg, "write_frames", stopped)
  with pytest.raises(UserError, match=r"can't write to out=.*FFmpeg did not finish"):
    predict_video(segmenter, clip, tmp_path / "out")
  assert not list((tmp_path / "out").iterdir())


def test_what_is_no_video(segmenter, clip, tmp_path):
  (tmp_path / "text.mp4").write_text("no video")
  assert is_video(tmp_path / "text.mp4")
  assert not is_video(tmp_path / "nothing.mp4")
  with pytest.raises(UserError, match=r"text\.mp4 is no video that can be read"):
    predict_video(segmenter, tmp_path / "text.mp4", tmp_path / "out")
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match=r"can't write to out="):
    predict_video(segmenter, clip, tmp_path / "file" / "out")
  assert not (tmp_path / "out").exists()


def test_without_the_extra_the_error_says_what_to_install(segmenter, tmp_path, monkeypatch):
  (tmp_path / "clip.mov").write_bytes(b"")
  monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
  with pytest.raises(UserError, match=r'pip install "scops_jax\[video\]"'):
    predict_video(segmenter, tmp_path / "clip.mov", tmp_path / "out")
