"""The description of the wire, read by the programs of others."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.harness.npm_package import PACKAGE, install_others, run
from tests.programs import need

TREE = Path(__file__).parents[2]
SCHEMAS = TREE / "signaling" / "schemas"
PAGE = (TREE / "docs" / "wire-schema.md").read_text()
PARSE = """
import { Parser } from "@asyncapi/parser";
import { readFileSync } from "node:fs";
const { document, diagnostics } = await new Parser().parse(readFileSync(process.argv[1], "utf8"));
const messages = document?.allMessages().all().length;
console.log(JSON.stringify({ messages, found: diagnostics.map(({ code, message }) => [code, message]) }));
"""
# It says that there is a newer version, which fewer tools read.
LATEST_VERSION = "asyncapi-latest-version"


def example(language: str) -> str:
    [code] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return code


def node(script: str, *arguments: str | Path) -> str:
    install_others(need("npm"))
    return run(need("node"), "--input-type=module", "-e", script, *arguments, cwd=PACKAGE)


def test_the_parser_of_asyncapi_accepts_the_document() -> None:
    parsed = json.loads(node(PARSE, SCHEMAS / "asyncapi.json"))
    assert [each for each in parsed["found"] if each[0] != LATEST_VERSION] == []
    assert parsed["messages"] == 17


def test_the_example_in_python_does_what_the_page_says() -> None:
    done = subprocess.run([sys.executable, "-c", example("python")], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True\nFalse\n", "")


def test_the_example_in_javascript_does_what_the_page_says() -> None:
    code = example("js").replace('"client-message.json"', json.dumps(str(SCHEMAS / "client-message.json")))
    assert node(code) == "true\nfalse\n"
