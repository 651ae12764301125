"""predict: foreign and damaged files, weights and maps that are not finite, kills and Ctrl-C."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from scops_jax.data.image_files import find_images
from scops_jax.errors import UserError
from scops_jax.prediction import predictor, restore, stream
from tests import tiny_run

NUM_IMAGES = 6


@pytest.fixture(scope="module")
def segmenter():
  return tiny_run.tiny_segmenter()


@pytest.fixture(autouse=True)
def compiled_once(segmenter, monkeypatch, compiled):
  monkeypatch.setattr(stream, "compile_segmenter", lambda asked, crf=False: compiled)


@pytest.fixture(scope="module")
def compiled(segmenter):
  return predictor.compile_segmenter(segmenter)


def write_images(folder: pathlib.Path) -> pathlib.Path:
  folder.mkdir()
  rng = np.random.default_rng(0)
  for i in range(NUM_IMAGES):
    Image.fromarray(rng.integers(0, 256, (20 + i, 24, 3), np.uint8)).save(folder / f"{i}.png")
  return folder


@pytest.fixture
def photos(tmp_path):
  return write_images(tmp_path / "photos")


def run(segmenter, photos, out, **options):
  return stream.predict_images(segmenter, find_images(photos), out, batch_size=4, processes=1, **options)


def content(out):
  """The files and their content, but for the journal, whose order and times vary."""
  files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
  return {
    # The place in a batch decides the last digit of soft maps.
    name: sorted(np.load(path)) if path.suffix == ".npz" else path.read_bytes()
    for name, path in files.items()
    if name != "progress.jsonl"
  }


@pytest.mark.parametrize(
  "name", ["parts.csv", "labels/0.png", "overlays/x.jpg", "failed.txt", "settings.json", "progress.jsonl"]
)
def test_files_of_others_are_not_replaced(name, segmenter, photos, tmp_path):
  foreign = tmp_path / "out" / name
  foreign.parent.mkdir(parents=True)
  foreign.write_text('{"precious": 1}\n')
  with pytest.raises(UserError, match=rf"holds {name.split('/')[0]}, which predict did not write"):
    run(segmenter, photos, tmp_path / "out")
  assert foreign.read_text() == '{"precious": 1}\n'
  assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [foreign]


def empty(path):
  path.write_bytes(b"")


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def shorten(path):
  path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("damage", [empty, flip, shorten, pathlib.Path.unlink])
@pytest.mark.parametrize(
  "name",
  ["labels/3.png", "overlays/0.jpg", "probabilities/1.npz", "parts.csv", "progress.jsonl", "settings.json"],
)
def test_damaged_files_are_written_again(name, damage, segmenter, photos, tmp_path, capsys):
  out = tmp_path / "out"
  run(segmenter, photos, out, probabilities=True)
  whole = content(out)
  damage(out / name)
  capsys.readouterr()
  run(segmenter, photos, out, probabilities=True)
  assert content(out) == whole
  assert len((out / "progress.jsonl").read_text().splitlines()) >= NUM_IMAGES
  said = capsys.readouterr().err
  if name == "settings.json" or (name == "progress.jsonl" and damage is flip):
    assert name in said
    assert "damaged" in said


def test_a_setting_whose_digit_has_changed_is_written_again(segmenter, photos, tmp_path, capsys):
  out = tmp_path / "out"
  run(segmenter, photos, out)
  whole = content(out)
  settings = (out / "settings.json").read_text()
  step = f'"step": {segmenter.step}'
  assert step in settings
  (out / "settings.json").write_text(settings.replace(step, step[:-1] + "9"))
  run(segmenter, photos, out)
  assert content(out) == whole
  assert "settings.json is missing or damaged" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_refused(tmp_path, monkeypatch):
  workdir = tiny_run.write_run(tmp_path / "run")
  original = restore.restore_variables

  def damaged(*arguments, **options):
    variables, step = original(*arguments, **options)
    return jax.tree.map(lambda array: array * np.nan, variables), step

  monkeypatch.setattr(restore, "restore_variables", damaged)
  with pytest.raises(UserError, match=r"checkpoint 7 of .*run.*: (params|batch_stats)/.* has NaN"):
    restore.load_segmenter(workdir)


def test_maps_that_are_not_finite_give_no_rows(segmenter, photos, tmp_path, compiled, monkeypatch):
  def predict(images):
    maps = jax.device_get(compiled(images))
    broken = np.array(maps.probs)
    broken[0] = np.nan
    return maps._replace(probs=broken)

  monkeypatch.setattr(stream, "compile_segmenter", lambda asked, crf=False: predict)
  failures = run(segmenter, photos, tmp_path / "out")
  assert ["0.png" in failures[0], "4.png" in failures[1], len(failures)] == [True, True, 2]
  assert "nan" not in (tmp_path / "out" / "parts.csv").read_text().lower()
  assert not (tmp_path / "out" / "labels" / "0.png").exists()


PREDICT = """
import os, pathlib, signal, sys
from scops_jax import cli
from scops_jax.data.image_files import find_images
from scops_jax.prediction import stream
from scops_jax.prediction.folder import PredictionFolder
from tests import tiny_run

def predict(photos, out, moment, signum, processes):
  left = moment
  def interrupting(function):
    def call(*arguments):
      nonlocal left
      left -= 1
      if left == -1:
        os.kill(os.getpid(), signum)
      return function(*arguments)
    return call
  pathlib.Path.replace = interrupting(pathlib.Path.replace)
  PredictionFolder.add = interrupting(PredictionFolder.add)
  options = dict(batch_size=2, processes=processes)
  images = find_images(photos)
  cli.run(lambda: stream.predict_images(tiny_run.tiny_segmenter(), images, out, **options) and None)

if __name__ == "__main__":
  photos, signum, processes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
  outs, sys.argv[1:] = sys.argv[4:], []
  statuses = []
  for out, moment in (argument.split("@") for argument in outs):  # JAX starts in the children
    child = os.fork()
    if not child:
      predict(photos, out, int(moment), signum, processes)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
  print("exit codes", *statuses)
"""
NEVER = 10**6


def call(photos, moments, signum, processes=1):
  """Runs predict for each folder in turn; before file or line number `moment` is complete, it gets a signal.

  Returns:
    The exit codes, and what went to standard error.
  """
  outs = [f"{out}@{moment}" for out, moment in moments.items()]
  command = [sys.executable, "-c", PREDICT, str(photos), str(int(signum)), str(processes), *outs]
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}  # others that are installed may speak
  result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200, env=environment)
  codes = result.stdout.split("exit codes")[1].split()
  return list(map(int, codes)), result.stderr


def test_a_killed_call_run_again_gives_the_same_files(photos, tmp_path):
  moments = np.random.default_rng(0).choice(3 * NUM_IMAGES + 2, 6, replace=False).tolist()
  killed = {tmp_path / str(moment): moment for moment in moments}
  assert call(photos, killed, signal.SIGKILL)[0] == [-signal.SIGKILL] * 6
  again = dict.fromkeys([tmp_path / "whole", *killed], NEVER)
  codes, error = call(photos, again, signal.SIGKILL)
  assert codes == [0] * 7, error
  whole = content(tmp_path / "whole")
  for out in killed:
    found = content(out)
    assert {name: found[name] for name in whole} == whole, out
    assert all(name.endswith(".tmp") for name in found.keys() - whole.keys())
    lines = (out / "progress.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["stem"] for line in lines) == [str(i) for i in range(NUM_IMAGES)]


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_ends_with_one_line(processes, photos, tmp_path):
  codes, error = call(
    photos, {tmp_path / "out": 3}, signal.SIGINT, processes
  )  # waits for all that it started
  assert codes == [130]
  assert [line for line in error.splitlines() if line and "predict:" not in line] == ["ended by SIGINT"]
