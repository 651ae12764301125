"""The embedded collection of drawn faces."""
