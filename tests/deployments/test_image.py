"""The image: its steps are carried out here as far as they need no container."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deployments.dockerfile import TREE, instructions, stage
from tests.harness.server import Server, launch
from tests.programs import unprivileged

ENTRY_POINT = TREE / "deploy" / "docker-entrypoint.sh"
BUILD, FINAL = 1, 2


@pytest.mark.parametrize(
    ("arguments", "started"),
    [
        ([], ["signaling"]),
        (["--metrics", "--port", "9000"], ["signaling", "--metrics", "--port", "9000"]),
        (["-p", "9000"], ["signaling", "-p", "9000"]),
        (["signaling", "--help"], ["signaling", "--help"]),
        (["twistd", "-n", "signaling", "--port", "9000"], ["twistd", "-n", "signaling", "--port", "9000"]),
        (["signaling-probe", "ws://other:8081"], ["signaling-probe", "ws://other:8081"]),
        (["sh", "-c", "a b"], ["sh", "-c", "a b"]),
    ],
    ids=" ".join,
)
def test_options_are_those_of_the_server_and_anything_else_is_a_command(
    tmp_path: Path, arguments: list[str], started: list[str]
) -> None:
    for name in ("signaling", "twistd", "signaling-probe", "sh"):
        program = tmp_path / name
        program.write_text('#!/bin/sh\nprintf "%s\\n" $$ "${0##*/}" "$@"\n')
        program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [ENTRY_POINT, *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        output, _ = process.communicate(timeout=60)
    # The command has taken the place of the shell: signals reach it.
    assert output.splitlines() == [str(process.pid), *started]


def test_the_base_image_is_pinned_for_all_platforms() -> None:
    [base, *stages] = [rest for keyword, rest in instructions() if keyword == "FROM"]
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64} AS base", base)
    assert stages == ["base AS build", "base"]


def test_the_image_runs_without_root_and_receives_signals() -> None:
    last = dict(stage(FINAL))
    assert last["USER"] == "10001:10001"
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(last["ENTRYPOINT"]) == [ENTRY_POINT.name]
    assert "CMD" not in last


def test_the_labels_say_what_the_image_is() -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="(.*?)"', dict(stage(FINAL))["LABEL"]))
    assert set(labels) == {
        *("title", "description", "source", "documentation", "licenses", "version", "revision"),
    }
    assert (labels["version"], labels["revision"]) == ("${VERSION}", "${REVISION}")
    assert labels["licenses"] == "MIT"


def copied(number: int) -> list[str]:
    """Return what a stage copies from the tree."""
    copies = [rest.split() for keyword, rest in stage(number) if keyword == "COPY"]
    from_tree = [copy for copy in copies if not copy[0].startswith("--from")]
    return [source for copy in from_tree for source in copy[:-1] if not source.startswith("--")]


def test_the_servers_user_may_run_the_entry_point_whatever_mode_it_has_in_the_checkout() -> None:
    [copy] = [rest.split() for keyword, rest in stage(FINAL) if keyword == "COPY" and ENTRY_POINT.name in rest]
    assert copy[0] == "--chmod=755"


def test_everything_that_is_copied_is_sent_to_the_builder_and_nothing_else() -> None:
    lines = (TREE / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert {line[1:] for line in lines if line.startswith("!")} == {*copied(BUILD), *copied(FINAL)}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Carry out the steps of the build, in a folder that has only what is copied; returns the venv."""
    folder = tmp_path_factory.mktemp("image")
    source, venv = folder / "source", folder / "app"
    source.mkdir()
    for name in copied(BUILD):
        if (TREE / name).is_dir():
            shutil.copytree(TREE / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(TREE / name, source)
    replacements = {
        r"\bpython3\b": sys.executable,
        r"(?<![-\w])pip ": f"{sys.executable} -m pip --quiet ",
        "/app": str(venv),
    }
    for keyword, rest in stage(BUILD):
        if keyword == "RUN":
            for pattern, replacement in replacements.items():
                rest = re.sub(pattern, replacement, rest)  # noqa: PLW2901
            # What runs compiles itself, and that is less.
            environment = {**os.environ, "PIP_NO_COMPILE": "1"}
            subprocess.run(["sh", "-euc", rest], cwd=source, env=environment, check=True, timeout=280)
    [listing] = [rest for keyword, rest in stage(FINAL) if keyword == "RUN"]
    subprocess.run(["sh", "-euc", listing], env=environment_of(venv), check=True, timeout=60)
    # The image's user may not write there.
    [plugins] = venv.glob("lib/python*/site-packages/twisted/plugins")
    plugins.chmod(0o555)
    return venv


def environment_of(venv: Path) -> dict[str, str]:
    return {**os.environ, "PATH": f"{venv}/bin:{os.environ['PATH']}"}


def start(venv: Path, *arguments: str) -> Server:
    return launch([*unprivileged(), str(ENTRY_POINT), *arguments], env=environment_of(venv), cwd="/")


def test_the_image_has_what_operators_expect(app: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("0" * 32)
    server = start(
        app,
        *("--port=0", "--metrics", f"--auth=jwt:{key}:alg=HS256", "--backplane=rediss://127.0.0.1:1", "--workers=1"),
    )
    try:
        server.wait_until_listening()
        assert b"signaling_build_info" in server.get("/metrics")[1]
        assert "plugin cache" not in server.log
        assert server.stop() == 0
    finally:
        server.end()


def test_the_image_carries_neither_pip_nor_tests(app: Path) -> None:
    assert not [path for path in app.rglob("*") if path.name in ("pip", "test", "tests")]


def test_hadolint_accepts_the_dockerfile() -> None:
    program = Path(sys.executable).parent / "hadolint"
    checked = subprocess.run([program, TREE / "Dockerfile"], capture_output=True, text=True, check=False, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_shell_scripts_are_clean() -> None:
    program = Path(sys.executable).parent / "shellcheck"
    scripts = sorted((TREE / "deploy").rglob("*.sh"))
    checked = subprocess.run([program, *scripts], capture_output=True, text=True, check=False, timeout=60)
    assert checked.returncode == 0, checked.stdout
