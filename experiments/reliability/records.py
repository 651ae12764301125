"""A JSON file that grows by an entry at a time, and lets an interrupted phase go on."""

import json
import pathlib
from typing import Any

from scops_jax.storage.files import replacing


class Records:
  """The entries of a phase, each written before the next begins."""

  def __init__(self, path: pathlib.Path, **settings: Any) -> None:
    """Opens the file; one of other settings is begun anew."""
    self._path, self._settings = path, settings
    self.entries: list[dict[str, Any]] = []
    if path.exists():
      before = json.loads(path.read_text(encoding="utf-8"))
      if before["settings"] == settings:
        self.entries = before["entries"]

  def add(self, entry: dict[str, Any]) -> None:
    """Appends an entry and writes the file."""
    self.entries.append(entry)
    lines = ",\n".join(json.dumps(each) for each in self.entries)
    with replacing(self._path) as temporary:
      temporary.write_text(f'{{"settings": {json.dumps(self._settings)}, "entries": [\n{lines}\n]}}\n')
