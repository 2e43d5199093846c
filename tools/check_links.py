"""Checks the links of all documents as GitHub would follow them, and of everything into the site that was built.

``make docs`` runs it. Links to other hosts are not checked here: ``LINKS=all make docs`` asks them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.anchors import anchors_plugin

TREE = Path(__file__).parents[1]
SITE = TREE / "build" / "docs"
PARSER = MarkdownIt("gfm-like", {"linkify": False}).use(anchors_plugin, max_level=6)
OURS = re.compile(
    r"https://(?:github\.com/twisted-signaling/twisted-signaling/(?:blob|tree)/main/(?P<file>[\w./-]*[\w/])"
    r"|twisted-signaling\.github\.io/twisted-signaling/(?P<page>[\w./-]*\w)?)(?P<anchor>#[\w.-]+)?"
)


def tracked() -> list[Path]:
    """Return the files of the repository, and those that are new."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=TREE, capture_output=True, text=True, check=True).stdout.splitlines()
    return [path for path in map(TREE.joinpath, listed) if path.is_file()]


@cache
def tokens(page: Path) -> list[Token]:
    """Return all tokens of a page, also those within paragraphs."""
    return [inner for token in PARSER.parse(page.read_text()) for inner in (token, *(token.children or ()))]


@cache
def anchors(page: Path) -> set[str]:
    """Return what a link to a Markdown or HTML page may have after ``#``."""
    if page.suffix == ".html":
        return set(re.findall(r' id="([^"]+)"', page.read_text()))
    found = {str(token.attrs["id"]) for token in tokens(page) if token.type == "heading_open"}
    html = "".join(token.content for token in tokens(page) if token.type.startswith("html"))
    return found | set(re.findall(r'<\w+[^>]* (?:id|name)="([^"]+)"', html))


def targets(page: Path) -> Iterator[str]:
    """Return the targets of the links and pictures of a Markdown page."""
    for token in tokens(page):
        for name in ("href", "src"):
            if name in token.attrs:
                yield str(token.attrs[name])
        if token.type.startswith("html"):
            yield from re.findall(r'\b(?:href|src(?:set)?)="([^"]+)"', token.content)


def is_there(file: Path, anchor: str) -> bool:
    """Return whether a file exists, and has the anchor if it is a page; other files have none but lines."""
    if not file.resolve().is_relative_to(TREE) or not file.exists():
        return False
    if file.suffix in {".md", ".html"} and anchor:
        return anchor in anchors(file)
    return not anchor or re.fullmatch(r"readme|L\d+(-L\d+)?", anchor) is not None


def problems() -> Iterator[str]:
    """Return a line for each link that leads nowhere."""
    for file in tracked():
        name = file.relative_to(TREE)
        if file.suffix == ".md":
            for target in targets(file):
                path, _, anchor = unquote(target).partition("#")
                if not re.match(r"[a-z]+:", path) and not is_there(file.parent / path if path else file, anchor):
                    yield f"{name}: {target}"
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        for found in OURS.finditer(text):
            target = TREE / found["file"] if found["file"] else SITE / (found["page"] or "index.html")
            if not is_there(target, (found["anchor"] or "").removeprefix("#")):
                yield f"{name}: {found[0]}"


if __name__ == "__main__":
    lines = list(problems())
    print(*lines, sep="\n", end="\n" if lines else "")
    sys.exit(f"{len(lines)} links lead nowhere" if lines else 0)
