"""The configuration: complete, locked, checked."""

import json
import pathlib
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from scops_jax.config import check_values, config_from_json, default_config, release_config
from scops_jax.errors import UserError
from scops_jax.runs.sizes import choose_sizes
from scops_jax.runs.workdir import open_workdir

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.py"))
RELEASE = ("celeba", "aflw", "cub", "pascal")


@pytest.fixture
def parse(monkeypatch, tmp_path):
  """Returns a config as a command line gives it, from a directory that holds no configs/."""
  monkeypatch.chdir(tmp_path)

  def parsed(name, *overrides):
    path = CONFIGS[0].with_name(name)
    arguments = ["main", f"--config={path}", *(f"--config.{override}" for override in overrides)]
    monkeypatch.setattr(sys, "argv", arguments)  # config_flags looks for overrides there
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values)
    values(arguments)
    return config.value

  return parsed


@pytest.mark.parametrize("make_config", [default_config, release_config])
def test_release_weights_follow_from_the_changed_reductions(make_config):
  config = make_config()
  # 10 / B and 1000 / (K + 1) at B = 6, K = 8; the others are the release's.
  assert config.loss.concentration == pytest.approx(1.6667, abs=1e-4)
  assert config.loss.equivariance == pytest.approx(111.1, abs=0.02)
  assert (config.loss.landmark_equivariance, config.loss.semantic_consistency) == (100.0, 1e4)
  assert config.loss.orthonormality == 0.1


@pytest.mark.parametrize("name", RELEASE)
def test_release_weights_follow_overrides(name, parse):
  loss = parse(f"{name}.py", "num_parts=4", "batch_size=8").loss
  assert (loss.concentration, loss.equivariance) == (1.25, 200.0)


def test_the_config_string_and_the_override_of_k_give_the_same(parse):
  four = parse("celeba.py:4")
  assert four.loss.equivariance == 200.0
  assert parse("celeba.py", "num_parts=4").to_dict() == four.to_dict()
  assert parse("celeba.py:4", "num_parts=8").to_dict() == parse("celeba.py").to_dict()


def test_a_given_weight_is_kept(parse):
  for overrides in (("loss.equivariance=50", "num_parts=4"), ("num_parts=4", "loss.equivariance=50")):
    config = parse("celeba.py", *overrides)
    assert (config.loss.equivariance, config.num_parts) == (50.0, 4)
    assert isinstance(config.loss.equivariance, float)
    config.num_parts = 6
    assert config.loss.equivariance == 50.0


def test_weights_that_follow_are_locked_and_typed(parse):
  config = parse("celeba.py", "num_parts=4")
  assert config.is_locked
  with pytest.raises(TypeError):
    config.loss.equivariance = "many"
  with pytest.raises(TypeError):
    config.num_parts = 4.5
  with pytest.raises(flags.IllegalFlagValueError, match=r"loss\.equivariance"):
    parse("celeba.py", "loss.equivariance=many")


def test_a_batch_of_none_is_named_before_a_weight_divides_by_it(parse):
  with pytest.raises(UserError, match=r"batch_size=0 is not in \[1, "):
    check_values(parse("celeba.py", "batch_size=0"))


def test_weights_follow_what_the_collection_decides(parse, tmp_path):
  config = parse("celeba.py", "num_parts=0")
  (tmp_path / "config.json").write_text(json.dumps({**config.to_dict(), "num_parts": 4}))
  chosen = choose_sizes(config, None, workdir=tmp_path)  # no collection: the run has a number of parts
  assert (chosen.num_parts, chosen.loss.equivariance) == (4, 200.0)
  chosen.num_parts = 9
  assert chosen.loss.equivariance == 200.0  # nothing refers to anything any more
  assert config.num_parts == 0
  assert chosen.is_locked


def test_a_saved_config_holds_numbers_and_resumes(parse, tmp_path):
  config, workdir = parse("celeba.py", "num_parts=4", "batch_size=8"), tmp_path / "run"
  open_workdir(workdir, config)
  saved = json.loads((workdir / "config.json").read_text())
  assert (saved["loss"]["concentration"], saved["loss"]["equivariance"]) == (1.25, 200.0)
  again = config_from_json(saved)
  assert again.to_dict() == config.copy_and_resolve_references().to_dict() == config.to_dict()
  again.num_parts = 5
  assert again.loss.equivariance == 200.0
  open_workdir(workdir, parse("celeba.py:4", "batch_size=8"))
  with pytest.raises(UserError, match=r"loss\.equivariance \(was 200\.0, now 50\.0\)"):
    open_workdir(workdir, parse("celeba.py:4", "batch_size=8", "loss.equivariance=50"))


def test_terms_beyond_the_paper_are_off_by_default():
  loss = default_config().loss
  assert loss.background == loss.balance == loss.potts == 0.0
  assert not default_config().semantic_assigned
  assert default_config().spatial.mirror_probability == 0.0


def test_the_config_is_locked():
  config = default_config()
  with pytest.raises(AttributeError, match="num_parts"):
    config.num_part = 4
  with pytest.raises(TypeError):
    config.num_parts = "many"
  with pytest.raises(AttributeError):
    config.loss.semantic = 1.0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_are_valid_and_have_the_same_keys(path, parse):
  config = parse(path.name)
  check_values(config)
  assert config.is_locked
  assert config.to_dict().keys() == default_config().to_dict().keys()


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("num_parts", -1, r"num_parts=-1 is not in \[0, 255\], where 0 lets the collection decide"),
    ("checkpoint_every", 0, r"checkpoint_every=0 is not in \[1, 1e9\]"),
    ("num_parts", 300, r"not in \[0, 255\]"),
    ("batch_size", -1, "batch_size=-1"),
    ("parallelism", "threads", "parallelism='threads' is not one of jit, pmap"),
    ("spatial.mode", "affine", "spatial.mode='affine'"),
    ("optimizer.name", "lion", "sgd, adam"),
    ("spatial.scale_low", 3.0, "scale_high"),
    ("crf.num_iterations", -1, r"crf\.num_iterations=-1 is not in"),
    ("crf.color_sigma", 0.0, r"crf\.color_sigma=0\.0 is not in \(0, "),
    ("data.landmark_normalizer", "eyes", "inter_ocular"),
    ("signed_features.method", "none", "split, minimum, pca"),
    ("sync_batch_norm", False, "sync_batch_norm=False needs parallelism"),
    ("predict_scales", (), r"predict_scales=\(\) is not one or more numbers in \(0, 4\], such as 1\.0,1\.5"),
    ("data.dir", "~/faces", r"data\.dir=~/faces: a config file needs the whole path"),
    ("predict_scales", (1.0, 0.0), r"predict_scales=\(1\.0, 0\.0\)"),
    ("predict_scales", (float("nan"),), "predict_scales"),
    ("predict_scales", ("large",), "predict_scales"),
  ],
)
def test_wrong_values_name_key_and_choices(key, value, message):
  config = default_config()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(UserError, match=message):
    check_values(config)


@pytest.mark.parametrize(("text", "scales"), [("1,1.5", (1, 1.5)), ("(2.0,)", (2.0,)), ("1.25", (1.25,))])
def test_scales_are_given_as_numbers(text, scales, parse):
  config = parse("folder.py", f"predict_scales={text}")
  check_values(config)
  assert config.predict_scales == scales


def test_repeated_updates_are_of_sgd():
  config = default_config()
  config.optimizer.repeat_updates = True
  check_values(config)
  config.optimizer.name = "adam"
  with pytest.raises(UserError, match=r"optimizer\.repeat_updates=True needs optimizer\.name"):
    check_values(config)
