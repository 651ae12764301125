"""What a run logs beside metrics.jsonl: config and part areas for TensorBoard; Weights & Biases if asked."""

import importlib.util
import sys
import types

import pytest
from tensorboardX.proto.event_pb2 import Event

from scops_jax.config import default_config
from scops_jax.errors import UserError
from scops_jax.runs.metrics import MetricsLog


def events(folder):
  """Yields the summaries' values of TensorBoard's file: records of a length, a checksum, data, a checksum."""
  (path,) = folder.glob("events.out.tfevents.*")
  data, start = path.read_bytes(), 0
  while start < len(data):
    length = int.from_bytes(data[start : start + 8], "little")
    yield from Event.FromString(data[start + 12 : start + 12 + length]).summary.value
    start += length + 16


def test_tensorboard_gets_the_config_and_the_part_areas(tmp_path):
  log = MetricsLog(tmp_path, start_step=0, config=default_config())
  log.write_scalars(3, {"part_area_fractions": [0.25, 0.75], "nmi": None}, prefix="evaluation")
  log.close()
  values = {value.tag: value for value in events(tmp_path)}
  (text,) = [value for tag, value in values.items() if tag.startswith("config")]
  assert b"loss.balance=0.0" in text.tensor.string_val[0]
  assert values["evaluation/part_area_fractions/2"].simple_value == 0.75


class FakeWandb(types.ModuleType):
  """Keeps what it is given."""

  def __init__(self):
    super().__init__("wandb")
    self.__spec__ = importlib.util.spec_from_loader("wandb", loader=None)
    self.begun, self.logged, self.finished = [], [], 0

  def init(self, **options):
    self.begun.append(options)
    return self

  def log(self, scalars, step):
    self.logged.append((step, scalars))

  def finish(self):
    self.finished += 1


def test_weights_and_biases_gets_what_tensorboard_gets(tmp_path, monkeypatch):
  wandb = FakeWandb()
  monkeypatch.setitem(sys.modules, "wandb", wandb)
  config = default_config()
  config.wandb_project = "parts"
  for start in (0, 1):
    log = MetricsLog(tmp_path / "run", start_step=start, config=config)
    log.write(start + 1, {"loss": 2.0})
    log.close()
  first, second = wandb.begun
  assert (first["project"], first["name"], first["config"]["num_parts"]) == ("parts", "run", 8)
  assert (first["id"], first["resume"]) == (second["id"], "allow")
  assert wandb.logged == [(1, {"train/loss": 2.0}), (2, {"train/loss": 2.0})]
  assert wandb.finished == 2


def test_all_logs_are_closed_even_if_one_fails(tmp_path, monkeypatch):
  wandb = FakeWandb()
  monkeypatch.setitem(sys.modules, "wandb", wandb)
  config = default_config()
  config.wandb_project = "parts"
  log = MetricsLog(tmp_path, start_step=0, config=config)

  def fail():
    raise OSError("disk full")

  monkeypatch.setattr(log._events, "close", fail)
  with pytest.raises(UserError, match="disk full"):
    log.close()
  assert log._file.closed
  assert wandb.finished == 1


def test_without_a_project_wandb_is_not_imported(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)  # an import would raise
  MetricsLog(tmp_path, start_step=0, config=default_config()).close()


def test_a_missing_package_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  config = default_config()
  config.wandb_project = "parts"
  with pytest.raises(UserError, match=r"pip install 'scops_jax\[wandb\]'"):
    MetricsLog(tmp_path, start_step=0, config=config)


def test_an_error_of_wandb_is_the_users(tmp_path, monkeypatch):
  wandb = FakeWandb()
  wandb.init = lambda **options: (_ for _ in ()).throw(RuntimeError("not signed in"))
  monkeypatch.setitem(sys.modules, "wandb", wandb)
  config = default_config()
  config.wandb_project = "parts"
  with pytest.raises(UserError, match="can't begin: not signed in"):
    MetricsLog(tmp_path, start_step=0, config=config)
