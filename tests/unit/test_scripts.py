"""The scripts of the store: their text, their rights, and the commands that run them."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import hiredis

from signaling.backplane.redis.scripts import NAMES, Script

CALL = re.compile(r"redis\.call\('([A-Z]+)'")
LUA = files("signaling.backplane.redis") / "lua"
RIGHTS = (Path(__file__).parents[2] / "docs" / "redis.md").read_text().split(">PASSWORD ", 1)[1].split("\n", 1)[0]


def test_a_node_that_registers_tries_every_command_that_a_script_needs() -> None:
    prelude, _, tried = (LUA / "prelude.lua").read_text().partition("local function try_all_commands")
    heartbeat = (LUA / "heartbeat.lua").read_text()
    needed = set(CALL.findall(prelude + "".join((LUA / f"{name}.lua").read_text() for name in NAMES)))
    assert needed == set(CALL.findall(tried + heartbeat))


def test_the_documented_rights_are_those_that_the_scripts_need() -> None:
    needed = set(CALL.findall("".join((LUA / f"{name}.lua").read_text() for name in ("prelude", *NAMES))))
    assert {f"+{command.lower()}" for command in needed} <= set(RIGHTS.split())


def test_a_script_is_run_by_its_digest_and_loaded_with_its_text() -> None:
    script = Script("heartbeat")
    body = script.load[2]
    digest = script.run([b"k"], [b"a"], b"7").split(b"\r\n")[4]
    assert script.run([b"k"], [b"a"], b"7") == hiredis.pack_command((b"EVALSHA", digest, b"1", b"k", b"a", b"7"))
    assert script.load_and_run([b"k"], [b"a"], b"7") == hiredis.pack_command((b"EVAL", body, b"1", b"k", b"a", b"7"))
