"""A cache of compiled kernels that is damaged, or cannot be written or read, is as good as none."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attribench.methods.nda.engine import _cache, _simd


def double(number: int) -> int:
    return 2 * number


def hits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Call the kernel as a new process would, and return how often it came from the disk."""
    monkeypatch.setattr(_simd._numba_config, "CACHE_DIR", str(folder))
    kernel: Any = _simd.compiled(double)
    assert kernel(21) == 42
    return sum(kernel.stats.cache_hits.values())


def kept(folder: Path) -> Path:
    (file,) = (path for path in folder.rglob("*") if path.is_file())
    return file


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cache, "_said", set())


def test_kernels_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert hits(tmp_path, monkeypatch) == 0
    assert hits(tmp_path, monkeypatch) == 1
    assert capsys.readouterr().err == ""


def changed(content: bytes) -> bytes:
    """One bit of the machine code."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:20],
        lambda content: content[:-100],
        lambda content: b"x" * 999,
        changed,
    ],
    ids=["empty", "cut off early", "cut off", "garbage", "one bit"],
)
def test_a_damaged_file_is_replaced(
    damage: Callable[[bytes], bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hits(tmp_path, monkeypatch)
    file = kept(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    assert hits(tmp_path, monkeypatch) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"attribench: {file} is damaged")
    assert hits(tmp_path, monkeypatch) == 1
    assert capsys.readouterr().err == ""


def test_every_file_of_the_cache_may_be_garbage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hits(tmp_path, monkeypatch)
    for file in tmp_path.rglob("*.*"):
        file.write_bytes(b"garbage")
    assert hits(tmp_path, monkeypatch) == 0


def test_what_numba_refuses_is_a_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checksum is right, but the content is not numba's."""
    hits(tmp_path, monkeypatch)
    payload = _cache.dumps("not a kernel")
    kept(tmp_path).write_bytes(_cache.hashlib.sha256(payload).digest() + payload)
    assert hits(tmp_path, monkeypatch) == 0
    assert "is damaged" in capsys.readouterr().err


def no_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (folder / "file").write_text("")
    return folder / "file"


def full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def write(file: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_cache, "atomic_write", write)
    return folder


@pytest.mark.parametrize("break_it", [no_folder, full_disk])
def test_where_nothing_can_be_written_kernels_are_compiled_each_time(
    break_it: Callable[[Path, pytest.MonkeyPatch], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = break_it(tmp_path, monkeypatch)
    assert [hits(folder, monkeypatch) for _ in range(2)] == [0, 0]
    (line,) = capsys.readouterr().err.splitlines()  # once
    assert str(folder) in line
    assert "NUMBA_CACHE_DIR" in line


def test_a_file_that_cannot_be_read_is_a_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hits(tmp_path, monkeypatch)
    file = kept(tmp_path)
    file.unlink()
    file.mkdir()
    assert hits(tmp_path, monkeypatch) == 0
    assert f"Cannot read {file}" in capsys.readouterr().err
