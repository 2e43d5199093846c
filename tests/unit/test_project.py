"""What the project's files state about versions, dependencies and workflows, each in one place or alike."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from setup import absolute_links
from signaling._version import VERSION
from tools import release

TREE = Path(__file__).parents[2]
PROJECT = tomllib.loads((TREE / "pyproject.toml").read_text())
WORKFLOWS = sorted((TREE / ".github" / "workflows").glob("*.yml"))
IMAGE_EXTRAS = ["metrics", "jwt", "cluster", "tls"]


def workflow(name: str) -> Any:
    """Read a workflow."""
    return yaml.safe_load((TREE / ".github" / "workflows" / f"{name}.yml").read_text())


# Versions


def test_every_place_that_states_the_version_states_the_same() -> None:
    assert release.stated() == {name: {VERSION} for name in release.PLACES}
    release.section(VERSION)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Copy the places, and a changelog of one release."""
    for name in release.PLACES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TREE / name, tmp_path / name)
    changelog = "# Changelog\n\n## 7.8.9 (2030-01-02)\n\n- New\n\n## 7.8.8 (2029-01-01)\n\n- Old\n"
    (tmp_path / "CHANGELOG.md").write_text(changelog)
    return tmp_path


def test_a_new_version_is_written_in_every_place_and_nowhere_else(tree: Path) -> None:
    release.set_version("7.8.9", tree)
    assert release.stated(tree) == {name: {"7.8.9"} for name in release.PLACES}
    release.check("7.8.9", tree)
    release.set_version(VERSION, tree)
    assert all((tree / name).read_bytes() == (TREE / name).read_bytes() for name in release.PLACES)


def test_the_notes_of_a_release_are_its_section_of_the_changelog(tree: Path) -> None:
    assert release.section("7.8.9", tree) == ("(2030-01-02)", "- New\n")
    assert release.section("7.8.8", tree) == ("(2029-01-01)", "- Old\n")


def test_a_tree_that_is_not_ready_is_not_released(tree: Path) -> None:
    with pytest.raises(SystemExit, match=rf"signaling/_version.py states {VERSION} instead of 7.8.9"):
        release.check("7.8.9", tree)
    release.set_version("7.8.7", tree)
    with pytest.raises(SystemExit, match=r"no section of 7\.8\.7"):
        release.check("7.8.7", tree)
    (tree / "CHANGELOG.md").write_text("## 7.8.7 (unreleased)\n")
    with pytest.raises(SystemExit, match=r"ends with \(unreleased\) instead of a date"):
        release.check("7.8.7", tree)


def test_the_image_is_labelled_with_the_version_of_the_packages() -> None:
    assert 'org.opencontainers.image.version="${VERSION}"' in (TREE / "Dockerfile").read_text()
    jobs = workflow("release")["jobs"]
    [build] = [step["with"] for step in jobs["publish-image"]["steps"] if step.get("id") == "push"]
    assert "VERSION=${{ needs.build.outputs.version }}" in build["build-args"].splitlines()
    [version] = [step["run"] for step in jobs["build"]["steps"] if step.get("id") == "version"]
    assert "tools/release.py version" in version


def test_the_versions_of_python_are_everywhere_the_same() -> None:
    versions = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["project"]["classifiers"]), re.MULTILINE)
    assert len(versions) == 4
    assert PROJECT["project"]["requires-python"] == f">={versions[0]}"
    assert PROJECT["tool"]["tox"]["env_list"] == versions
    assert workflow("ci")["jobs"]["tests"]["strategy"]["matrix"]["python"] == versions
    assert workflow("release")["jobs"]["test"]["strategy"]["matrix"]["python"] == versions


# The image's packages


def test_the_image_s_list_of_packages_is_what_the_metadata_asks_for() -> None:
    lock = (TREE / "deploy" / "image-requirements.txt").read_text()
    pins = re.findall(r"^([\w.-]+)==(\S+)[^\n]*\\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", lock, re.MULTILINE)
    assert len(pins) == len(re.findall(r"^\w", lock, re.MULTILINE))
    locked = {name: version for name, version, _ in pins}
    extras = PROJECT["project"]["optional-dependencies"]
    asked = [*PROJECT["project"]["dependencies"], *(each for extra in IMAGE_EXTRAS for each in extras[extra])]
    for requirement in map(Requirement, asked):
        assert locked[canonicalize_name(requirement.name)] in requirement.specifier, "renew it: make lock"


# Workflows


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_action_is_pinned_by_its_commit(path: Path) -> None:
    used = re.findall(r"^ +(?:- )?uses: (.*)$", path.read_text(), re.MULTILINE)
    assert used
    for action in used:
        assert action.startswith("./") or re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


def test_every_folder_with_pins_is_kept_current() -> None:
    config = yaml.safe_load((TREE / ".github" / "dependabot.yml").read_text())
    folders = {
        each["package-ecosystem"]: {*each.get("directories", [each.get("directory")])} for each in config["updates"]
    }
    found = (path for folder in ("*", "*/*", "*/*/*") for path in TREE.glob(f"{folder}/package-lock.json"))
    locks = {path.relative_to(TREE).parent for path in found if "node_modules" not in path.parts}
    assert folders["npm"] == {f"/{folder}" for folder in locks}
    assert folders["pip"] == {"/", "/deploy"}
    assert {"github-actions", "docker", "docker-compose"} <= {*folders}


def test_only_jobs_of_a_pushed_tag_may_write() -> None:
    triggers = workflow("release")[True]  # YAML 1.1 reads the key "on" so.
    assert [*triggers] == ["push", "workflow_dispatch"]
    assert [*triggers["push"]] == ["tags"]
    jobs = workflow("release")["jobs"]
    writing = {name for name, job in jobs.items() if "write" in job["permissions"].values()}
    assert len(writing) == 5
    for name in writing:
        # A run that was started by hand can be of a tag as well.
        assert jobs[name]["if"].startswith("github.event_name == 'push' && github.repository == ")
        assert {"build", "test", "image"} <= {*jobs[name]["needs"]} or name == "publish-notes"


def test_a_job_downloads_only_what_a_job_before_uploads() -> None:
    steps = [step for job in workflow("release")["jobs"].values() for step in job.get("steps", [])]
    uploaded = {step["with"]["name"] for step in steps if "actions/upload-artifact@" in step.get("uses", "")}
    downloads = [step["with"] for step in steps if "actions/download-artifact@" in step.get("uses", "")]
    # Without either, it also downloads the record that docker/build-push-action uploads, and fails on it.
    names = [{each["name"]} if "name" in each else {*each["pattern"].strip("{}").split(",")} for each in downloads]
    assert len(names) == 5
    assert all(each <= uploaded for each in names)


def test_root_has_a_home_of_its_own_in_the_containers_of_ci() -> None:
    """GitHub's home belongs to the user of the machine: pip caches nothing there, and Firefox does not start."""
    in_containers = [job for job in workflow("ci")["jobs"].values() if "container" in job]
    assert len(in_containers) == 2
    assert all(job["env"]["HOME"] == "/root" for job in in_containers)


# Links


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("[x](docs/x.md)", "[x](https://github.com/twisted-signaling/twisted-signaling/blob/v1.2.3/docs/x.md)"),
        ("[x](#y)", "[x](https://github.com/twisted-signaling/twisted-signaling/blob/v1.2.3/README.md#y)"),
        ("![x](a.png)", "![x](https://raw.githubusercontent.com/twisted-signaling/twisted-signaling/v1.2.3/a.png)"),
        (
            '<img src="a.svg">',
            '<img src="https://raw.githubusercontent.com/twisted-signaling/twisted-signaling/v1.2.3/a.svg">',
        ),
        ("[x](https://example.com/)", "[x](https://example.com/)"),
        ("```js\na[0](b)\n```", "```js\na[0](b)\n```"),
    ],
)
def test_the_links_of_the_description_become_absolute(link: str, expected: str) -> None:
    assert absolute_links(f"{link}\n", "1.2.3") == f"{expected}\n"


# The development container


def test_the_development_container_makes_what_the_makefile_makes() -> None:
    container = json.loads((TREE / ".devcontainer" / "devcontainer.json").read_text())
    rules = (TREE / "Makefile").read_text().replace("$(VENV)", ".venv")
    targets = re.findall(r"make ((?:\S+ ?)+)", container["postCreateCommand"])[0].split()
    assert all(re.search(rf"^{re.escape(target)}:", rules, re.MULTILINE) for target in targets)


# Runs of the tests

ANOTHER_RUN_CLEARS_THE_SAME_FOLDER = """
import errno, os, sys, pytest

def rmdir(path, **options):
    if "garbage" in str(path):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
    remove(path, **options)

remove, os.rmdir = os.rmdir, rmdir
sys.exit(pytest.main(sys.argv[1:]))
"""


def test_runs_that_clear_the_same_old_folder_at_once_both_end_well(tmp_path: Path) -> None:
    old = tmp_path / f"pytest-of-{getpass.getuser()}" / "garbage-of-an-earlier-run"
    old.mkdir(parents=True)
    old.parent.chmod(0o700)
    (tmp_path / "test_nothing.py").write_text("def test_nothing(tmp_path):\n    pass\n")
    ended = subprocess.run(
        [
            *(sys.executable, "-c", ANOTHER_RUN_CLEARS_THE_SAME_FOLDER),
            *("-c", TREE / "pyproject.toml", "-p", "no:cacheprovider", tmp_path / "test_nothing.py"),
        ],
        env=os.environ | {"PYTEST_DEBUG_TEMPROOT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert list(old.parent.glob("garbage-*")), "the folder was cleared, so this shows nothing"
