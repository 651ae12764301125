"""The command line's checks, without a process of its own (tests/test_train.py has those)."""

import pathlib
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from scops_jax.cli import as_flags, check_file, check_key
from scops_jax.config import config_to_json, default_config, flat_values

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize("key", ["seed", "loss.concentration", "data.landmark_normalizer"])
def test_known_keys_pass(key):
  check_key(key)


@pytest.mark.parametrize(
  ("key", "nearest"),
  [("num_part", "num_parts"), ("loss.concentraton", "loss.concentration"), ("batchsize", "batch_size")],
)
def test_unknown_keys_name_the_nearest(key, nearest):
  with pytest.raises(SystemExit, match=f"nearest is '{nearest}'"):
    check_key(key)


def test_a_section_is_not_a_key():
  with pytest.raises(SystemExit, match="no config key 'loss'"):
    check_key("loss")


@pytest.mark.parametrize(
  ("text", "names"),
  [
    ("relu5_2,relu5_4", ("relu5_2", "relu5_4")),
    ("stem, block", ("stem", "block")),
    ("norm", ("norm",)),
    ("('relu5_2','relu5_4')", ("relu5_2", "relu5_4")),
    ("", ()),
    ("()", ()),
  ],
)
def test_several_values_are_separated_by_commas(text, names):
  overrides = {"config.reference_layers": text}
  arguments = ["main", f"--config={CONFIGS / 'toy_faces.py'}", *(f"--{k}={v}" for k, v in overrides.items())]
  values = flags.FlagValues()
  config = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
  values(arguments)
  assert config.value.reference_layers == names


def printed_config(*arguments):
  command = [sys.executable, "-m", "scops_jax.main", *arguments, "--print_config"]
  result = subprocess.run(command, capture_output=True, text=True, cwd=CONFIGS.parent, check=True)
  return result.stdout.splitlines()


def test_print_config_shows_every_key_as_a_flag_takes_it():
  lines = printed_config("--config=configs/celeba.py", "--config.optimizer.frozen_modules=stem,block0_")
  assert {line.split("=")[0] for line in lines} == set(flat_values(default_config()))
  assert "optimizer.frozen_modules=stem,block0_  # default: " in lines
  assert "reference_layers=relu5_2,relu5_4  # default: block10_depthwise" in lines
  assert "seed=0" in lines


def test_a_run_gives_its_own_config(tmp_path):
  config = default_config()
  config.num_parts, config.reference_layers = 5, ("stem",)
  (tmp_path / "config.json").write_text(config_to_json(config))
  lines = printed_config(f"--workdir={tmp_path}", "--config.num_steps=77")
  assert "num_parts=5  # default: 8" in lines
  assert "num_steps=77  # default: 100000" in lines
  assert "reference_layers=stem  # default: block10_depthwise" in lines


def test_the_librarys_errors_name_flags_in_a_command():
  assert "v" in flags.FLAGS  # absl's own; stands for any flag
  assert (
    as_flags("v=3 is wrong: try v=2, data.v=2 or x/v=2") == "--v=3 is wrong: try --v=2, data.v=2 or x/v=2"
  )
  assert as_flags("nosuchflag=3 is wrong") == "nosuchflag=3 is wrong"


@pytest.mark.parametrize("end", ["signal.raise_signal(15)", "raise_(SystemExit(143))"])
def test_a_signal_whose_exception_python_drops_ends_the_command(end):
  code = f"""
import signal, time, weakref
from scops_jax import cli

def raise_(error):
  raise error

def command():
  thing = type("Thing", (), {{}})()
  kept = weakref.ref(thing, lambda _: {end})
  del thing
  time.sleep(60)

cli.run(command)
"""
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
  assert (result.returncode, result.stderr) == (143, "ended by SIGTERM\n")


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    (
      "from scops_jax.config import default_config\ndef get_config():\n  default_config().num_stepz = 1\n",
      'line 3: AttributeError: .*locked\\. Did you mean "num_steps" instead of "num_stepz"',
    ),
    ("def get_config(:\n", r"SyntaxError: .*line 1"),
    ("def get_config():\n  return {}['a']\n", "line 2: KeyError: a$"),
    ("config = 1\n", r"it must define get_config\(\)"),
    ("def get_config():\n  pass\n", "must return a ConfigDict, not NoneType"),
    (
      "from scops_jax.config import default_config\ndef get_config():\n  default_config().zzqqxx = 1\n",
      "line 3: AttributeError: .*zzqqxx.*locked",
    ),
  ],
)
def test_errors_in_a_config_file_take_one_line(tmp_path, text, expected):
  path = tmp_path / "mine.py"
  path.write_text(text)
  with pytest.raises(SystemExit, match=expected) as raised:
    check_file(str(path))
  assert len(str(raised.value)) < 500
  assert "\n" not in str(raised.value)


def test_the_home_folder_in_a_flag_is_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  lines = printed_config(
    "--config=configs/toy_faces.py", "--config.data.dir=~/faces", "--config.data.cache_dir=a~/b"
  )
  assert f"data.dir={tmp_path}/faces  # default: data" in lines
  assert "data.cache_dir=a~/b  # default: data/tfds" in lines
