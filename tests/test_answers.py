"""How soon commands answer: help, wrong flags and missing files need no library that takes time to load."""

import pathlib
import re
import resource
import subprocess
import sys

import pytest

from scops_jax.config import config_to_json, default_config

ROOT = pathlib.Path(__file__).parent.parent
TOY = "--config=configs/toy_faces.py"
HEAVY = ("jax", "flax", "tensorflow_datasets", "orbax", "matplotlib", "sklearn")


def answer(module, *arguments):
  """Returns what a command prints, and the heavy libraries that it had loaded by then."""
  code = (
    "import atexit, runpy, sys\n"
    f"atexit.register(lambda: print('loaded', *[n for n in {HEAVY} if n in sys.modules]))\n"
    f"runpy.run_module('scops_jax.{module}', run_name='__main__', alter_sys=True)"
  )
  command = [sys.executable, "-c", code, *arguments]
  result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
  assert "Traceback" not in result.stderr
  *printed, loaded = result.stdout.splitlines()
  return "\n".join([*printed, result.stderr]), loaded.split()[1:]


@pytest.mark.parametrize(
  ("module", "arguments", "expected"),
  [
    ("main", ["--help"], "--config:"),
    ("prepare", ["--help"], "--config:"),
    ("predict", ["--help"], "--images:"),
    ("weights", ["--help"], "drop_head"),
    ("main", ["--config=configs/toy_face.py", "--workdir=none"], "the nearest is configs/toy_faces.py"),
    ("main", [TOY, "--workdir=none", "--config.num_part=4"], "nearest is 'num_parts'"),
    ("main", [TOY, "--workdir=none", "--config.num_parts=-4"], "num_parts=-4 is not in"),
    ("main", [TOY, "--workdir=none", "--config.data.name=fish"], "data.name='fish' is not one of"),
    ("main", [TOY, "--workdir=none", "--wrong"], "wrong"),
    ("main", ["--confg=configs/toy_faces.py", "--workdir=none", "--config.seed=1"], "Did you mean: config"),
    ("main", [TOY], "give --workdir=DIR"),
    (
      "main",
      ["--workdir=none"],
      "give --config=configs/NAME.py: there is none, and no run in --workdir=none",
    ),
    ("main", [TOY, "--workdir=none", "--mode=eval"], "--workdir=none holds no run"),
    ("main", ["--config=configs/celeba.py", "--workdir=none"], "6 of the config's files are missing"),
    ("prepare", ["--config=configs/cub.py"], "4 of the config's files are missing"),
    ("prepare", [], "give --config=configs/NAME.py"),
    ("prepare", [TOY, "--config.num_parts=-4"], "num_parts=-4 is not in"),
    ("predict", ["--workdir=none", "--images=none", "--out=none"], "none"),
    ("export.__main__", ["--help"], "--part_names"),
    ("demo.__main__", ["--help"], "--port"),
    ("demo.__main__", ["--workdir=none"], "there is no such run or .scops file"),
    ("report.__main__", ["--help"], "--against"),
    ("report.__main__", ["none"], "workdir=none holds no run"),
    ("export.__main__", ["--workdir=none", "--out=none.scops"], "there is no such run or .scops file"),
    ("predict", ["--workdir=none", "--images=experiments/toy_faces", "--out=none"], "there is no such run"),
    ("weights", ["none.pth"], "there is no file none.pth"),
    ("weights", [], "no FILE is given"),
  ],
)
def test_answers_without_loading_libraries(module, arguments, expected):
  text, loaded = answer(module, *arguments)
  assert expected in text
  assert loaded == []


def cpu_seconds():
  return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


@pytest.mark.parametrize(
  ("module", "arguments"),
  [
    ("main", [TOY, "--workdir=/dev/null/run"]),
    ("prepare", [TOY, "--config.data.cache_dir=/dev/null/cache"]),
    ("predict", ["--model=toy_faces", "--images=docs/pictures/faces", "--out=/dev/null/out"]),
    ("export", ["--workdir=toy_faces", "--out=/dev/null/out.scops"]),
    ("report", ["{tmp_path}"]),
    ("weights", ["README.md"]),
  ],
)
def test_help_and_the_first_line_come_in_two_seconds(module, arguments, tmp_path):
  """In seconds of the processor, which do not depend on what else the machine does."""
  arguments = [argument.format(tmp_path=tmp_path) for argument in arguments]
  (tmp_path / "config.json").write_text(config_to_json(default_config()))
  (tmp_path / "evaluation.json").write_text("{}")
  program = [sys.executable, "-m", f"scops_jax.{module}"]
  before = cpu_seconds()
  helped = subprocess.run([*program, "--help"], capture_output=True, cwd=ROOT)
  assert helped.stdout
  assert cpu_seconds() - before < 2
  before = cpu_seconds()
  with subprocess.Popen([*program, *arguments], stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
    assert process.stderr.readline().startswith("loading the libraries")
    process.kill()
  assert cpu_seconds() - before < 2


def test_a_run_without_an_evaluation_has_no_report(tmp_path):
  (tmp_path / "config.json").write_text(config_to_json(default_config()))
  text, loaded = answer("report.__main__", str(tmp_path))
  assert re.search(r"evaluation\.json can't be read .*: evaluate the run first", text)
  assert loaded == []


def test_python_without_the_dependencies_is_told_what_to_do():
  # -S: without the installed packages.
  command = [sys.executable, "-S", "-m", "scops_jax.main", TOY, "--workdir=none"]
  result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
  assert result.returncode == 1
  assert result.stderr.startswith(f"error: {sys.executable} has no module 'absl'")
  assert "pip install -e ." in result.stderr or ".venv/bin/python" in result.stderr
