"""A real Firefox, driven by WebDriver BiDi: Debian has no geckodriver, but Firefox speaks BiDi itself."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.programs import need

PREFERENCES = {
    "media.navigator.permission.disabled": True,
    "media.navigator.streams.fake": True,
    "media.autoplay.default": 0,
    "media.peerconnection.ice.loopback": True,
    "media.peerconnection.ice.obfuscate_host_addresses": False,
    # A page in the background is a page all the same.
    "dom.min_background_timeout_value": 4,
    "dom.timeout.enable_budget_timer_throttling": False,
    # Make no request to the network.
    "app.normandy.enabled": False,
    "app.update.disabledForTesting": True,
    "browser.safebrowsing.downloads.remote.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "browser.search.update": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.homepage_override.mstone": "ignore",
    "datareporting.policy.dataSubmissionEnabled": False,
    "extensions.blocklist.enabled": False,
    "extensions.update.enabled": False,
    "media.gmp-manager.updateEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "network.dns.disablePrefetch": True,
    "network.prefetch-next": False,
    "services.settings.server": "data:,#remote-settings-dummy/v1",
    "toolkit.telemetry.enabled": False,
}
START_SECONDS = 60
ANSWER_SECONDS = 60


class Firefox:
    """One window of a running Firefox."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.command("session.new", capabilities={})
        [context] = self.command("browsingContext.getTree")["contexts"]
        self._context = context["context"]

    def command(self, method: str, **parameters: Any) -> Any:
        """Send a command of WebDriver BiDi; returns its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(ANSWER_SECONDS))
            if answer.get("id") == number:
                assert answer["type"] == "success", answer
                return answer["result"]

    def open(self, url: str) -> None:
        """Open a page, and wait until it is loaded."""
        self.command("browsingContext.navigate", context=self._context, url=url, wait="complete")

    def run(self, body: str, *arguments: Any) -> Any:
        """Run the body of an async function in the page; returns what it returns, and fails if it throws.

        Args:
            body: what it returns has to be what JSON can hold.
            arguments: which the body finds in the array ``given``.
        """
        expression = f"(async (given) => {{ {body} }})({json.dumps(arguments)}).then(JSON.stringify)"
        evaluated = self.command(
            "script.evaluate",
            expression=expression,
            target={"context": self._context},
            awaitPromise=True,
            userActivation=True,
        )
        assert evaluated["type"] == "success", evaluated["exceptionDetails"]["text"]
        return json.loads(evaluated["result"].get("value", "null"))


@contextmanager
def firefox(folder: Path) -> Iterator[Firefox]:
    """Run a browser.

    Args:
        folder: for its profile; has to be there.
    """
    lines = (f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in PREFERENCES.items())
    (folder / "user.js").write_text("".join(lines))
    command = [need("firefox-esr"), "--headless", "--profile", str(folder), "--remote-debugging-port=0", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            address = _address(process)
            # Nobody reads what it says later, and a full pipe would stop it.
            threading.Thread(target=process.communicate, daemon=True).start()
            with connect(address, max_size=None) as socket:
                yield Firefox(socket)
        finally:
            process.terminate()
            process.wait(START_SECONDS)


def _address(process: subprocess.Popen[str]) -> str:
    """Read where a starting Firefox speaks BiDi."""
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"WebDriver BiDi listening on (ws://\S+)", line):
            return f"{found[1]}/session"
    raise AssertionError("Firefox ended before it was ready")
