"""An emulator of Google's store on loopback, with an empty bucket: gs://bucket.

gcp-storage-emulator knows nothing of generations in conditions and answers, which TensorStore and locks rely
on; `main` adds them.
"""

import functools
import http
import os
import pathlib
import socket
import socketserver
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

BUCKET = "gs://bucket"
ROOT = pathlib.Path(__file__).parent.parent


def free_port() -> int:
  """Returns a port of loopback that nobody listens on."""
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    return listener.getsockname()[1]


@contextmanager
def emulated_store() -> Iterator[dict[str, str]]:
  """Runs the emulator; yields the environment variables that make gcsfs and TensorStore use it."""
  port = free_port()
  url = f"http://localhost:{port}"
  process = subprocess.Popen([sys.executable, "-m", "tests.emulator", str(port)], cwd=ROOT)
  deadline = time.monotonic() + 120
  try:
    while not _answers(f"{url}/storage/v1/b/bucket"):
      assert process.poll() is None
      assert time.monotonic() < deadline
      time.sleep(0.1)
    yield {
      "STORAGE_EMULATOR_HOST": url,  # for gcsfs
      "TENSORSTORE_GCS_HTTP_URL": url,
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # the emulator has no gRPC endpoint
    }
  finally:
    process.kill()
    process.wait()


def _answers(url: str) -> bool:
  try:
    urllib.request.urlopen(url).close()
  except (urllib.error.URLError, ConnectionError):
    return False
  return True


def main(port: str) -> None:
  """Serves until it is killed."""
  from gcp_storage_emulator import server
  from gcp_storage_emulator.__main__ import main as serve
  from gcp_storage_emulator.handlers import objects

  for _, handlers in server.HANDLERS:
    for method, handle in handlers.items():
      if handle in (objects.get, objects.download, objects.insert, objects.delete):
        handlers[method] = functools.partial(_with_generations, handle)
  socketserver.TCPServer.request_queue_size = 128  # TensorStore opens many connections
  sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - every request is logged there
  serve(["start", "--host=localhost", f"--port={port}", "--in-memory", "--quiet", "--default-bucket=bucket"])


def _with_generations(
  handle: Callable[..., None], request: Any, response: Any, storage: Any, *arguments: Any
) -> None:
  """Checks ifGenerationMatch before a handler of the emulator; answers tell the object's generation."""
  wanted = request.query.get("ifGenerationMatch")
  if wanted and wanted[0] != _generation(request, storage):
    response.status = http.HTTPStatus.PRECONDITION_FAILED
    return
  handle(request, response, storage, *arguments)
  response["x-goog-generation"] = _generation(request, storage)


def _generation(request: Any, storage: Any) -> str:
  """Returns the generation of the object that a request is about; 0 if there is none."""
  from gcp_storage_emulator.exceptions import NotFound

  name = request.params.get("object_id") or (request.query.get("name") or [None])[0]
  if name is None:
    name = request.data.get("meta", request.data)["name"]
  try:
    return str(storage.get_file_obj(request.params["bucket_name"], name)["generation"])
  except NotFound:
    return "0"


if __name__ == "__main__":
  main(sys.argv[1])
