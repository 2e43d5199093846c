"""A real Chromium, and the functions that tests run in its pages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from tests.programs import need

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
    "--allow-loopback-in-peer-connection",
)
OPEN_SECONDS = 60


@contextmanager
def chromium(folder: Path, *flags: str) -> Iterator[webdriver.Chrome]:
    """Run a browser.

    Args:
        folder: for its profile.
        flags: on its command line, besides ``FLAGS``.
    """
    options = Options()
    options.binary_location = need("chromium")
    for flag in (*FLAGS, *flags, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(need("chromedriver")))
    try:
        driver.set_script_timeout(OPEN_SECONDS)
        yield driver
    finally:
        driver.quit()


def wait_until(driver: webdriver.Chrome, script: str) -> None:
    """Wait until an expression of the page is true."""
    WebDriverWait(driver, OPEN_SECONDS, 0.05).until(lambda d: d.execute_script(f"return {script}"))


def run(driver: webdriver.Chrome, body: str, *arguments: Any) -> Any:
    """Run the body of an async function in the page; returns what it returns, and fails if it throws.

    Args:
        arguments: which it finds in the array ``given``.
    """
    script = f"""
      const done = arguments[arguments.length - 1], given = [...arguments].slice(0, -1);
      (async () => {{ {body} }})().then(
        (value) => done({{ value }}),
        (error) => done({{ error: `${{error}}\\n${{error?.stack}}` }}),
      );
    """
    outcome = driver.execute_async_script(script, *arguments)
    assert "error" not in outcome, outcome["error"]
    return outcome.get("value")
