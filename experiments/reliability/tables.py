"""The tables of README.md, made from the JSON files of results/."""

import collections
import json
import pathlib
from collections.abc import Sequence
from typing import Any

BEGIN, END = "<!-- tables: made by python -m experiments.reliability -->\n", "<!-- end of tables -->\n"


def update(readme: pathlib.Path, results: pathlib.Path) -> None:
  """Replaces the tables of a README."""
  makers = {
    "faults": _faults, "kills": _kills, "corruption": _corruption, "disk": _disk, "soak": _soak
  }  # fmt: skip
  found = {name: results / f"{name}.json" for name in makers}
  parts = [makers[name](json.loads(path.read_text())) for name, path in found.items() if path.exists()]
  text = readme.read_text(encoding="utf-8")
  before, rest = text.split(BEGIN)
  after = rest.split(END)[1]
  readme.write_text(f"{before}{BEGIN}\n" + "\n".join(parts) + f"\n{END}{after}", encoding="utf-8")


def _title(name: str, found: dict[str, Any], entries: Sequence[dict[str, Any]]) -> str:
  cpu = sum(entry["cpu"] for entry in entries)
  settings = found["settings"]
  return (
    f"### {name}\n\nCommit {settings['commit']}, seed {settings['seed']}, {cpu / 60:.0f} minutes of a core.\n"
  )


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def _faults(found: dict[str, Any]) -> str:
  entries, verdicts = found["entries"], ("good", "bad", "dangerous")
  groups: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
  for entry in entries:
    groups[entry["group"]][entry["verdict"]] += 1
  rows = [[name, *(counts[v] for v in verdicts)] for name, counts in groups.items()]
  rows.append(["all", *(sum(counts[v] for counts in groups.values()) for v in verdicts)])
  listed = [f"- {e['fault']}: {e['verdict']}, {e['why']}\n" for e in entries if e["verdict"] != "good"]
  text = _title("Faults", found, entries) + "\n" + _table(["faults", *verdicts], rows)
  return text + ("\n" + "".join(listed) if listed else "")


def _kills(found: dict[str, Any]) -> str:
  entries = found["entries"]
  phases: collections.Counter[str] = collections.Counter()
  for entry in entries:
    phases.update(entry["kills"])
  wrong = [f"- run {i}: {e['wrong'][:300]}\n" for i, e in enumerate(entries) if e["wrong"]]
  damaged = sum(len(entry["damaged"]) for entry in entries)
  starts = sum(entry["starts"] for entry in entries)
  summary = (
    f"{phases.total()} kills in {len(entries)} runs of {starts} starts, {damaged} files damaged between "
    f"them; {len(wrong)} runs ended otherwise than one left alone.\n"
  )
  rows = sorted(phases.items())
  return "\n".join(
    [_title("Kills", found, entries), summary, _table(["killed in", "kills"], rows), "".join(wrong)]
  )


def _corruption(found: dict[str, Any]) -> str:
  kinds = ("right", "noticed", "refused", "other content", "failed")
  entries = [entry for entry in found["entries"] if "run" in entry]
  readers: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
  data: collections.Counter[str] = collections.Counter()
  weights: collections.Counter[str] = collections.Counter()
  for entry in entries:
    for name, counts in entry["run"]["counts"].items():
      readers[name].update(counts)
    data.update(entry["collections"]["outcomes"])
    weights.update(entry["weights"]["outcomes"])
  count = sum(counts.total() for counts in readers.values())
  count += sum(entry[kind]["count"] for entry in entries for kind in ("collections", "weights"))
  rows = [[name, *(counts[kind] for kind in kinds)] for name, counts in readers.items()]
  rows.append(["weight files", weights["read"], 0, weights["refused"], 0, 0])
  rows.append(["collections (their examples)", data["example"], data["bad example"], data["refused"], 0, 0])
  slowest = max(max(entry["run"]["slowest"][0], entry["slowest"][0]) for entry in entries)
  largest = max(max(entry["run"]["largest"][0], entry["memory"]) for entry in entries)
  text = (
    f"{count} files. The slowest took {slowest:.2f} s of a core; none took more than {largest / 1e6:.0f} MB "
    "beyond what the process held. Collections are read whole, and their examples are counted.\n"
  )
  failures = [f for e in found["entries"] for f in (*e["failures"], *e.get("run", {}).get("failures", []))]
  head = ["files", "right content", "noticed: rebuilt or left out", "refused", "other content", "failed"]
  listed = "".join(f"- {failure[:300]}\n" for failure in failures)
  return "\n".join([_title("Corrupted files", found, found["entries"]), text, _table(head, rows), listed])


def _disk(found: dict[str, Any]) -> str:
  entries = found["entries"]
  rows = []
  for command in dict.fromkeys(entry["command"] for entry in entries):
    those = [entry for entry in entries if entry["command"] == command]
    full = sum(entry["code"] == 1 for entry in those)
    rows.append([command, len(those), full, sum(bool(entry["wrong"]) for entry in those)])
  wrong = "".join(
    f"- {e['command']}, {e['bytes']} bytes: {e['wrong'][:300]}\n" for e in entries if e["wrong"]
  )
  head = ["command", "sizes of the disk", "full: one line, then as without", "wrong"]
  return "\n".join([_title("A disk that fills", found, entries), _table(head, rows), wrong])


def _soak(found: dict[str, Any]) -> str:
  (entry,) = found["entries"]
  wrong = entry["wrong"][:500] or "it ended as a run left alone"
  return _title("Soak", found, [entry]) + f"\n{entry['stops']} stops in {entry['steps']} steps: {wrong}.\n"
