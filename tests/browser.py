"""A headless Chromium for tests of pages, found on the machine and never downloaded."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

# Nothing but the page: no network, no first-run pages, no state of another run.
FLAGS = (
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--hide-scrollbars",
  "--force-device-scale-factor=1",
)


def missing() -> str:
  """Returns what the machine lacks, or nothing."""
  lacking = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
  return (
    f"no {' and no '.join(lacking)} on this machine (Debian: chromium, chromium-driver)" if lacking else ""
  )


@contextmanager
def open_browser(profile) -> Iterator[webdriver.Chrome]:
  """Yields a browser whose state lives in `profile`, an empty folder."""
  options = webdriver.ChromeOptions()
  options.binary_location = shutil.which("chromium")
  for flag in (*FLAGS, f"--user-data-dir={profile}"):
    options.add_argument(flag)
  options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
  # With a path given Selenium looks for no driver of its own.
  driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
  try:
    yield driver
  finally:
    driver.quit()


def requested(driver: webdriver.Chrome) -> set[str]:
  """Returns the addresses that were asked for since the last call, from the browser's network log."""
  events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
  return {
    event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
  }


def set_viewport(driver: webdriver.Chrome, width: int, height: int, *, dark: bool = False) -> None:
  """Gives the page this many CSS pixels, which a window can't have below some width, and a colour scheme."""
  metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
  driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
  feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
  driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
