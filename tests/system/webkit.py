"""A real WebKit: the engine of Safari, as Debian builds it for GTK, which is without WebRTC."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.webkitgtk.options import Options
from selenium.webdriver.webkitgtk.service import Service

from tests.programs import missing, need
from tests.system.browser import OPEN_SECONDS


@contextmanager
def display() -> Iterator[str]:
    """Run an X server without a screen; yields its name."""
    read, write = os.pipe()
    command = [need("Xvfb"), "-displayfd", str(write), "-nolisten", "tcp"]
    with os.fdopen(read) as number, subprocess.Popen(command, pass_fds=[write], stderr=subprocess.DEVNULL) as server:
        os.close(write)
        try:
            yield f":{int(number.readline())}"
        finally:
            server.terminate()


@contextmanager
def webkit() -> Iterator[webdriver.WebKitGTK]:
    """Run a browser, with a profile that is forgotten."""
    driver_path = need("WebKitWebDriver")
    browsers = sorted(Path("/usr/lib").glob("*/webkit2gtk-4.*/MiniBrowser"))
    if not browsers:
        raise missing("MiniBrowser of WebKitGTK")
    options = Options()
    options.binary_location = str(browsers[-1])
    options.add_argument("--automation")
    options.set_capability("webkitgtk:browserOptions", {"binary": options.binary_location, "args": ["--automation"]})
    with display() as name:
        service = Service(driver_path, env={**os.environ, "DISPLAY": name, "GDK_BACKEND": "x11"})
        driver = webdriver.WebKitGTK(options=options, service=service)
        try:
            driver.set_script_timeout(OPEN_SECONDS)
            yield driver
        finally:
            driver.quit()
