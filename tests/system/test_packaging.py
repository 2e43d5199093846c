"""What is shipped, and that it runs wherever it is installed."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.harness.server import running, start
from tests.system.test_options import unprivileged

TREE = Path(__file__).parents[2]
MODULES = {str(path.relative_to(TREE)) for path in (TREE / "signaling").rglob("*.py")}
STATIC = {str(path.relative_to(TREE)) for path in (TREE / "signaling" / "browser").glob("*/*")}
SCHEMAS = {str(path.relative_to(TREE)) for path in (TREE / "signaling" / "schemas").glob("*.json")}
SCRIPTS = {str(path.relative_to(TREE)) for path in (TREE / "signaling" / "backplane" / "redis" / "lua").glob("*.lua")}
SHIPPED = (
    MODULES
    | SCRIPTS
    | STATIC
    | SCHEMAS
    | {
        "signaling/admin/openapi.json",
        "signaling/py.typed",
        "twisted/plugins/signaling_auth.py",
        "twisted/plugins/signaling_plugin.py",
    }
)
METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build sdist and wheel from a copy of what git tracks; returns their folder."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=TREE, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.split():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((TREE / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    return out


def test_the_wheel_holds_the_package_and_the_plugin_and_nothing_else(built: Path) -> None:
    [path] = built.glob("*.whl")
    names = set(zipfile.ZipFile(path).namelist())
    info = {name for name in names if ".dist-info/" in name}
    assert names - info == SHIPPED
    assert {name.partition(".dist-info/")[2] for name in info} == METADATA


def test_the_sdist_holds_what_a_build_needs(built: Path) -> None:
    [path] = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {*SHIPPED, "setup.cfg", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert "twisted/__init__.py" not in names
    assert "twisted/plugins/__init__.py" not in names


def test_a_plain_install_brings_only_what_the_plain_server_needs(built: Path) -> None:
    [path] = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        [metadata] = [wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA")]
    needs = re.findall(r"^Requires-Dist: ([\w-]+)(>=\S+)$", metadata, re.MULTILINE)
    assert {name.lower() for name, _ in needs} == {"twisted", "autobahn", "msgspec", "python-ulid", "websockets"}
    assert "Requires-Python: >=3.11" in metadata
    assert "Name: twisted-signaling" in metadata


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
    subprocess.run(["sh", "-c", command], check=True, timeout=110)
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
    minted = subprocess.run([installed / "signaling-token", "--key", "x"], capture_output=True, check=False)
    assert b"pip install 'twisted-signaling[jwt]'" in minted.stderr


# Finds none of the modules that only POSIX systems have, as on Windows.
WITHOUT_POSIX = """
import importlib, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in {"fcntl", "grp", "pwd", "resource", "termios"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
for name in sys.argv[1:]:
    sys.modules.pop(name, None)
    importlib.import_module(name)
"""


def test_the_clients_are_imported_where_there_is_no_posix() -> None:
    clients = sorted(
        ".".join(path.relative_to(TREE).with_suffix("").parts) for path in (TREE / "signaling" / "client").glob("*.py")
    )
    others = [
        "signaling",
        "signaling.client",
        "signaling.tools.probe",
        "signaling.tools.mint_token",
        "twisted.plugins.signaling_auth",
    ]
    command = [sys.executable, "-c", WITHOUT_POSIX, *others, *clients]
    subprocess.run(command, cwd=TREE, check=True, timeout=60)


def test_a_server_where_there_is_no_posix_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "resource.py").write_text("raise ModuleNotFoundError(\"No module named 'resource'\", name='resource')")
    server = start(env={"PYTHONPATH": str(tmp_path)})
    assert server.process.wait(20) == 1
    server.join()
    needed = "the server needs a POSIX system, for example Linux: Python has no module 'resource' here"
    assert server.log == f"signaling: {needed}; the clients (signaling.client) run anywhere"
