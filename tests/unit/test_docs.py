"""What the documents state is what the code does."""

from __future__ import annotations

import ast
import json
import re
import textwrap
import tomllib
from pathlib import Path

import pytest

from signaling.app.option_table import ALL_OPTIONS, CONFIGURABLE

DOCS = Path(__file__).parents[2] / "docs"
# Of pages that are also shown elsewhere, where relative links lead nowhere.
REPOSITORY = "https://github.com/twisted-signaling/twisted-signaling/blob/main/"
PAGES = [*DOCS.glob("*.md"), *(DOCS.parent / name for name in ("README.md", "CONTRIBUTING.md", "npm/README.md"))]
# But for build/, where commands write what may be there or not.
FOLDERS = "|".join(
    path.name
    for path in DOCS.parent.iterdir()
    if path.is_dir() and not path.name.startswith(".") and path.name != "build"
)
PACKAGES = "|".join(path.name for path in (DOCS.parent / "signaling").iterdir() if path.is_dir())
# Names that metaphors had, before there was a glossary.
GONE = (
    "Way|Away|Entrant|Arrival|Place|lender|newcomers|settle|doubt|vanish|revive|lend|loan|hurry|farewell|troubles|bury|"
    "tomb|resign|parcel|Correspondent|Ledger|Books|Party|residents|Guest|Arena|stranger|witness|Workshop|World|Story|"
    "Traveller|anatomy|befall"
)


def test_every_path_that_a_document_names_exists() -> None:
    for page in PAGES:
        text = page.read_text()
        for name in re.findall(rf"`((?:{FOLDERS})/[a-z\d_./-]*)", text):
            # What make installs is not in a fresh clone.
            assert (DOCS.parent / name).exists() or "node_modules" in name, f"{page.name}: {name}"
        for name in re.findall(rf"`((?:{PACKAGES})/[\w./-]+\.\w+)`", text):
            assert (DOCS.parent / "signaling" / name).exists() or (DOCS.parent / name).exists(), f"{page.name}: {name}"


def test_every_function_that_the_architecture_names_is_in_its_module() -> None:
    text = (DOCS / "architecture.md").read_text()
    found = re.findall(r"`([\w/]+\.py)`,\s+`(?:\w+\.)?(\w+)`", text)
    assert len(found) > 10
    for module, name in found:
        source = (DOCS.parent / "signaling" / module).read_text()
        assert re.search(rf"^ *(?:def|class) {name}\b", source, re.MULTILINE), f"{module}: {name}"


def test_every_make_target_that_a_document_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (DOCS.parent / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        # At the start of a line of console, or as code.
        named = re.findall(r"(?:^\$ |`)(?:\w+=\S+ )*make ([a-z-]+)", page.read_text(), re.MULTILINE)
        assert set(named) <= targets, page.name


def test_every_module_that_a_command_in_a_document_runs_exists() -> None:
    for page in PAGES:
        for name in re.findall(r"python -m ((?:benchmarks|tests|tools|signaling)[\w.]*)", page.read_text()):
            path = DOCS.parent / name.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"{page.name}: {name}"


def test_no_document_uses_a_name_that_is_gone() -> None:
    for page in PAGES:
        code = re.findall(r"`([^`\n]+)`", page.read_text())
        assert not [text for text in code if re.search(rf"\b(?:{GONE})\b", text)], page.name


def test_every_test_that_a_document_names_exists() -> None:
    sources = "".join(path.read_text() for path in (DOCS.parent / "tests").rglob("test_*.py"))
    for page in DOCS.glob("*.md"):
        for name in re.findall(r"`(test_\w+)`", page.read_text()):
            assert f"def {name}(" in sources, f"{page.name}: {name}"


@pytest.mark.parametrize(("page", "least"), [("security.md", 40), ("privacy.md", 15)])
def test_every_threat_and_every_statement_on_privacy_names_a_proof_that_exists(page: str, least: int) -> None:
    rows = re.findall(r"^\| (?!.*\| proven by \|$|---)(.*) \|$", (DOCS / page).read_text(), re.MULTILINE)
    assert len(rows) > least
    for row in rows:
        threat, proofs = row.partition(" | ")[0], row.rpartition(" | ")[2]
        files = [DOCS.parent / name for name in re.findall(r"`(tests/[\w/]+\.py)`", proofs)]
        # That a test of a name exists is checked above.
        assert files or "`test_" in proofs, threat
        assert all(file.exists() for file in files), threat


def test_every_link_between_documents_leads_somewhere() -> None:
    for page in (*PAGES, DOCS.parent / "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if target.startswith(REPOSITORY):
                assert (DOCS.parent / target.removeprefix(REPOSITORY)).exists(), f"{page.name}: {target}"
            else:
                assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_in_the_index_once() -> None:
    listed = re.findall(r"^- \[[^\]]+\]\(([\w-]+\.md)\)", (DOCS / "index.md").read_text(), re.MULTILINE)
    assert sorted([*listed, "index.md"]) == sorted(page.name for page in DOCS.glob("*.md"))


def test_the_pages_that_a_newcomer_reads_are_short() -> None:
    readme = DOCS.parent / "README.md"
    assert len(readme.read_text().splitlines()) <= 150
    for page in (readme, DOCS / "index.md", *DOCS.glob("quickstart-*.md")):
        long = [line for line in page.read_text().splitlines() if len(line) > 100 and not line.startswith("|")]
        assert not long, f"{page.name}: {long}"
    for page in DOCS.glob("quickstart-*.md"):
        assert len(page.read_text().split()) < 800, page.name


def test_the_rights_of_a_store_s_user_are_those_that_the_scripts_and_the_engine_need() -> None:
    scripts = "".join(path.read_text() for path in DOCS.parent.glob("signaling/backplane/redis/lua/*.lua"))
    needed = {name.lower() for name in re.findall(r"redis\.call\('(\w+)'", scripts)}
    needed |= {"ping", "subscribe", "publish", "evalsha", "eval", "script|load"}
    [line] = re.findall(r"^user signaling .*$", (DOCS / "redis.md").read_text(), re.MULTILINE)
    assert set(re.findall(r" \+(\S+)", line)) == needed


def test_every_option_of_the_server_that_a_command_in_a_document_gives_exists() -> None:
    for page in PAGES:
        # A command ends with its line, unless that ends with a backslash.
        commands = re.findall(
            r"^\$ (?:\w+=\S+ )*(?:twistd -n |docker run .*)?signaling ((?:.*\\\n)*.*)", page.read_text(), re.MULTILINE
        )
        for command in commands:
            names = re.findall(r"(?:^|\s)--([a-z][a-z-]*)", re.split(r" -- |#", command)[0])
            assert set(names) <= {*ALL_OPTIONS, "help"}, f"{page.name}: {command}"


def test_every_block_of_data_or_python_in_a_document_is_valid() -> None:
    for page in PAGES:
        for language, indented in re.findall(r"^ *```(\w+)\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL):
            code = textwrap.dedent(indented)
            if language == "json":
                json.loads(code)
            elif language == "toml":
                assert set(tomllib.loads(code)) <= {*CONFIGURABLE, "topics"}, page.name
            elif language == "python":
                compile(code, page.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
