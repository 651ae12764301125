"""How soon commands answer: help, wrong flags and missing files need no library that takes time to load."""

import pathlib
import resource
import subprocess
import sys

import pytest

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


def test_help_and_the_first_line_come_in_two_seconds():
  """In seconds of the processor, which do not depend on what else the machine does."""
  before = cpu_seconds()
  subprocess.run([sys.executable, "-m", "scops_jax.main", "--help"], capture_output=True, cwd=ROOT)
  assert cpu_seconds() - before < 2
  command = [sys.executable, "-m", "scops_jax.main", TOY, "--workdir=/dev/null/run"]
  before = cpu_seconds()
  with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
    assert process.stderr.readline() == "loading the libraries …\n"
    process.kill()
  assert cpu_seconds() - before < 2


def test_python_without_the_dependencies_is_told_what_to_do():
  # -S: without the installed packages.
  command = [sys.executable, "-S", "-m", "scops_jax.main", TOY, "--workdir=none"]
  result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
  assert result.returncode == 1
  assert result.stderr.startswith(f"error: {sys.executable} has no module 'absl'")
  assert "pip install -e ." in result.stderr or ".venv/bin/python" in result.stderr
