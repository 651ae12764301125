"""The error for a user's mistake, and how names from files are shown."""

from collections.abc import Sequence


class UserError(Exception):
  """A mistake that the user can fix, in one line; a command prints it and exits without a traceback.

  Attributes:
    details: lines that a command prints below it, such as one for each missing file.
  """

  def __init__(self, message: str, *, details: Sequence[str] = ()) -> None:
    """Takes the line and what is printed below it."""
    super().__init__("; ".join([message, *details]))
    self.message, self.details = message, tuple(details)


def printable(text: str, length: int | None = 200) -> str:
  """Returns a stranger's text for a terminal: its first `length` characters, control characters escaped.

  A file name's bytes that are not UTF-8 are escaped too.
  """
  shown = text if length is None or len(text) <= length else f"{text[:length]}…"
  return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
