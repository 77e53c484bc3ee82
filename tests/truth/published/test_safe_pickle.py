"""What is read equals what :mod:`pickle` reads; what could execute something is refused by name and executes nothing."""

import copyreg
import io
import os
import pickle
import random
import struct
import tracemalloc
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attribench.errors import DataError
from attribench.truth.published import safe_pickle
from attribench.truth.published.safe_pickle import read_plain_pickle

PROTOCOLS = [2, 3, 4, 5]
DTYPES = ["b1", "i1", "<i8", "u2", "f2", "<f4", ">f4", "<f8"]


def written(folder: Path, content: bytes) -> Path:
    file = folder / "file.pkl"
    file.write_bytes(content)
    return file


def refusal(folder: Path, content: bytes) -> str:
    file = written(folder, content)
    with pytest.raises(DataError) as error:
        read_plain_pickle(file)
    message = str(error.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    return message.removeprefix(str(file))


def assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(theirs, np.ndarray | np.generic):
        # numpy turns some arrays, not all, into the byte order of the machine.
        assert ours.dtype in (theirs.dtype, theirs.dtype.newbyteorder())
        assert (ours.shape, ours.astype(theirs.dtype).tobytes()) == (theirs.shape, theirs.tobytes())
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        assert_same(list(ours.values()), list(theirs.values()))
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert ours == theirs


def plain_data() -> list[Any]:
    generator = np.random.default_rng(0)
    arrays = [(100 * generator.random((2, 3, 4))).astype(dtype) for dtype in DTYPES]
    special: list[Any] = [
        np.array([np.nan, -0.0, np.inf], "f4"),
        np.array(3.5),
        np.empty((0, 4), "f4"),
        np.arange(12).reshape(3, 4).T,
    ]
    special += [np.arange(10)[::3], np.float32(1.25), np.int64(-7), np.dtype(">f8")]
    numbers: list[Any] = [None, True, 0, 255, 65536, -1, 2**40, -(2**70), 0.1]
    data = [*numbers, "", "Grüße\ud800", b"", b"\x00\xff", (), (1, (2, [3])), {}]
    return [*arrays, *special, *data, {"a": [1, 2], 3: (4,)}, list(range(3000)), [arrays[:2], arrays[:2]]]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_and_plain_data_are_read_as_pickle_reads_them(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps(plain_data(), protocol)
    assert_same(read_plain_pickle(written(tmp_path, content)), pickle.loads(content))


def test_names_from_before_numpy_2(tmp_path: Path) -> None:
    content = pickle.dumps([np.arange(3), np.float64(2)], protocol=2)
    assert b"numpy._core" in content
    old = read_plain_pickle(written(tmp_path, content.replace(b"numpy._core", b"numpy.core")))
    assert_same(old, [np.arange(3), np.float64(2)])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_array_listed_twice_is_one_array(tmp_path: Path, protocol: int) -> None:
    array = np.arange(4)[::-1]
    value: Any = read_plain_pickle(written(tmp_path, pickle.dumps([array, array], protocol)))
    assert value[0] is value[1]


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def array_of_objects(mark: Path) -> Any:
    array = np.empty(1, object)
    array[0] = Bomb(mark)
    return array


def bombs(mark: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that make ``mark`` when :mod:`pickle` opens them, and what their refusal must name."""
    mkdir = f"{os.mkdir.__module__}.mkdir"
    argument = text(str(mark))
    found = {f"call, protocol {protocol}": (pickle.dumps(Bomb(mark), protocol), mkdir) for protocol in range(6)}
    found |= {f"objects, protocol {p}": (pickle.dumps(array_of_objects(mark), p), "the dtype O8") for p in PROTOCOLS}
    found["behind data"] = (pickle.dumps([np.arange(3), {"a": (1, [Bomb(mark)])}]), mkdir)
    found["INST"] = (b"\x80\x02(" + argument + b"ios\nmkdir\n.", "INST of os.mkdir")
    found["OBJ"] = (b"\x80\x02(cos\nmkdir\n" + argument + b"o.", "os.mkdir")
    attribute = b"c__builtin__\ngetattr\n" + text("") + text("join") + b"\x86R0"
    found["getattr"] = (b"\x80\x02" + attribute + b"cos\nmkdir\n" + argument + b"\x85R.", "__builtin__.getattr")
    found["nested name"] = (
        b"\x80\x04" + text("os") + text("path.os.mkdir") + b"\x93" + argument + b"\x85R.",
        "os.path.os.mkdir",
    )
    return found


@pytest.mark.parametrize("name", bombs(Path()))
def test_what_would_run_code_is_refused_by_name_and_does_not_run(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "mark"
    content, named = bombs(mark)[name]
    assert named in refusal(tmp_path, content)
    assert not mark.exists()
    pickle.loads(content)
    assert mark.exists()


class WithPersistentIds(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return "elsewhere" if obj == 1.5 else None


def with_persistent_id(protocol: int) -> bytes:
    stream = io.BytesIO()
    WithPersistentIds(stream, protocol).dump(1.5)
    return stream.getvalue()


def with_extension() -> bytes:
    copyreg.add_extension("collections", "OrderedDict", 200)
    try:
        return pickle.dumps(OrderedDict, 2)
    finally:
        copyreg.remove_extension("collections", "OrderedDict", 200)


class Plain:
    """An object of a class."""


FOREIGN = {
    "object": (pickle.dumps(Plain()), "Plain"),
    "object, protocol 0": (pickle.dumps(Plain(), 0), "copy_reg._reconstructor"),
    "class": (pickle.dumps(OrderedDict), "collections.OrderedDict"),
    "set": (pickle.dumps({1}), "EMPTY_SET"),
    "complex": (pickle.dumps(1j), "builtins.complex"),
    "persistent id": (with_persistent_id(2), "BINPERSID"),
    "persistent id, protocol 0": (with_persistent_id(0), "PERSID"),
    "extension": (with_extension(), "EXT1"),
    "buffer elsewhere": (pickle.dumps(np.arange(3), 5, buffer_callback=lambda _: None), "NEXT_BUFFER"),
    "fields": (pickle.dumps(np.zeros(2, [("a", "f4")])), "the dtype V4"),
    "times": (pickle.dumps(np.zeros(2, "M8[s]")), "the dtype M8"),
    "text": (pickle.dumps(np.array(["abc"])), "the dtype U3"),
    "complex numbers": (pickle.dumps(np.zeros(2, "c8")), "the dtype c8"),
    "subclass": (pickle.dumps(np.ma.array([1])), "numpy.ma"),
    "known class as data": (pickle.dumps([(np.ndarray,)]), "numpy.ndarray"),
    "known class called": (b"\x80\x02cnumpy\nndarray\nJ\x00\x00\x00\x7f\x85R.", "a call of numpy.ndarray"),
    "subclass of arrays": (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\nN\x86R.", "a subclass"),
    "unfinished": (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x85R.", "unfinished"),
    "long name": (b"\x80\x04" + text("os") + text("a" * 10**5) + b"\x93.", "os.aaa"),
    "unprintable name": (b"\x80\x04" + text("os") + text("a\n\x1b[31m\u202eb") + b"\x93.", r"os.a\n\x1b[31m\u202eb"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_anything_else_is_refused_by_name(tmp_path: Path, name: str) -> None:
    content, named = FOREIGN[name]
    message = refusal(tmp_path, content)
    assert named in message
    assert len(message) < 300


def traced(folder: Path, content: bytes) -> int:
    """Bytes of memory that refusing ``content`` takes at most."""
    tracemalloc.start()
    try:
        refusal(folder, content)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def array_of_shape(shape: bytes, data: bytes = b"C\x08\0\0\0\0\0\0\0\0") -> bytes:
    dtype = b"cnumpy\ndtype\n" + text("f8") + b"\x85R(K\x03" + text("<") + b"NNNtb"
    return (
        b"\x80\x03cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x85R(K\x01"
        + shape
        + dtype
        + b"\x89"
        + data
        + b"tb."
    )


def doubled(times: int) -> bytes:
    """Instructions for a tuple of a tuple twice of a tuple twice …, which 2**times steps would be needed to walk through."""
    return b"]" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(times))


LIES = {
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.",
    "text": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"abc.",
    "buffer": b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"abc.",
    "integer": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"abc.",
    "negative length": b"\x80\x02\x8b" + struct.pack("<i", -5) + b"abc.",
    "memory": b"\x80\x02]r" + struct.pack("<I", 2**31 - 1) + b"h\x00.",
    "shape": array_of_shape(b"\x8a\x06\0\0\0\0\0\x01\x85"),
    "shape of zero": array_of_shape(b"K\x00\x8a\x06\0\0\0\0\0\x01\x86", b"C\x00"),
    "negative shape": array_of_shape(b"J\xff\xff\xff\xff\x85"),
    "many axes": array_of_shape(b"(" + b"K\x01" * 100 + b"t"),
    "no shape": array_of_shape(b"K\x01"),
    "data is no bytes": array_of_shape(b"K\x01\x85", b"]"),
    "dictionary of nested tuples": b"\x80\x02}" + doubled(60) + b"Ns.",
    "name of nested tuples": b"\x80\x04" + text("os") + doubled(60) + b"\x93.",
    "dtype of nested tuples": b"\x80\x02cnumpy\ndtype\n" + doubled(60) + b"\x85R.",
    "text encoded often": b"\x80\x02c_codecs\nencode\nq\x00" + text("a" * 10**5) + text("latin1") + b"\x86q\x01]("
    + b"h\x00h\x01R" * 1000 + b"e.",
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_file_that_lies_about_its_size_takes_no_more_than_its_size(tmp_path: Path, name: str) -> None:
    assert traced(tmp_path, LIES[name]) < 10 * len(LIES[name]) + 200_000


def test_deep_nesting(tmp_path: Path) -> None:
    depth = 20_000
    value = read_plain_pickle(written(tmp_path, b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."))
    for _ in range(depth - 1):
        assert type(value) is list
        (value,) = value
    assert value == []


def test_a_list_of_itself(tmp_path: Path) -> None:
    value = read_plain_pickle(written(tmp_path, b"\x80\x02]q\x00h\x00a."))
    assert type(value) is list
    assert value[0] is value


@pytest.mark.parametrize("protocol", [2, 5])
def test_every_truncated_file_is_refused(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps([np.arange(3.0), {"a": np.float32(2)}], protocol)
    for length in range(len(content)):
        assert "cut short" in refusal(tmp_path, content[:length])


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in text of protocol 0, as pickletools reads it
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_damaged_file_is_read_or_refused(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps(
        [np.arange(3.0), np.ones((2, 2), "f4").T, {"a": (1, np.float32(2))}, "text", 2**70], protocol
    )
    chance = random.Random(protocol)
    for _ in range(100):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        with suppress(DataError):
            read_plain_pickle(written(tmp_path, bytes(damaged)))


def test_what_is_no_pickle_is_refused(tmp_path: Path) -> None:
    assert "no pickle" in refusal(tmp_path, b"")
    assert "no pickle" in refusal(tmp_path, b"PK\x03\x04 an archive")
    assert "no pickle" in refusal(tmp_path, b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    assert "no pickle" in refusal(tmp_path, pickle.dumps([1]) + pickle.dumps([2]))
    assert "no pickle" in refusal(tmp_path, b"\x80\x02]].")
    assert "no pickle" in refusal(tmp_path, b"\x80\x02(].")


def test_missing_files_and_files_without_end_are_refused(tmp_path: Path) -> None:
    endless = tmp_path / "endless.pkl"
    endless.symlink_to("/dev/zero")
    for file in (tmp_path, endless, tmp_path / "absent.pkl"):
        with pytest.raises(DataError, match="There is no file"):
            read_plain_pickle(file)


def test_huge_files_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = tmp_path / "huge.pkl"
    huge.touch()
    os.truncate(huge, safe_pickle.MAX_BYTES + 1)
    with pytest.raises(DataError, match="larger than 256 MiB"):
        read_plain_pickle(huge)
    monkeypatch.setattr(safe_pickle, "MAX_INSTRUCTIONS", 1000)
    assert "more than 1,000 instructions" in refusal(tmp_path, b"\x80\x02" + b"]" * 1000 + b"a" * 999 + b".")
