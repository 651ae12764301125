"""The error for a user's mistake."""


class UserError(Exception):
  """A mistake the user can mend, said in one line; a command prints it and exits without a traceback."""
