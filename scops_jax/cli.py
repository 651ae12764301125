"""The command line of every `python -m scops_jax.…`: --config with its overrides, and one-line errors.

A user's mistake ends with one line on standard error and exit code 1; only a defect shows a traceback. Errors
of the library name its arguments; here they name the flags. SIGINT (Ctrl-C) ends a command with code 130 and
SIGTERM with 143; temporary files are removed, and a second signal ends the process at once.
"""

import ast
import difflib
import functools
import os
import pathlib
import re
import runpy
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import tuple_parser

from scops_jax.config import default_config, flat_values
from scops_jax.errors import UserError, printable

_OVERRIDE, _FILE = "--config.", "--config="
# A config file whose argument is the work directory of a run.
_SAVED_CONFIG = pathlib.Path(__file__).parent / "runs" / "saved_config.py"
_ARGUMENT = re.compile(r"(?<![\w.\-/])([a-z_]+)=")  # of a function, in an error's message
# All keys with their values, which ml_collections lists where one is misspelt.
_FIELDS = re.compile(r"Other fields present:.*?(?=Did you mean|\Z)", re.DOTALL)
_HOME = re.compile(r"^(--[\w.]+=)~(?=/|$)")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SIGNALLED = tuple(128 + number for number in _SIGNALS)  # exit codes


class _NamesParser(tuple_parser.TupleParser):
  """Also takes `a,b` for a tuple, where ml_collections asks for "('a','b')"."""

  def parse(self, argument: Any) -> tuple:
    if isinstance(argument, str):
      try:
        ast.literal_eval(argument)
      except (SyntaxError, ValueError):
        return tuple(name.strip() for name in argument.split(",") if name.strip())
    return super().parse(argument)


config_flags.register_flag_parser_for_type(tuple, _NamesParser())


def train() -> None:
  """The command `scops-train`, python -m scops_jax.main."""
  _run_module("main")


def prepare() -> None:
  """The command `scops-prepare`, python -m scops_jax.prepare."""
  _run_module("prepare")


def predict() -> None:
  """The command `scops-predict`, python -m scops_jax.predict."""
  _run_module("predict")


def report() -> None:
  """The command `scops-report`, python -m scops_jax.report."""
  _run_module("report")


def _run_module(name: str) -> None:
  # As python -m does it: --help then shows the module's text and flags, and processes that predict starts
  # find the main program.
  runpy.run_module(f"scops_jax.{name}", run_name="__main__", alter_sys=True)


def run(command: Callable[..., None], *, argument: str = "", resumes: bool = False) -> None:
  """Parses the flags defined so far, then calls `command`; does not return.

  Args:
    command: called with the positional argument, if it takes one.
    argument: the name of that argument in messages, "FILE"; empty: there is none.
    resumes: whether the config of the run in --workdir is taken where no --config is given.
  """

  def main(argv: Sequence[str]) -> None:
    # tfds warns about every data set that is not in its own catalogue; orbax logs a traceback for each error
    # that it then raises.
    logging.set_verbosity(logging.FATAL)
    arguments, expected = argv[1:], 1 if argument else 0
    if len(arguments) < expected:
      sys.exit(f"error: no {argument} is given; see --help")
    if len(arguments) > expected:
      sys.exit(f"error: unexpected argument {arguments[expected]!r}; options start with --")
    for number in _SIGNALS:
      signal.signal(number, _end)
    sys.unraisablehook = _send_again
    try:
      command(*arguments)
    except UserError as error:
      lines = (f"error: {error.message}", *error.details)
      sys.exit("\n  ".join(printable(as_flags(line), None) for line in lines))
    except SystemExit as ended:
      if isinstance(ended, _EndedBySignal):
        print(f"ended by {ended.name}", file=sys.stderr)  # progress bars are closed by now
      if ended.code in _SIGNALLED:
        _leave(ended.code)
      raise

  app.run(main, flags_parser=functools.partial(_parse, resumes=resumes))


class _EndedBySignal(SystemExit):
  """Ends the command with the code that shells give to a process that a signal ended."""

  def __init__(self, number: int) -> None:
    super().__init__(128 + number)
    self.name = signal.Signals(number).name


def _end(number: int, frame: FrameType | None) -> None:
  """Ends the command as a signal asks; a second signal does so at once."""
  for each in _SIGNALS:
    signal.signal(each, signal.SIG_DFL)
  raise _EndedBySignal(number)


def _send_again(dropped: Any) -> None:
  """Sends a signal again whose exception Python dropped, as it does in callbacks of weak references."""
  ended = dropped.exc_value
  if not (isinstance(ended, SystemExit) and ended.code in _SIGNALLED):
    sys.__unraisablehook__(dropped)
    return
  number = ended.code - 128
  signal.signal(number, _end)
  # Later, since an exception that is raised here is dropped, too.
  threading.Timer(0.01, os.kill, (os.getpid(), number)).start()


def _leave(code: int) -> None:
  """Ends the process without waiting for the libraries' threads, which a signal may find anywhere.

  An interpreter that takes itself apart while one of them computes can end in a segmentation fault.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _parse(argv: Sequence[str], *, resumes: bool) -> list[str]:
  """Returns the positional arguments; an unknown key, a wrong type or an unreadable config file exits."""
  # A shell expands ~ at the beginning of a word only, not in --workdir=~/runs.
  argv = [_HOME.sub(lambda found: found[1] + os.path.expanduser("~"), argument) for argument in argv]
  flags.FLAGS.set_gnu_getopt()  # flags may follow the argument
  try:
    for argument in argv[1:]:
      if argument.startswith(_OVERRIDE):
        check_key(argument[len(_OVERRIDE) :].split("=")[0])
      elif argument.startswith(_FILE):
        check_file(argument[len(_FILE) :])
    if "config" in flags.FLAGS and not any(a == "--config" or a.startswith(_FILE) for a in argv):
      _add_config(argv, _workdir(argv) if resumes else None)
    sys.argv[:] = argv  # where config_flags looks for overrides, behind --config
    positional = flags.FLAGS(argv)
    if "config" in flags.FLAGS and flags.FLAGS["config"].present:
      # A config file is loaded when its value is first read.
      flags.FLAGS.config.keys()
  except UserError as error:
    sys.exit(f"error: {printable(as_flags(str(error)), None)}")
  except (flags.Error, AttributeError, ImportError, KeyError, OSError, TypeError, ValueError) as error:
    sys.exit(f"error: {' '.join(str(error).split())}")
  return positional


def _workdir(argv: Sequence[str]) -> str | None:
  """Returns the value of --workdir, before the flags are parsed."""
  for argument, following in zip(argv, [*argv[1:], None], strict=True):
    if argument == "--workdir":
      return following
    if argument.startswith("--workdir="):
      return argument.removeprefix("--workdir=")
  return None


def _add_config(argv: list[str], workdir: str | None) -> None:
  """Adds --config with the saved config of the run in `workdir`; exits if there is none, but for --help.

  Raises:
    flags.UnrecognizedFlagError: another flag is unknown.
  """
  if any(argument.startswith(("--help", "-help")) or argument in ("-h", "-?") for argument in argv):
    return
  where = (
    f"no run in --workdir={workdir} to take it from" if workdir else "no --workdir of a run to take it from"
  )
  if workdir is None or ("://" not in workdir and not pathlib.Path(workdir, "config.json").exists()):
    for argument in flags.FLAGS(argv, known_only=True)[1:]:
      if argument.startswith("--") and not argument.startswith(_OVERRIDE):
        flags.FLAGS([argv[0], argument])  # raises, with the nearest flag: it may be --config that is misspelt
    sys.exit(f"error: give --config=configs/NAME.py: there is none, and {where}")
  argv.insert(1, f"{_FILE}{_SAVED_CONFIG}:{workdir}")


def print_config(config: ConfigDict) -> None:
  """Prints a line key=value for each key, as --config.KEY=VALUE takes it, and the default if it differs."""
  defaults = flat_values(default_config())
  for key, value in flat_values(config).items():
    line = f"{key}={_shown(value)}"
    print(line if value == defaults[key] else f"{line}  # default: {_shown(defaults[key])}")


def _shown(value: Any) -> str:
  return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def as_flags(message: str) -> str:
  """Returns an error of the library with its arguments as this command's flags: workdir=x → --workdir=x."""
  return _ARGUMENT.sub(lambda found: f"--{found[0]}" if found[1] in flags.FLAGS else found[0], message)


def check_file(argument: str) -> None:
  """Exits unless there is the file of --config=PATH[:ARGUMENT], and its get_config returns a config.

  The message names the nearest file, or the line that raises; config_flags, which runs the file again, would
  show a traceback instead.

  Raises:
    UserError: get_config does.
  """
  name, *arguments = argument.split(":", 1)
  path = pathlib.Path(name)
  if path.is_file():
    try:
      config = runpy.run_path(name)["get_config"](*arguments)
    except UserError:
      raise
    except Exception as error:  # a config file is the user's program
      sys.exit(f"error: --config={argument}: {_complaint(error, name)}")
    if not isinstance(config, ConfigDict):
      sys.exit(
        f"error: --config={argument}: get_config() must return a ConfigDict, not {type(config).__name__}"
      )
    return
  there = {
    found.name: found for folder in ("configs", path.parent) for found in pathlib.Path(folder).glob("*.py")
  }
  nearest = difflib.get_close_matches(path.name, there, n=1, cutoff=0.0)
  hint = f"; the nearest is {there[nearest[0]]}" if nearest else ""
  sys.exit(f"error: --config={argument}: there is no file {path}{hint}")


def _complaint(error: Exception, path: str) -> str:
  """Returns in one line what an error in a config file says, and in which line of the file it arose."""
  if isinstance(error, KeyError) and error.args == ("get_config",):
    return "it must define get_config(), which returns the config"
  text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
  text = _FIELDS.sub("", text)
  lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
  where = f"line {lines[-1]}: " if lines else ""
  return f"{where}{type(error).__name__}: {printable(' '.join(text.split()))}"


def check_key(key: str) -> None:
  """Exits, naming the nearest valid key, unless the config has `key`, such as "loss.concentration"."""
  keys = list(flat_values(default_config()))
  if key not in keys:
    nearest = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)[0]
    sys.exit(
      f"error: there is no config key {key!r}; the nearest is {nearest!r} (scops_jax/config.py has all)"
    )
