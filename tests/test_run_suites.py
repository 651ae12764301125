"""The suites of experiments/run.py, in this process, with small networks."""

import json
import pathlib
import runpy
import signal
import subprocess
import sys

import pytest

from experiments import result_tables, run
from experiments.suites import LOSSES, SETTINGS, Run, suite
from scops_jax import train
from scops_jax.config import check_values
from scops_jax.runs import setup
from tests import tiny
from tests.miniatures import cub_parts, pascal_parts

RESULTS = {
  "landmark_error_test": 0.2,
  "foreground_iou": 0.9,
  "nmi": None,
  "ari": None,
  "keypoint_nmi": 0.5,
  "keypoint_ari": 0.4,
  "warp_center_error": 1.5,
  "warp_label_agreement": 0.8,
  "clip_label_flicker": 0.1,
  "part_area_fractions": [0.6, 0.4],
  "step": 2,
}


def record(variant, seed, *, method="scops", **changed):
  return {
    "run": f"{variant}_{seed}",
    "variant": variant,
    "method": method,
    "seed": seed,
    "minutes": 1.0,
    "load": 1.0,
    "machine": "two cores",
    "results": RESULTS | changed,
  }


@pytest.fixture
def folder(tmp_path):
  """A suite's folder with a README."""
  path = tmp_path / "toy_faces"
  path.mkdir()
  text = "Before.\n\n<!-- results: small -->\nold\n<!-- end of results: small -->\nAfter.\n"
  (path / "README.md").write_text(text)
  return path


def write(folder, records):
  results = folder / "results" / "small"
  results.mkdir(parents=True)
  for each in records:
    (results / f"{each['run']}_{each['method']}.json").write_text(json.dumps(each))


def test_names_are_unique_and_every_loss_is_switched():
  for name in SETTINGS:
    runs = suite(name, tmp := run.ROOT)
    assert len({each.name for each in runs}) == len(runs)
    assert runs == suite(name, tmp)
    if name != "paper":
      switched = {key for each in runs for key in each.overrides if key.startswith("loss.")}
      assert switched == {f"loss.{loss}" for loss in LOSSES}


def test_tables_give_means_and_deviations_and_keep_the_rest(folder):
  errors = (0.1, 0.2, 0.3)
  records = [record("default", seed, landmark_error_test=error) for seed, error in enumerate(errors)]
  records.append(record("default", 0, method="kmeans", landmark_error_test=0.5))
  records.append(record("without balance", 0, landmark_error_test=0.25))
  records.append(record("without concentration", 0, landmark_error_test=0.4))
  write(folder, records)
  result_tables.write(folder, "small")
  text = (folder / "README.md").read_text()
  assert text.startswith("Before.\n")
  assert text.endswith("After.\n")
  assert "old" not in text
  assert "| SCOPS | 0, 1, 2 | 0.2000 ± 0.1000 | 0.900 ± 0.000 | – |" in text
  assert "| k-means on features | 0 | 0.5000 |" in text
  # 0.25 is within the deviation of 0.1 from 0.2, 0.4 is not.
  assert "without concentration (landmark_error_test). Nothing worse: without balance." in text
  assert (folder / "results_small.png").stat().st_size > 1000
  result_tables.write(folder, "small")
  assert (folder / "README.md").read_text() == text


def test_a_run_is_done_once_and_other_settings_are_refused(tmp_path, monkeypatch):
  done = []

  def fake_train(flags):
    done.append(flags)
    (tmp_path / "work").mkdir(exist_ok=True)
    (tmp_path / "work" / "evaluation.json").write_text(json.dumps(RESULTS))

  one = Run("K = 4", 2, "configs/toy_faces.py", {"num_parts": 4, "reference_layers": ("a", "b")})
  options = {"results": tmp_path / "results", "workdir": tmp_path / "work", "train": fake_train}
  for _ in range(2):
    run.perform(one, overrides={"num_steps": 3}, **options)
  assert len(done) == 1
  assert {"--config.reference_layers=('a', 'b')", "--config.num_steps=3", "--config.seed=2"} < set(done[0])
  saved = json.loads((tmp_path / "results" / "K_4_seed2.json").read_text())
  assert saved["results"] == RESULTS
  assert saved["overrides"]["num_steps"] == 3
  with pytest.raises(SystemExit, match="made with other overrides"):
    run.perform(one, overrides={"num_steps": 4}, **options)


def test_a_training_that_fails_ends_the_suite_with_its_code(tmp_path):
  handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
  with pytest.raises(SystemExit) as ended:
    run.train_in_process_of_its_own(["--config=configs/nothing.py", f"--workdir={tmp_path}"])
  assert ended.value.code == 1
  assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_sigterm_ends_the_training_too(tmp_path):
  # The training is replaced by a process that says that it has begun, and by what signal it ends.
  script = (
    "import sys, time, signal;"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); print('begun', flush=True); time.sleep(60)"
  )
  parent = (
    "import sys; from experiments import run; run.sys.executable = sys.argv[1]; "
    "run.train_in_process_of_its_own([])"
  )
  fake = tmp_path / "python"
  fake.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{script}"\n')
  fake.chmod(0o755)
  process = subprocess.Popen(
    [sys.executable, "-c", parent, str(fake)], cwd=run.ROOT, stdout=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == "begun\n"
  process.terminate()
  assert process.wait(30) == 7


def test_every_run_of_a_suite_has_a_valid_config(monkeypatch):
  monkeypatch.chdir(run.ROOT)
  for name in SETTINGS:
    for each in suite(name, pathlib.Path("data")):
      path, _, argument = each.config.partition(":")
      config = runpy.run_path(path)["get_config"](*[argument][: bool(argument)])
      config.update_from_flattened_dict(each.overrides | SETTINGS[name]["full"] | {"seed": each.seed})
      check_values(config)


@pytest.mark.usefixtures("compile_once")
def test_the_paper_suite_on_collections_in_miniature(tmp_path, monkeypatch):
  cub_parts.write(tmp_path / "data" / "cub")
  pascal_parts.write(tmp_path / "data" / "pascal")
  monkeypatch.setattr(setup, "create_networks", lambda config: tiny.networks())
  monkeypatch.chdir(run.ROOT)

  def train_here(flags):
    _, workdir, *others = (flag.partition("=")[2] for flag in flags)
    keys = [flag.partition("=")[0].removeprefix("--config.") for flag in flags[2:]]
    changes = dict(zip(keys, map(run._value, others), strict=True))
    folder = changes["data.dir"].rpartition("/")[2]
    changes |= {"data.name": f"{folder}_parts", "data.landmark_normalizer": "box"}
    train.train_and_evaluate(tiny.config(**changes), workdir)

  for name in ("experiments/paper", "experiments/paper/results"):
    (tmp_path / name).mkdir(parents=True, exist_ok=True)
  readme = "<!-- results: full -->\n<!-- end of results: full -->\n"
  (tmp_path / "experiments" / "paper" / "README.md").write_text(readme)
  settings = {
    "num_parts": 3,
    "image_size": 32,
    "reference_image_size": 32,
    "nmf.num_images": 4,
    "segmenter_weights": "random",
    "reference_weights": "random",
    "data.cache_dir": tmp_path / "cache",
    "data.on_bad_example": "skip",
    "data.saliency_dir": "",
  }
  arguments = [
    "paper",
    f"--data_root={tmp_path / 'data'}",
    f"--results={tmp_path / 'experiments'}",
    "--steps=2",
  ]
  arguments += [
    f"--runs={tmp_path / 'runs'}",
    *(f"--config.{key}={value}" for key, value in settings.items()),
  ]
  run.main([*arguments, "--only", "CUB_001*", "PASCAL_horse*"], train=train_here)
  table = (tmp_path / "experiments" / "paper" / "README.md").read_text()
  rows = [line.split("|") for line in table.splitlines() if line.startswith("| ")]
  ours = {(cells[1].strip(), cells[2].strip()): cells[3].strip() for cells in rows}
  assert float(ours["CUB 001, K = 4", "landmark error"]) > 0
  assert all(float(each) >= 0 for each in ours["PASCAL horse, K = 4", "NMI"].split(" / "))
  assert ours["PASCAL cow, K = 4", "NMI"] == "–"
  assert "18.5 [S] | 18.3 [S]" in table
