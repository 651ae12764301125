"""The report of a run, a page that needs no other file, and the pictures beside it."""
