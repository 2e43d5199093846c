"""Files that an operator names, and pipes in their place."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from signaling import Options
from signaling.files import read_file


def test_a_file_and_what_comes_through_a_pipe_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"north")
    assert read_file(tmp_path / "file") == b"north"
    reader, writer = os.pipe()
    threading.Timer(0.05, lambda: (os.write(writer, b"south"), os.close(writer))).start()
    assert read_file(f"/dev/fd/{reader}") == b"south"
    with pytest.raises(OSError, match="a pipe can be read once"):
        read_file(f"/dev/fd/{reader}")
    os.close(reader)


def test_nobody_waits_for_a_pipe_without_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a pipe that nobody writes to"):
        read_file(tmp_path / "pipe")


def test_a_folder_is_no_file_and_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = os.listdir("/dev/fd")
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path)
    assert len(os.listdir("/dev/fd")) == len(before)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config={pipe}"],
        ["--ice-servers={pipe}"],
        ["--auth=file:{pipe}"],
        ["--auth=jwt:{pipe}:alg=HS256"],
        ["--turn-uri=turn:a", "--turn-secret-file={pipe}"],
        ["--ice-source=https://a.example", "--ice-source-token-file={pipe}"],
        ["--backplane=redis://a?password-file={pipe}"],
    ],
)
def test_an_option_that_names_such_a_pipe_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Exception, match="a pipe that nobody writes to"):
        Options({}).parseOptions([argument.format(pipe=tmp_path / "pipe") for argument in arguments])
