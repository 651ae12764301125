"""Two runs side by side: the page's text and the command; the browser's part is next door."""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from scops_jax.config import config_to_json
from scops_jax.errors import UserError
from scops_jax.report.comparison import Run, write_comparison
from scops_jax.report.gallery import GALLERY_FILE
from tests import pages
from tests.test_report import Structure


def run(name, **changes):
  known = {
    "results": pages.RESULTS,
    "records": pages.RECORDS,
    "config": pages.config(),
    "gallery": pages.gallery(),
  }
  return Run(name, **(known | changes))


def compare(tmp_path, one, other):
  path = tmp_path / "comparison.html"
  write_comparison(path, one, other)
  return path.read_text(encoding="utf-8")


def test_measures_settings_and_names(tmp_path):
  better = pages.RESULTS | {"landmark_error_test": 0.15, "foreground_iou": 0.8, "ari": None}
  other = run("B<b>", results=better, config=pages.config(**{"loss.equivariance": 3.0}))
  page = compare(tmp_path, run("A"), other)
  text = Structure(page).text
  assert "A and B<b>" in text
  assert "Landmark error 21.0 % 15.0 %" in text
  assert '<td class="better">15.0' in page
  assert '<td class="better">0.9</td><td class="">0.8' in page
  assert "loss.equivariance 111.11111111111111 3.0" in text
  assert "seed" not in re.search("What was set differently(.*)Test images", text).group(1)
  assert "All 6 test images." in text
  assert not re.search(r"https?:|url\(", re.sub(r"data:[^\"]*", "", page))


def test_numbers_of_different_units_are_not_compared(tmp_path):
  other = run("B", config=pages.config(**{"data.landmark_normalizer": "image", "image_size": 64}))
  page = compare(tmp_path, run("A"), other)
  text = Structure(page).text
  assert "in different units, the distance between the eyes and the image’s edge" in text
  assert "lower than A’s" not in text
  assert "Landmark error 21.0 %" not in text
  assert not re.search("pixels of the network’s square [0-9]", text)
  assert "Foreground IoU" in text


def test_the_verdict_is_paired(tmp_path):
  # B is better by 0.05 on each scored image: certain, although the errors themselves are spread.
  gallery = pages.gallery()
  better = dataclasses.replace(gallery, errors=gallery.errors - 0.05, test_errors=gallery.test_errors - 0.05)
  text = Structure(compare(tmp_path, run("A"), run("B", gallery=better))).text
  assert "B’s landmark error is 5.0 % lower than A’s, ± 0.0 %" in text
  assert "over 5 images). B is better on 5 of them" in text
  noise = np.array([0.1, -0.12, 0.0, 0.1, -0.1, 0.05])
  other = dataclasses.replace(gallery, test_errors=gallery.test_errors + noise)
  text = Structure(compare(tmp_path, run("A"), run("B", gallery=other))).text
  assert "can’t be told apart on these images" in text


def test_parts_are_renumbered_to_those_that_they_overlap(tmp_path):
  gallery = pages.gallery()
  swapped = np.array([0, 3, 1, 2], np.uint8)[gallery.labels]  # part 1 is called 3, 2 is 1, 3 is 2
  other = dataclasses.replace(gallery, labels=swapped, centers=gallery.centers[:, [1, 2, 0]])
  page = compare(tmp_path, run("A"), run("B", gallery=other))
  for tile in page.split("<figure")[1:]:
    one, two = re.findall(r'<div class="layers">(.*?)</div>', tile)
    assert one == two
    marks = re.findall(r'<g class="centers">(.*?)</g>', tile)
    assert marks[0] == marks[1]


def test_other_numbers_of_parts_are_compared(tmp_path):
  images, labels, _ = pages.scene()
  builder = pages.GalleryBuilder(5)
  builder.add(images, np.where(labels > 0, labels + 2, 0), np.zeros((6, 5, 2)), foreground=labels > 0)
  other = run("B", gallery=pages.with_names(builder.build()), config=pages.config(num_parts=5))
  page = compare(tmp_path, run("A"), other)
  assert page.count('data-shows="part-') == 5
  assert "can’t be told apart" not in page  # the errors are of two kinds


def test_other_images_are_refused(tmp_path):
  gallery = pages.gallery()
  renamed = dataclasses.replace(gallery, names=tuple(reversed(gallery.names)))
  with pytest.raises(UserError, match="A and B were not evaluated on the same test images"):
    compare(tmp_path, run("A"), run("B", gallery=renamed))
  assert not list(tmp_path.iterdir())


def save_run(folder, *, normalizer=""):
  (folder / "report").mkdir(parents=True)
  (folder / "config.json").write_text(config_to_json(pages.config()))
  (folder / "evaluation.json").write_text(json.dumps(pages.RESULTS))
  (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in pages.RECORDS))
  gallery = dataclasses.replace(pages.gallery(), landmark_normalizer=normalizer)
  gallery.save(folder / "report" / GALLERY_FILE)


def test_the_command(tmp_path):
  for name in ("one", "other"):
    save_run(tmp_path / name)

  def command(*arguments):
    return subprocess.run(
      [sys.executable, "-m", "scops_jax.report", *arguments],
      cwd=tmp_path,
      capture_output=True,
      text=True,
      check=False,
    )

  found = command("one")
  assert found.returncode == 0, found.stderr
  assert (tmp_path / "one" / "report" / "index.html").stat().st_size > 10_000
  found = command("one", "--against=other", "--out=both.html")
  assert found.returncode == 0, found.stderr
  assert "one and other" in (tmp_path / "both.html").read_text(encoding="utf-8")
  assert "per cent of the distance between" in (tmp_path / "one" / "report" / "index.html").read_text()
  save_run(tmp_path / "again", normalizer="image")  # its last evaluation's, not the training's
  assert command("again").returncode == 0
  assert "per cent of the image" in (tmp_path / "again" / "report" / "index.html").read_text()
  found = command("one", "--out=other")
  assert found.returncode == 1
  assert "error: --out=other can't be written" in found.stderr
  (tmp_path / "other" / "report" / GALLERY_FILE).unlink()
  found = command("one", "--against=other")
  assert found.returncode == 1
  assert "gallery.npz is missing" in found.stderr
