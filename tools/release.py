"""What a release is made from: ``release.py set 1.2.0``, ``check v1.2.0``, ``notes v1.2.0`` and ``version``.

``set`` writes a version wherever one is stated. ``check`` ends with status 1 if one of these places, or the changelog,
is not ready for the tag. ``notes`` prints what the changelog says of the version, for the page of the release.
``version`` prints what the files state now. docs/releasing.md has all steps.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

TREE = Path(__file__).parents[1]
sys.path.insert(0, str(TREE))

from setup import absolute_links  # noqa: E402

# Each expression finds the version between its two groups, wherever the file states it.
PLACES = {
    "signaling/_version.py": r'(^VERSION = ")[^"]+(")',
    "signaling/schemas/asyncapi.json": r'(^  "version": ")[^"]+(")',
    "npm/package.json": r'(^  "version": ")[^"]+(")',
    "npm/package-lock.json": r'("name": "twisted-signaling-client",\n +"version": ")[^"]+(")',
    "deploy/helm/Chart.yaml": r'(^(?:version: |appVersion: "))[^"\s]+("?$)',
    "docs/quickstart-kubernetes.md": r"(ghcr\.io/twisted-signaling/twisted-signaling:)\d+\.\d+\.\d+()",
}
VERSION = re.compile(r"\d+\.\d+\.\d+")


def set_version(version: str, tree: Path = TREE) -> None:
    """Write ``version`` wherever one is stated."""
    for name, expression in PLACES.items():
        path = tree / name
        path.write_text(re.sub(expression, rf"\g<1>{version}\g<2>", path.read_text(), flags=re.MULTILINE))


def stated(tree: Path = TREE) -> dict[str, set[str]]:
    """Return the versions that each place states."""
    return {
        name: {
            found[0].removeprefix(found[1]).removesuffix(found[2])
            for found in re.finditer(expression, (tree / name).read_text(), re.MULTILINE)
        }
        for name, expression in PLACES.items()
    }


def section(version: str, tree: Path = TREE) -> tuple[str, str]:
    """Return the heading and the text of ``version`` in the changelog."""
    changelog = (tree / "CHANGELOG.md").read_text()
    found = re.search(rf"^## {re.escape(version)} (.*)\n((?:(?!## ).*\n)*)", changelog, re.MULTILINE)
    if not found:
        raise SystemExit(f"CHANGELOG.md has no section of {version}: it begins with '## {version} (YYYY-MM-DD)'")
    return found[1], found[2].strip() + "\n"


def check(version: str, tree: Path = TREE) -> None:
    """End the program with status 1 and one line if the tree is not ready to be released as ``version``."""
    for name, versions in stated(tree).items():
        if versions != {version}:
            raise SystemExit(f"{name} states {', '.join(versions)} instead of {version}")
    heading, _ = section(version, tree)
    if not re.fullmatch(r"\(\d{4}-\d\d-\d\d\)", heading):
        raise SystemExit(f"CHANGELOG.md: the heading of {version} ends with {heading} instead of a date, (YYYY-MM-DD)")


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    match arguments:
        case ["set", version] if VERSION.fullmatch(version):
            set_version(version)
        case ["check", tag] if VERSION.fullmatch(tag.removeprefix("v")):
            check(tag.removeprefix("v"))
        case ["version"]:
            print(*stated()["signaling/_version.py"])
        case ["notes", tag]:
            version = tag.removeprefix("v")
            print(absolute_links(section(version)[1], version), end="")
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
