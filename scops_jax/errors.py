"""The error for a user's mistake."""


class UserError(Exception):
  """A mistake that the user can fix, in one line; a command prints it and exits without a traceback."""
