"""Files that an operator names, and pipes in their place."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from signaling import Options
from signaling.files import read_file, reading_pipes


def test_a_file_and_what_comes_through_a_pipe_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"north")
    assert read_file(tmp_path / "file") == b"north"
    reader, writer = os.pipe()
    threading.Timer(0.05, lambda: (os.write(writer, b"south"), os.close(writer))).start()
    with reading_pipes():
        assert read_file(f"/dev/fd/{reader}") == b"south"
        with pytest.raises(OSError, match="a pipe can be read once"):
            read_file(f"/dev/fd/{reader}")
    os.close(reader)


def test_nobody_waits_for_a_pipe_without_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with reading_pipes(), pytest.raises(OSError, match="a pipe that nobody writes to"):
        read_file(tmp_path / "pipe")


def test_a_running_server_reads_regular_files_only(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"south")
    for path in (f"/dev/fd/{reader}", "/dev/null"):
        with pytest.raises(OSError, match="not a regular file"):
            read_file(path)
    os.close(reader)
    os.close(writer)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"north")
    assert read_file(tmp_path / "link") == b"north"


def test_a_file_without_an_end_is_refused() -> None:
    with reading_pipes(), pytest.raises(OSError, match="longer than 16777216 bytes"):
        read_file("/dev/zero")


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
        ["--auth=jwt:{pipe}:alg=HS256"],
        ["--turn-uri=turn:a", "--turn-secret-file={pipe}"],
        ["--backplane=redis://a?password-file={pipe}"],
    ],
)
def test_an_option_that_names_such_a_pipe_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Exception, match="a pipe that nobody writes to"):
        Options({}).parseOptions([argument.format(pipe=tmp_path / "pipe") for argument in arguments])


@pytest.mark.parametrize(
    "arguments", [["--auth=file:{pipe}"], ["--ice-source=https://a.example", "--ice-source-token-file={pipe}"]]
)
def test_a_file_that_is_read_again_for_each_use_cannot_be_a_pipe(tmp_path: Path, arguments: list[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Exception, match="not a regular file"):
        Options({}).parseOptions([argument.format(pipe=tmp_path / "pipe") for argument in arguments])
