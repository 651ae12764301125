"""predict: every image's files, the table, resuming, bad files, colliding names, processes, the command."""

import csv
import json
import multiprocessing
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from scops_jax.data.image_files import find_images, resize_pixels
from scops_jax.errors import UserError
from scops_jax.geometry import pixels_from_points
from scops_jax.prediction import files, predictor, processes, stream
from scops_jax.prediction.folder import PredictionFolder, image_files
from scops_jax.prediction.labels import label_pixels
from scops_jax.prediction.predictor import Predictor
from scops_jax.report.overlays import display_size
from scops_jax.report.palette import part_colors
from tests import tiny_run

SIZES = {"b.png": (16, 16), "a.jpg": (21, 34), "a.png": (16, 40), "sub/a.png": (50, 30), "sub/c.webp": (9, 7)}


@pytest.fixture(scope="module")
def segmenter():
  return tiny_run.tiny_segmenter()


@pytest.fixture(scope="module", autouse=True)
def compiled_once(segmenter):
  """Compiles the network once for all tests of the module."""
  original = predictor.compile_segmenter
  kept = {crf: original(segmenter, crf=crf) for crf in (False, True)}

  def compile_segmenter(asked, *, crf=False):
    return kept[crf] if asked is segmenter else original(asked, crf=crf)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(predictor, "compile_segmenter", compile_segmenter)
    patch.setattr(stream, "compile_segmenter", compile_segmenter)
    yield


def write_images(folder, sizes=SIZES):
  rng = np.random.default_rng(0)
  for name, (height, width) in sizes.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.kron(rng.integers(0, 256, (-(-height // 4), -(-width // 4), 3)), np.ones((4, 4, 1)))
    Image.fromarray(pixels[:height, :width].astype(np.uint8)).save(path)
  return folder


@pytest.fixture
def photos(tmp_path):
  return write_images(tmp_path / "photos")


def run(segmenter, photos, out, **options):
  return stream.predict_images(segmenter, find_images(photos, outside=out), out, batch_size=4, **options)


def table(out):
  with (out / "parts.csv").open(newline="") as file:
    return list(csv.DictReader(file))


def stems(names):
  return {file.name: file.stem for file in image_files(dict.fromkeys(names, pathlib.Path()))}


def tree(folder):
  return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_files_and_the_table_hold_what_the_network_says(segmenter, photos, tmp_path):
  out = tmp_path / "out"
  assert run(segmenter, photos, out, probabilities=True) == []
  names = {"a.jpg": "a.jpg", "a.png": "a.png", "b.png": "b", "sub/a.png": "sub/a", "sub/c.webp": "sub/c"}
  kinds = {"labels": "png", "overlays": "jpg", "probabilities": "npz"}
  expected = [f"{kind}/{stem}.{suffix}" for kind, suffix in kinds.items() for stem in names.values()]
  assert tree(out) == sorted([*expected, "contact_sheet.jpg", "parts.csv", "progress.jsonl", "settings.json"])
  rows = table(out)
  assert [(row["image"], row["part"]) for row in rows] == [(n, str(k)) for n in names for k in (1, 2, 3)]
  predict_parts = Predictor(segmenter, batch_size=4)
  for i, (name, stem) in enumerate(names.items()):
    pixels = np.asarray(Image.open(photos / name).convert("RGB"))
    height, width = pixels.shape[:2]
    small = predict_parts(resize_pixels(pixels, 16)[None])
    found = label_pixels(small.probs[0], height=height, width=width)
    places = pixels_from_points(small.centers[0], width=width, height=height, square=16)
    with Image.open(out / "labels" / f"{stem}.png") as picture:
      assert picture.mode == "P"
      assert picture.getpalette()[:6] == [0, 0, 0, *part_colors(1)[0]]
      np.testing.assert_array_equal(np.asarray(picture), found.labels)
    with np.load(out / "probabilities" / f"{stem}.npz") as arrays:
      assert arrays["probs"].dtype == np.float16
      np.testing.assert_allclose(arrays["probs"], small.probs[0], atol=1e-3)
      np.testing.assert_allclose(arrays["centers"], small.centers[0], atol=1e-6)
    with Image.open(out / "overlays" / f"{stem}.jpg") as picture:
      assert picture.width == display_size(width, height)[0]
      assert picture.height > display_size(width, height)[1]  # a legend lies below
    for k, row in enumerate(rows[3 * i : 3 * i + 3], 1):
      assert (float(row["x"]), float(row["y"])) == pytest.approx(tuple(places[k - 1]), abs=1e-3)
      assert int(row["area"]) == (found.labels == k).sum()
      if int(row["area"]):
        assert float(row["mean_probability"]) == pytest.approx(found.mean_probs[k], abs=1e-4)
      else:
        assert row["mean_probability"] == ""


def test_plain_overlays_and_the_contact_sheet(segmenter, tmp_path):
  photos = write_images(tmp_path / "photos", {"a.png": (420, 300), "b.png": (300, 420)})
  out = tmp_path / "out"
  run(segmenter, photos, out, marks=False)
  with Image.open(out / "overlays" / "a.jpg") as picture, Image.open(out / "labels" / "a.png") as labels:
    assert picture.size == labels.size == (300, 420)
    background = np.asarray(labels) == 0
    pixels = np.asarray(Image.open(photos / "a.png").convert("RGB")).astype(int)
    assert np.abs(np.asarray(picture) - pixels)[background].mean() < 40
  with Image.open(out / "contact_sheet.jpg") as sheet:
    assert sheet.width > 500
  with pytest.raises(UserError, match=r"another marks \(was False, now True\)"):
    run(segmenter, photos, out)
  (photos / "b.png").unlink()
  run(segmenter, photos, out, marks=False)
  assert not (out / "contact_sheet.jpg").exists()


def test_an_interrupted_call_goes_on(segmenter, photos, tmp_path, monkeypatch):
  whole, out = tmp_path / "whole", tmp_path / "out"
  run(segmenter, photos, whole)
  write = files.write_image
  written = []

  def write_three(predicted, *, out):
    if len(written) == 3:
      raise KeyboardInterrupt
    written.append(predicted)
    return write(predicted, out=out)

  with monkeypatch.context() as patch:
    patch.setattr(stream, "write_image", write_three)
    with pytest.raises(KeyboardInterrupt):
      run(segmenter, photos, out)
  assert not (out / "parts.csv").exists()
  journal = out / "progress.jsonl"
  done = [json.loads(line)["stem"] for line in journal.read_text().splitlines()]
  assert 0 < len(done) <= 3
  # As after a kill in the middle of a line; and someone has deleted a file.
  with journal.open("a") as file:
    file.write('{"stem": "sub/c", "sour')
  (out / "labels" / f"{done[0]}.png").unlink()

  again = []

  def note(predicted, *, out):
    again.append(predicted.loaded.file.stem)
    return write(predicted, out=out)

  monkeypatch.setattr(stream, "write_image", note)
  run(segmenter, photos, out)
  assert sorted(again) == sorted({*stems(SIZES).values()} - set(done[1:]))
  assert (out / "parts.csv").read_bytes() == (whole / "parts.csv").read_bytes()
  assert tree(out) == tree(whole)
  again.clear()
  run(segmenter, photos, out)
  assert again == []
  # Soft maps are missing: all is done again. Then one image changes.
  run(segmenter, photos, out, probabilities=True)
  assert len(again) == len(SIZES)
  again.clear()
  Image.new("RGB", (20, 20)).save(photos / "b.png")
  run(segmenter, photos, out, probabilities=True)
  assert again == ["b"]
  rows = table(out)
  assert sum(int(row["area"]) for row in rows if row["image"] == "b.png") <= 400
  assert len(rows) == 3 * len(SIZES)


def test_an_image_longer_than_a_jpeg_is_left_out(segmenter, photos, tmp_path):
  Image.new("1", (66_000, 8)).save(photos / "long.png")
  (failure,) = run(segmenter, photos, tmp_path / "out")
  assert "long.png" in str(failure)
  assert "longer than a JPEG may be" in str(failure)
  assert {row["image"] for row in table(tmp_path / "out")} == set(SIZES)


def test_bad_files_are_listed_and_left_out(segmenter, photos, tmp_path, capsys):
  out = tmp_path / "out"
  run(segmenter, photos, out)
  (photos / "b.png").write_bytes((photos / "b.png").read_bytes()[:60])
  (photos / "text.jpg").write_text("no image")
  failures = run(segmenter, photos, out)
  assert len(failures) == 2
  listed = (out / "failed.txt").read_text().splitlines()
  assert [("b.png" in line, "text.jpg" in line) for line in listed] == [(True, False), (False, True)]
  assert {row["image"] for row in table(out)} == set(SIZES) - {"b.png"}
  captured = capsys.readouterr()
  assert captured.err.count("left out: ") == 2
  assert "4 images done (4 of them before); 2 can't be read" in captured.out
  (photos / "text.jpg").unlink()
  write_images(photos, {"b.png": (16, 16)})
  assert run(segmenter, photos, out) == []
  assert not (out / "failed.txt").exists()


def test_no_readable_image_is_an_error(segmenter, tmp_path):
  (tmp_path / "photos").mkdir()
  (tmp_path / "photos" / "x.png").write_text("no image")
  with pytest.raises(UserError, match="none of 1 images"):
    run(segmenter, tmp_path / "photos", tmp_path / "out")


def test_predictions_of_another_network_are_not_mixed_in(segmenter, photos, tmp_path):
  out = photos / "parts"  # among the images: the files in it are not taken for images
  run(segmenter, photos, out)
  with pytest.raises(UserError, match=r"holds predictions of another network .* give another folder"):
    run(tiny_run.tiny_segmenter(seed=1), photos, out)
  run(segmenter, photos, out)
  assert len(table(out)) == 3 * len(SIZES)


def test_a_folder_in_use_or_not_writable_is_an_error(segmenter, photos, tmp_path):
  out = tmp_path / "out"
  folder = PredictionFolder(files.OutputFiles(out, probabilities=False), settings={})
  with pytest.raises(UserError, match="written by another call"):
    run(segmenter, photos, out)
  folder.close()
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="can't be written"):
    run(segmenter, photos, tmp_path / "file" / "out")


def test_a_large_image_is_read_again_for_its_overlay(segmenter, photos, tmp_path, monkeypatch):
  run(segmenter, photos, tmp_path / "kept")
  monkeypatch.setattr(files, "_KEPT_PIXELS", 100)
  run(segmenter, photos, tmp_path / "again")
  for path in tree(tmp_path / "kept"):
    if not path.startswith(("progress", "settings")):
      assert (tmp_path / "again" / path).read_bytes() == (tmp_path / "kept" / path).read_bytes(), path


def test_reading_runs_a_bounded_number_of_images_ahead(segmenter, tmp_path, monkeypatch):
  photos = write_images(tmp_path / "photos", {f"{i:03}.png": (8, 8) for i in range(60)})
  load, add = files.load_image, PredictionFolder.add
  loaded, gaps = [], []

  def count(entry, **options):
    loaded.append(entry)
    return load(entry, **options)

  def note(self, *rest):
    gaps.append(len(loaded) - len(gaps))
    return add(self, *rest)

  monkeypatch.setattr(stream, "load_image", count)
  monkeypatch.setattr(PredictionFolder, "add", note)
  run(segmenter, photos, tmp_path / "out")
  assert len(gaps) == 60
  # Two batches of 4 being read, two with the network, two being written, and rounding.
  assert max(gaps) <= 28


def test_stems_are_distinct():
  assert stems(["a.png", "b/a.png", "c.tar.png"]) == {"a.png": "a", "b/a.png": "b/a", "c.tar.png": "c.tar"}
  assert stems(["a.jpg", "a.png", "b.png"]) == {"a.jpg": "a.jpg", "a.png": "a.png", "b.png": "b"}
  assert stems(["A.jpg", "a.png"]) == {"A.jpg": "A.jpg", "a.png": "a.png"}
  # The stem of the third image is the full name of the first.
  assert len(set(stems(["a.jpg", "a.png", "a.jpg.png"]).values())) == 3


def test_processes_write_what_threads_write(segmenter, photos, tmp_path, capsys):
  write_images(photos, {f"more/{i}.png": (20, 16 + i) for i in range(12)})
  (photos / "text.jpg").write_text("no image")
  options = {"probabilities": True, "crf": True}
  failures = [
    run(segmenter, photos, tmp_path / name, processes=n, **options) for n, name in ((1, "a"), (2, "b"))
  ]
  assert failures[0] == failures[1]
  assert "text.jpg" in failures[1][0]
  assert "17 images done; 1 can't be read" in capsys.readouterr().out
  assert tree(tmp_path / "a") == tree(tmp_path / "b")
  for path in tree(tmp_path / "a"):
    if path.startswith("labels"):
      one, other = (np.asarray(Image.open(tmp_path / name / path)) for name in "ab")
      assert (one != other).mean() <= 0.01, path
  for one, other in zip(table(tmp_path / "a"), table(tmp_path / "b"), strict=True):
    assert (one["image"], one["part"]) == (other["image"], other["part"])
    for column in ("x", "y"):
      assert float(one[column]) == pytest.approx(float(other[column]), abs=0.01)


def test_a_process_that_is_killed_or_can_not_write_is_an_error(segmenter, photos, tmp_path, monkeypatch):
  out = tmp_path / "out"
  out.mkdir()
  (out / "overlays").touch()  # where a folder is to be
  with pytest.raises(UserError, match=r"can't write to out=.*run it again"):
    run(segmenter, photos, out, processes=1)
  with pytest.raises(UserError, match=r"can't write to out=.*run it again"):
    run(segmenter, photos, out, processes=2)
  (out / "overlays").unlink()
  make_job = stream.make_job

  def kill_meanwhile(*arguments, **options):
    multiprocessing.active_children()[0].kill()
    return make_job(*arguments, **options)

  with monkeypatch.context() as patch:
    patch.setattr(stream, "make_job", kill_meanwhile)
    with pytest.raises(UserError, match=r"process of predict was killed, .*processes=1"):
      run(segmenter, photos, out, processes=2)
  assert run(segmenter, photos, out, processes=2) == []
  assert len(table(out)) == 3 * len(SIZES)


IDLE_WORKER = """
import multiprocessing, os, signal
from concurrent.futures import ProcessPoolExecutor
from scops_jax.prediction import processes
context = multiprocessing.get_context("spawn")
shares = context.SimpleQueue()
shares.put([])
pool = ProcessPoolExecutor(1, context, initializer=processes._start, initargs=(shares,))
pool.submit(int).result()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_processes_end_when_their_parent_is_killed():
  # It returns only when the parent and its child have both closed their output.
  result = subprocess.run([sys.executable, "-c", IDLE_WORKER], capture_output=True, timeout=120, check=False)
  assert result.returncode == -9


def test_processes_are_for_many_images_on_a_cpu(segmenter, photos, tmp_path, monkeypatch):
  cores = list(range(40))
  monkeypatch.setattr(processes, "_cores", lambda: cores)
  assert [processes.fast_process_count(n) for n in (0, 999, 1000, 10**6)] == [1, 1, 16, 16]
  shares = processes.shares_of_cores(3)
  assert sorted(core for share in shares for core in share) == cores
  assert {len(share) for share in shares} == {13, 14}
  cores[2:] = []
  assert processes.fast_process_count(1000) == 2
  cores.clear()  # as on a system that can't pin
  assert processes.fast_process_count(1000) == 1
  monkeypatch.setattr(stream.jax, "default_backend", lambda: "gpu")
  assert processes.fast_process_count(10**6) == 1
  with pytest.raises(UserError, match="processes=2 is for CPUs"):
    run(segmenter, photos, tmp_path / "out", processes=2)


def test_the_crf_is_part_of_what_a_folder_holds(segmenter, photos, tmp_path):
  run(segmenter, photos, tmp_path / "out", crf=True)
  with pytest.raises(UserError, match="another crf"):
    run(segmenter, photos, tmp_path / "out")


def test_the_command(photos, tmp_path):
  workdir = tiny_run.write_run(tmp_path / "run")
  (photos / "text.jpg").write_text("no image")
  command = [sys.executable, "-m", "scops_jax.predict", f"--workdir={workdir}"]

  def call(*arguments):
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)

  result = call(
    f"--images={photos}/**/*", f"--out={tmp_path}/out", "--batch_size=8", f"--export={tmp_path}/program"
  )
  assert result.returncode == 0, result.stderr
  assert tree(tmp_path / "program") == ["README.md", "parts.stablehlo", "run.py"]
  assert "text.jpg" in result.stderr
  assert "5 images done; 1 can't be read" in result.stdout
  assert len(table(tmp_path / "out")) == tiny_run.NUM_PARTS * len(SIZES)
  result = call(f"--images={photos}")
  assert result.returncode == 1
  assert result.stderr == "error: give --images and --out together, or --export, or all three\n"
