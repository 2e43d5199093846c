"""What the sdist and the wheel hold, and that the server runs wherever the wheel is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest
from readme_renderer.markdown import render

from signaling._version import VERSION
from tests.harness.server import running
from tests.programs import unprivileged

TREE = Path(__file__).parents[2]
METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of sdist and wheel: DISTRIBUTIONS, or one where they are built from what git would track."""
    if folder := os.environ.get("DISTRIBUTIONS"):
        return TREE / folder
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((TREE / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=280)
    return out


def tracked() -> set[str]:
    """Name the files that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=TREE, capture_output=True, text=True, check=True).stdout.split("\0")
    return {name for name in listed if name and (TREE / name).exists()}


@pytest.fixture(scope="module")
def metadata(built: Path) -> Message:
    """Return what the wheel states about the project."""
    [path] = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        [text] = [wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA")]
    return message_from_string(text)


def test_the_wheel_holds_the_package_and_the_plugin_and_nothing_else(built: Path) -> None:
    [path] = built.glob("*.whl")
    names = set(zipfile.ZipFile(path).namelist())
    info = {name for name in names if ".dist-info/" in name}
    assert names - info == {name for name in tracked() if name.startswith(("signaling/", "twisted/"))}
    assert {name.partition(".dist-info/")[2] for name in info} == METADATA


def test_the_sdist_holds_what_git_tracks(built: Path) -> None:
    [path] = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        files = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert {name for name in files if not name.startswith("twisted_signaling.egg-info/")} == tracked() | {"PKG-INFO"}


def test_the_tests_of_an_unpacked_sdist_are_found(built: Path, tmp_path: Path) -> None:
    [path] = built.glob("*.tar.gz")
    # The first releases of Python 3.11 cannot extract safely, and later ones warn if they are not asked to.
    subprocess.run(["tar", "-xf", path, "-C", tmp_path], check=True, timeout=60)
    [unpacked] = tmp_path.iterdir()
    folders = ["tests/unit", "tests/system", "tests/packages"]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *folders]
    found = subprocess.run(command, cwd=unpacked, capture_output=True, text=True, timeout=280, check=False)
    assert found.returncode == 0, found.stdout[-2_000:] + found.stderr
    assert re.search(r"\d{3,} tests collected", found.stdout)


def test_a_plain_install_brings_only_what_the_plain_server_needs(metadata: Message) -> None:
    needs = re.findall(r"^([\w-]+)>=[\d.]+$", "\n".join(metadata.get_all("Requires-Dist", [])), re.MULTILINE)
    assert {name.lower() for name in needs} == {"twisted", "autobahn", "msgspec", "python-ulid", "websockets"}


def test_the_metadata_is_whole(metadata: Message) -> None:
    assert metadata["Name"] == "twisted-signaling"
    assert metadata["Version"] == VERSION
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    links = [url.partition(", ")[0] for url in metadata.get_all("Project-URL", [])]
    assert set(links) == {"Documentation", "Source", "Changelog", "Issues"}


def test_the_description_on_pypi_has_no_relative_links(metadata: Message) -> None:
    text = metadata.get_payload()
    assert isinstance(text, str)
    rendered = render(text)
    assert rendered
    targets = re.findall(r'(?:href|src)="([^"]*)"', rendered)
    assert len(targets) > 10
    # The anchors of headings have other names than on GitHub.
    right = ("https://", "http://localhost", "#user-content-")
    assert [target for target in targets if not target.startswith(right)] == []


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel as the systemd unit says, for users who may not write there; returns its programs' folder."""
    folder = tmp_path_factory.mktemp("installed")
    [wheel] = built.glob("*.whl")
    [command] = re.findall(
        r"^# (python3 -m venv .*)$", (TREE / "deploy" / "signaling.service").read_text(), re.MULTILINE
    )
    # This pip installs as the new one would, which takes seconds to be made; what runs compiles itself.
    pip = f"{sys.executable} -m pip --python {folder}/bin/python --disable-pip-version-check install --no-compile"
    replacements = {
        "/opt/signaling/bin/pip install . ": f"{pip} --quiet {wheel} ",
        "python3 -m venv ": f"{sys.executable} -m venv --without-pip ",
        "/opt/signaling": str(folder),
    }
    for documented, faster in replacements.items():
        assert documented in command
        command = command.replace(documented, faster)
    subprocess.run(["sh", "-c", command], check=True, timeout=280)
    [plugins] = folder.glob("lib/python*/site-packages/twisted/plugins")
    plugins.chmod(0o555)
    return folder / "bin"


def test_a_wheel_serves_from_any_folder_and_any_user(installed: Path, tmp_path: Path) -> None:
    twistd = [*unprivileged(), str(installed / "twistd")]
    listed = subprocess.run([*twistd, "--help"], cwd="/", capture_output=True, text=True, check=True, timeout=60)
    assert re.search(r"^\s+signaling\s+A WebRTC signaling server", listed.stdout, re.MULTILINE)
    with running(command=twistd, cwd=tmp_path) as server:
        assert server.stop() == 0
        assert "plugin cache" not in server.log
    assert (installed / "signaling-health").exists()
    command = [*unprivileged(), str(installed / "signaling"), "--port=7", "--check-config"]
    checked = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True, timeout=60)
    assert "port = 7  # command line" in checked.stdout.splitlines()
    for command in ("signaling", "twistd"):
        arguments = ["--version"] if command == "signaling" else ["signaling", "--version"]
        done = subprocess.run([installed / command, *arguments], cwd="/", capture_output=True, text=True, check=True)
        assert done.stdout == f"twisted-signaling {VERSION}\n"
    minted = subprocess.run([installed / "signaling-token", "--key", "x"], capture_output=True, check=False)
    assert b"pip install 'twisted-signaling[jwt]'" in minted.stderr
