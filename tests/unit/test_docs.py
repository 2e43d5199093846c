"""What the documents state is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


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
