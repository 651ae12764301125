"""An emulator of Google's store on loopback, with an empty bucket: gs://bucket."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

BUCKET = "gs://bucket"


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
  command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host=localhost", f"--port={port}"]
  command += ["--in-memory", "--quiet", f"--default-bucket={BUCKET.removeprefix('gs://')}"]
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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
