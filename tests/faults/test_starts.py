"""What may change between starts, who may train in a directory, and what a failed start leaves."""

import json
import os
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

from scops_jax import train
from scops_jax.data.collection import open_collection
from scops_jax.errors import UserError
from scops_jax.runs.inputs import Inputs, check_inputs, run_inputs
from scops_jax.runs.workdir import open_workdir, owned
from scops_jax.train import train_and_evaluate
from tests import tiny


def saved(workdir):
  return json.loads((workdir / "config.json").read_text())


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("data.landmark_normalizer", "image"),
    ("data.num_threads", 3),
    ("data.dir", "moved"),
    ("data.cache_dir", "moved"),
    ("crf.num_iterations", 2),
    ("eval_every", 3),
    ("eval_batch_size", 8),
    ("log_every", 7),
    ("checkpoint_every", 9),
    ("on_nonfinite_step", "skip"),
    ("num_steps", 11),
  ],
)
def test_keys_that_do_not_decide_training_may_change_and_are_noted(key, value, tmp_path, capsys):
  open_workdir(tmp_path, tiny.config())
  changed = tiny.config(**{key: value})
  open_workdir(tmp_path, changed, train=False)
  assert saved(tmp_path) == saved(open_workdir(tmp_path / "other", tiny.config()))  # a reader only reads
  capsys.readouterr()
  open_workdir(tmp_path, changed)
  (line,) = capsys.readouterr().out.splitlines()
  assert f"{key} (was " in line
  assert ("poly schedule over 11 steps" in line) == (key == "num_steps")
  assert saved(tmp_path) == saved(open_workdir(tmp_path / "changed", changed))
  open_workdir(tmp_path, changed)
  assert not capsys.readouterr().out


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("seed", 1),
    ("num_steps", 9),
    ("batch_size", 2),
    ("loss.balance", 1.0),
    ("optimizer.learning_rate", 0.1),
    ("data.on_bad_example", "skip"),
    ("reference_weights", "random"),
  ],
)
def test_keys_that_decide_training_may_not_change(key, value, tmp_path):
  open_workdir(tmp_path, tiny.config())
  before = (tmp_path / "config.json").read_bytes()
  with pytest.raises(UserError, match=rf"another config: {key} \(was .*, now .*\)"):
    open_workdir(tmp_path, tiny.config(**{key: value, "log_every": 7}))
  assert (tmp_path / "config.json").read_bytes() == before


def test_a_finished_run_goes_on_to_more_steps(config, finished, workdir, tmp_path):
  config.num_steps = 8
  config.optimizer.schedule = "poly"
  results = train_and_evaluate(config, workdir)
  assert results["step"] == 8
  assert saved(workdir)["num_steps"] == 8


def test_an_error_in_the_evaluation_loses_no_step_and_the_cure_is_accepted(config, tmp_path, monkeypatch):
  workdir = tmp_path / "run"
  config.num_steps, config.checkpoint_every = 2, 100
  evaluate = train.evaluate

  def fail(*args, **kwargs):
    raise UserError("data.landmark_normalizer=inter_ocular needs images of the regression")

  closed = []
  monkeypatch.setattr(train.MetricsLog, "close", lambda log: closed.append(log))
  monkeypatch.setattr(train, "evaluate", fail)
  with pytest.raises(UserError, match="landmark_normalizer"):
    train_and_evaluate(config, workdir)
  assert len(closed) == 1
  assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["2"]
  monkeypatch.setattr(train, "evaluate", evaluate)
  config.data.landmark_normalizer = "image"
  monkeypatch.setattr(train, "_resume_or_begin", None)  # no step is done again
  assert train_and_evaluate(config, workdir)["step"] == 2


def copied_data(config, tmp_path):
  """Makes the config read a copy of the run's own images, in a cache of its own; returns their folder."""
  config.data.cache_dir = str(tmp_path / "cache")
  config.data.dir = str(shutil.copytree(config.data.dir, tmp_path / "own"))
  return tmp_path / "own" / "images"


def test_more_or_fewer_images_are_refused(config, workdir, tmp_path):
  (copied_data(config, tmp_path) / "0.png").unlink()
  with pytest.raises(UserError, match=r"was trained on 4 images, and the collection now has 3"):
    train_and_evaluate(config, workdir)


def test_other_images_are_refused(config, workdir, tmp_path):
  images = copied_data(config, tmp_path)
  shutil.copy(images / "1.png", images / "0.png")
  with pytest.raises(
    UserError, match="was trained with other images or masks than those of the collection now"
  ):
    train_and_evaluate(config, workdir)


def test_the_digest_of_the_training_images_covers_their_masks(config, tmp_path):
  folder = copied_data(config, tmp_path).parent / "saliency"
  folder.mkdir()
  config.data.saliency = "collection"

  def digest(changed, level):
    for index in range(6):
      mask = np.full((20, 24), level if index == changed else 100, np.uint8)
      Image.fromarray(mask).save(folder / f"{index}.png")
    return open_collection(config).train_digest

  first = digest(0, 200)
  assert digest(0, 250) != first
  assert digest(0, 200) == first
  assert digest(5, 250) == digest(5, 200)  # a test image's


def test_moved_images_and_other_test_images_are_not_refused(config, workdir, tmp_path):
  images = copied_data(config, tmp_path)
  shutil.copy(images / "4.png", images / "5.png")
  assert train_and_evaluate(config, workdir)["step"] == 6


def test_another_reference_is_refused(config, workdir):
  inputs = Inputs(num_images=4, images="a", reference="b")
  for position in ({"num_images": 4}, inputs._asdict(), {**inputs._asdict(), "images": None}):
    assert check_inputs(position, inputs, workdir) == inputs
  # A data set of an earlier version has no digest: the checkpoint's is kept.
  unknown = inputs._replace(images=None)
  assert check_inputs(inputs._asdict(), unknown, workdir) == inputs
  with pytest.raises(UserError, match="other weights of the reference than reference_weights has now"):
    check_inputs({**inputs._asdict(), "reference": "c"}, inputs, workdir)
  collection = types.SimpleNamespace(train=[0] * 4, train_digest="a")
  found = [run_inputs(collection, {"w": np.full(3, value)}, config).reference for value in (1.0, 2.0)]
  assert found == [None, None]  # random weights
  config.reference_weights = "file.npz"
  found = [run_inputs(collection, {"w": np.full(3, value)}, config).reference for value in (1.0, 2.0)]
  assert found[0] != found[1]


def test_checkpoints_know_their_images(config, workdir):
  position = json.loads((workdir / "checkpoints" / "4" / "position" / "metadata").read_text())
  assert position["images"] == open_collection(config).train_digest
  assert position["num_images"] == 4


HOLD = """
import sys, time
from scops_jax.runs.workdir import owned
with owned(sys.argv[1]):
  print("held", flush=True)
  time.sleep(600)
"""


def test_a_directory_has_one_trainer_until_it_dies(config, workdir):
  with subprocess.Popen(
    [sys.executable, "-c", HOLD, str(workdir)], stdout=subprocess.PIPE, text=True
  ) as holder:
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"is being trained by process {holder.pid} on \S+: wait for it"):
      train_and_evaluate(config, workdir)
    holder.kill()
  with owned(workdir):
    assert (workdir / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_failed_start_leaves_no_directory_but_whatever_else_is_in_it(tmp_path):
  for content in (None, "notes.txt"):
    workdir = tmp_path / "made" / "run"

    def start(workdir=workdir, content=content):
      with owned(workdir):
        if content:
          (workdir / content).write_text("mine")
        raise UserError("nothing works")

    with pytest.raises(UserError, match="nothing works"):
      start()
    assert workdir.exists() == bool(content)
