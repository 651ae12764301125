"""The error for a user's mistake, and how names from files are shown."""


class UserError(Exception):
  """A mistake that the user can fix, in one line; a command prints it and exits without a traceback."""


def printable(text: str, length: int | None = 200) -> str:
  """Returns a stranger's text for a terminal: its first `length` characters, control characters escaped.

  A file name's bytes that are not UTF-8 are escaped too.
  """
  shown = text if length is None or len(text) <= length else f"{text[:length]}…"
  return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
