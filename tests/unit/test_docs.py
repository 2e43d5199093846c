"""What the documents state is what the code does."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from signaling import Limits, Options

DOCS = Path(__file__).parents[2] / "docs"
ROW = re.compile(r"\| (?:`--([a-z-]+)` )?\| `([a-z_]+)` \| (\S+) \|")


def test_the_table_of_limits_has_every_bound_with_its_option_and_default() -> None:
    rows = {field: (option, default) for option, field, default in ROW.findall((DOCS / "options.md").read_text())}
    defaults = {field.name: field.default for field in fields(Limits)}
    assert {field: default for field, (_, default) in rows.items()} == {
        name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in defaults.items()
    }


def test_the_tables_name_every_option() -> None:
    named = set(re.findall(r"^\| `--([a-z-]+)`", (DOCS / "options.md").read_text(), re.MULTILINE))
    options = {name.rstrip("=") for name in Options({}).longOpt} - {"help", "version"}
    assert named == options


def test_every_test_that_a_document_names_exists() -> None:
    sources = "".join(path.read_text() for path in (DOCS.parent / "tests").rglob("test_*.py"))
    for page in DOCS.glob("*.md"):
        for name in re.findall(r"`(test_\w+)`", page.read_text()):
            assert f"def {name}(" in sources, f"{page.name}: {name}"


def test_every_threat_names_a_proof_that_exists() -> None:
    rows = re.findall(r"^\| (?!threat |---)(.*) \|$", (DOCS / "security.md").read_text(), re.MULTILINE)
    assert len(rows) > 40
    for row in rows:
        threat, proofs = row.partition(" | ")[0], row.rpartition(" | ")[2]
        files = [DOCS.parent / name for name in re.findall(r"`(tests/[\w/]+\.py)`", proofs)]
        # That a test of a name exists is checked above.
        assert files or "`test_" in proofs, threat
        assert all(file.exists() for file in files), threat


def test_every_link_between_documents_leads_somewhere() -> None:
    for page in (*DOCS.glob("*.md"), *DOCS.parent.glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_rights_of_a_store_s_user_are_those_that_the_scripts_and_the_engine_need() -> None:
    scripts = "".join(path.read_text() for path in DOCS.parent.glob("signaling/backplane/redis/lua/*.lua"))
    needed = {name.lower() for name in re.findall(r"redis\.call\('(\w+)'", scripts)}
    needed |= {"ping", "subscribe", "publish", "evalsha", "eval", "script|load"}
    [line] = re.findall(r"^user signaling .*$", (DOCS / "options.md").read_text(), re.MULTILINE)
    assert set(re.findall(r" \+(\S+)", line)) == needed
