"""A run's directory: config, metrics, nothing half-written."""

import json

import numpy as np
import pytest

from scops_jax.config import default_config
from scops_jax.errors import UserError
from scops_jax.runs.metrics import MetricsLog, read_metrics
from scops_jax.runs.workdir import open_workdir


def test_the_resolved_config_is_saved_and_the_same_config_resumes(tmp_path):
  config = default_config()
  path = open_workdir(tmp_path / "run", config)
  saved = json.loads((path / "config.json").read_text())
  assert saved["loss"]["semantic_consistency"] == 1e4
  assert saved["num_parts"] == 8
  assert open_workdir(tmp_path / "run", config) == path


def test_another_config_is_refused_and_the_keys_are_named(tmp_path):
  open_workdir(tmp_path, default_config())
  other = default_config()
  other.num_parts = 5
  other.loss.concentration = 0.5
  with pytest.raises(UserError, match=r"loss.concentration .* num_parts \(was 8, now 5\)"):
    open_workdir(tmp_path, other)


def test_a_run_begun_before_a_key_was_there_resumes_with_the_keys_default_only(tmp_path):
  config = default_config()
  path = open_workdir(tmp_path, config) / "config.json"
  saved = json.loads(path.read_text())
  del saved["optimizer"]["frozen_modules"], saved["digest"]
  path.write_text(json.dumps(saved))
  open_workdir(tmp_path, config)
  config.optimizer.frozen_modules = ("stem",)
  with pytest.raises(UserError, match=r"optimizer.frozen_modules \(was \(\), now \('stem',\)\)"):
    open_workdir(tmp_path, config)


def test_a_directory_without_a_run_is_not_created_for_evaluation(tmp_path):
  with pytest.raises(UserError, match="holds no run"):
    open_workdir(tmp_path / "none", default_config(), train=False)
  assert not (tmp_path / "none").exists()


def test_an_unwritable_directory_is_a_users_mistake(tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(UserError, match="can't be written"):
    open_workdir(tmp_path / "file" / "run", default_config())


def test_a_damaged_config_is_a_users_mistake(tmp_path):
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(UserError, match=r"config\.json can't be read .*another workdir"):
    open_workdir(tmp_path, default_config())


def test_metrics_after_the_checkpoint_are_dropped_and_a_cut_line_too(tmp_path):
  log = MetricsLog(tmp_path, start_step=0)
  for step in (10, 20, 30):
    log.write(step, {"loss": 1.0 / step})
  log.close()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 40, "lo')
  log = MetricsLog(tmp_path, start_step=20)
  assert read_metrics(tmp_path) == [{"step": 10, "loss": 0.1}, {"step": 20, "loss": 0.05}]
  log.write(30, {"loss": 0.5})
  log.write_image(30, "parts", np.zeros((4, 6, 3), np.uint8))
  log.close()
  steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert steps == [10, 20, 30]
  assert list(tmp_path.glob("events.out.tfevents.*"))


def test_tensorboard_gets_numbers_and_lists_of_them(tmp_path, monkeypatch):
  log, written = MetricsLog(tmp_path, start_step=0), {}

  def keep(step, content):
    written.update({value.tag: round(value.simple_value, 6) for value in content.value})

  monkeypatch.setattr(log, "_write_event", keep)
  results = {"ari": 0.5, "nmi": None, "num_test": 4, "purity": [0.25, None, 1.0]}
  log.write_scalars(10, results, prefix="evaluation")
  log.close()
  assert written == {"evaluation/ari": 0.5, "evaluation/purity/1": 0.25, "evaluation/purity/3": 1.0}
