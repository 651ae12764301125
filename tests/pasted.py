"""Stands for `python`, `.venv/bin/python` and `make` where tests/test_snippets.py pastes the docs' commands.

It runs the command as it is given, but for what `main` says: what would take minutes or needs files, hosts or
a network that a test does not have.
"""

import configparser
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
# Training: a few small images, two steps. Flags that come later win, so num_parts and loss weights stay.
TINY = {
  "num_steps": 2,
  "batch_size": 2,
  "image_size": 32,
  "reference_image_size": 33,
  "eval_batch_size": 4,
  "nmf.num_images": 8,
  "nmf.num_iterations": 2,
  "eval_every": 1000,
  "crf.num_iterations": 0,
  "toy_faces.num_train": 12,
  "toy_faces.num_test": 4,
  "data.cache_dir": "cache",
}
# Their images and weights are not here: the command ends where it names them.
WITHOUT_FILES = ("celeba", "aflw", "cub", "pascal")


def main(program: str, arguments: list[str]) -> int:
  if program == "make":  # says what it would do
    real = shutil.which("make", path=f"/usr/local/bin:{os.defpath}")
    command = [real, "--dry-run", *arguments]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode if real else 0
  if arguments[:2] == ["-m", "venv"]:  # no environment, but this stand-in
    target = pathlib.Path(arguments[2], "bin", "python")
    target.parent.mkdir(parents=True)
    shutil.copy(shutil.which("python"), target)
    return 0
  if arguments[:3] == ["-m", "pip", "install"]:  # no installation; the extras must exist
    return _check_extras(arguments)
  arguments = [_placeholders(argument) for argument in arguments]
  command = [sys.executable, *arguments]
  module = arguments[1]
  if module == "experiments.own_images.toy_faces_folder":
    command = [re.sub(r"^--num=\d+$", "--num=16", argument) for argument in command]
  if module == "experiments.losses":  # a minute; tests/test_loss_studies.py runs it with less effort
    helped = subprocess.run([*command, "--help"], capture_output=True, text=True)
    return 0 if "--out" in helped.stdout else 1
  if module not in ("scops_jax.main", "scops_jax.prepare") or "--print_config" in arguments:
    return subprocess.run(command).returncode
  if any("dinov" in a for a in arguments) or "--multihost" in arguments:  # no such weights, no other hosts
    return subprocess.run([*command, "--print_config"], stdout=subprocess.DEVNULL).returncode
  if any(re.match(rf"--config=configs/({'|'.join(WITHOUT_FILES)})", a) for a in arguments):
    result = subprocess.run(command, capture_output=True, text=True)
    return 0 if "of the config's files are missing" in result.stderr else result.returncode or 1
  if not any(a.startswith("--config=") for a in arguments):  # a run's own config; goes on for two steps
    return subprocess.run([re.sub(r"(?<=^--config.num_steps=)\d+$", "4", a) for a in command]).returncode
  given = {a.removeprefix("--config.").split("=")[0] for a in arguments if a.startswith("--config.")}
  tiny = [f"--config.{key}={value}" for key, value in TINY.items() if key not in given]
  return subprocess.run([*command, *tiny]).returncode


def _placeholders(argument: str) -> str:
  """Replaces FILE by a weight file that is here."""
  if "FILE" not in argument:
    return argument
  from scops_jax.weights import imagenet_weights_path

  return argument.replace("FILE", str(imagenet_weights_path("efficientnet_lite0")))


def _check_extras(arguments: list[str]) -> int:
  setup = configparser.ConfigParser()
  setup.read(ROOT / "setup.cfg")
  extras = setup["options.extras_require"]
  asked = [name for argument in arguments for name in re.findall(r"(?<=\[).*(?=\])", argument)]
  return any(extra not in extras for name in asked for extra in name.split(","))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1], sys.argv[2:]))
