"""The error for a user's mistake, and how names from files are shown."""


class UserError(Exception):
  """A mistake the user can mend, said in one line; a command prints it and exits without a traceback."""


def printable(text: str) -> str:
  """Returns text for a terminal: control characters, which names in files may contain, become escapes."""
  return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
