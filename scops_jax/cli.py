"""The command line of every `python -m scops_jax.…`: --config with its overrides, and one-line errors.

A user's mistake ends with one line on standard error and exit code 1, Ctrl-C with one line and 130; only a
defect shows a traceback.
"""

import difflib
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import ConfigDict

from scops_jax.config import default_config
from scops_jax.errors import UserError, printable

_OVERRIDE = "--config."


def run(command: Callable[..., None], *, argument: str = "") -> None:
  """Parses the flags defined so far, then calls `command`; does not return.

  Args:
    command: called with the positional argument, if it takes one.
    argument: the name of that argument in messages, "FILE"; empty: there is none.
  """

  def main(argv: Sequence[str]) -> None:
    # tfds warns about every data set that is not in its own catalogue.
    logging.set_verbosity(logging.ERROR)
    arguments, expected = argv[1:], 1 if argument else 0
    if len(arguments) < expected:
      sys.exit(f"error: no {argument} is given; see --help")
    if len(arguments) > expected:
      sys.exit(f"error: unexpected argument {arguments[expected]!r}; options start with --")
    try:
      command(*arguments)
    except UserError as error:
      sys.exit(f"error: {printable(str(error))}")
    except KeyboardInterrupt:
      print("interrupted", file=sys.stderr)
      sys.exit(130)  # as a shell reports SIGINT

  app.run(main, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
  """Returns the positional arguments; an unknown key, a wrong type or an unreadable config file exits."""
  for argument in argv[1:]:
    if argument.startswith(_OVERRIDE):
      check_key(argument[len(_OVERRIDE) :].split("=")[0])
  flags.FLAGS.set_gnu_getopt()  # flags may follow the argument
  try:
    positional = flags.FLAGS(argv)
    if "config" in flags.FLAGS and flags.FLAGS["config"].present:
      # A config file is loaded when its value is first read.
      flags.FLAGS.config.keys()
  except (flags.Error, AttributeError, ImportError, KeyError, OSError, TypeError, ValueError) as error:
    sys.exit(f"error: {' '.join(str(error).split())}")
  return positional


def check_key(key: str) -> None:
  """Exits, naming the nearest valid key, unless the config has `key`, such as "loss.concentration"."""
  keys = list(_keys(default_config()))
  if key not in keys:
    nearest = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)[0]
    sys.exit(
      f"error: there is no config key {key!r}; the nearest is {nearest!r} (scops_jax/config.py has all)"
    )


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
  keys: list[str] = []
  for key, value in config.items():
    keys += _keys(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [prefix + key]
  return keys
