"""Photograph the demo in a call of three, for docs/demo.md: ``python -m tools.screenshots``."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path

from selenium import webdriver

from tests.harness.server import running
from tests.system.browser import chromium, wait_until

DOCS = Path(__file__).parents[1] / "docs"
DESKTOP = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1.25, "mobile": True}


def main() -> None:
    """Write docs/demo-light.png, docs/demo-dark.png, docs/demo-phone.png and docs/demo-rename.png."""
    with running(["--port=0", "--demo", "--metadata-updates"]) as server, tempfile.TemporaryDirectory() as folder:
        with chromium(Path(folder)) as driver:
            url = f"http://127.0.0.1:{server.port}/#team-meeting"
            join(driver, url, "Ada")
            for name in ("Grace", "Joan"):
                driver.switch_to.new_window("window")
                join(driver, url, name)
            converse(driver)
            photograph(driver, "demo-light", DESKTOP, "light")
            photograph(driver, "demo-dark", DESKTOP, "dark")
            driver.switch_to.window(driver.window_handles[2])
            photograph(driver, "demo-phone", PHONE, "light", whole=True)
            rename(driver, "Mary")
            photograph(driver, "demo-rename", DESKTOP, "light")


def join(driver: webdriver.Chrome, url: str, name: str) -> None:
    """Join, and wait until the signaling is open."""
    driver.get(url)
    driver.find_element("id", "name").clear()
    driver.find_element("id", "name").send_keys(name, "\n")
    wait_until(driver, "document.getElementById('state').dataset.state === 'open'")


def converse(driver: webdriver.Chrome) -> None:
    """Have everyone see everyone, and say something."""
    lines = ("Can you see me?", "Yes, and Joan as well.", "Same here. Connected in no time!")
    for handle, line in zip(driver.window_handles, lines, strict=True):
        driver.switch_to.window(handle)
        wait_until(driver, "document.querySelectorAll('.tile[data-picture=yes]').length === 3")
        wait_until(driver, "document.querySelectorAll('.badge[data-level=ok]').length === 2")
        driver.find_element("id", "chat-text").send_keys(line, "\n")
    driver.find_element("id", "mute").click()
    driver.switch_to.window(driver.window_handles[1])
    wait_until(
        driver, "[...document.querySelectorAll('#connections dd')].every((fact) => !/not/.test(fact.textContent))"
    )


def rename(driver: webdriver.Chrome, name: str) -> None:
    """Have one change the name, and show that to another, who is about to do the same."""
    driver.find_element("id", "rename").click()
    driver.switch_to.active_element.send_keys(name, "\n")
    driver.switch_to.window(driver.window_handles[1])
    wait_until(driver, f"[...document.querySelectorAll('.tile bdi')].some((one) => one.textContent === '{name}')")
    driver.find_element("id", "rename").click()


def photograph(driver: webdriver.Chrome, name: str, metrics: dict, theme: str, *, whole: bool = False) -> None:
    """Take one picture of the page as it is.

    Args:
        metrics: of the screen, as ``Emulation.setDeviceMetricsOverride`` takes them.
        whole: whether the page is shown to its end, instead of one screen of it.
    """
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    if whole:
        # Chromium paints sticky elements a little off in what is beyond the screen.
        height = driver.execute_script("return document.documentElement.scrollHeight")
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**metrics, "height": height})
    # Otherwise the picture may show a colour between two.
    media = {"prefers-color-scheme": theme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in media.items()]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
    wait_until(driver, "new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(() => drawn(true))))")
    taken = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    (DOCS / f"{name}.png").write_bytes(base64.b64decode(taken["data"]))


if __name__ == "__main__":
    main()
