"""Reads pickles of numpy arrays and plain data without executing anything that they ask for.

:class:`pickle.Unpickler` calls what a file names, with arguments of the file's choice; even with an allow-list, what it lets
through (``numpy.core.multiarray._reconstruct``, ``ndarray.__setstate__``) was never meant for hostile arguments. Here
:mod:`pickletools` decodes the instructions, which executes none of them, and the few that arrays and plain data consist of
are carried out by hand. A name in the file is only compared with the names known here: nothing is imported for it.
"""

from __future__ import annotations

import io
import math
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attribench.errors import DataError

# Far above what a file of losses takes (4 MB, 100,000 instructions), and few enough that the worst file fits in memory:
# the largest thing an instruction makes of nothing is an empty container of 64 bytes.
MAX_BYTES = 2**28
MAX_INSTRUCTIONS = 10_000_000

_NDARRAY, _DTYPE = "numpy.ndarray", "numpy.dtype"
_BYTES, _NO_BYTES = "_codecs.encode", "__builtin__.bytes"  # how protocol 2 spells bytes
_RECONSTRUCT, _SCALAR, _FROMBUFFER = (
    f"numpy.core.{name}" for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
)
_KNOWN = {_NDARRAY, _DTYPE, _BYTES, _NO_BYTES, _RECONSTRUCT, _SCALAR, _FROMBUFFER}
_DTYPE_CODES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
_CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


def read_plain_pickle(path: Path) -> object:
    """Return what a pickle of protocol 2 to 5 holds, provided that it is numpy arrays and plain data.

    Plain data are ``list``, ``tuple``, ``dict`` (keys: text or integers), ``int``, ``float``, ``bool``, ``str``, ``bytes`` and
    ``None``. Arrays, numpy scalars and dtypes are of truth values, integers or floats, in the file's byte order. An array may
    be read-only, and a hostile file can list one array, or one list, a million times over: look at the total before copying.

    Raises:
        DataError: the file cannot be read, is damaged or cut short, or asks for anything else, which is named.
    """
    if not path.is_file():  # nor a pipe or device, which may never end
        raise DataError(f"There is no file {path}.")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is larger than {MAX_BYTES >> 20} MiB: it is not opened.")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        return _Machine(path, len(content)).run(io.BytesIO(content))
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise DataError(f"{path} is no pickle of arrays and plain data, or is damaged or cut short.") from error


class _Name(str):
    """The full name of a class or function, told from text that the file holds."""


class _Unfinished:
    """An array or dtype between the instruction that announces it and the one that fills it."""

    def __init__(self, code: str | None) -> None:
        self.code = code  # of a dtype, less its byte order; None of an array
        self.memo_keys: list[int] = []


class _Machine:
    """The stack machine that the pickle protocol describes, less everything that could execute something."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._uncopied = size
        self._stack: list[Any] = []
        self._below_marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, stream: io.BytesIO) -> object:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count == MAX_INSTRUCTIONS:
                raise DataError(f"{self._path} has more than {MAX_INSTRUCTIONS:,} instructions: it is not read on.")
            if opcode.name in _LITERALS:
                self._stack.append(argument)
            elif opcode.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[opcode.name])
            else:
                self._step(opcode.name, argument)
        (result,) = self._stack
        if stream.read(1) or self._below_marks:
            raise ValueError("something is left over")
        self._check_finished(result)
        return result

    def _step(self, instruction: str, argument: Any) -> None:
        match instruction:
            case "MEMOIZE":
                self._remember(len(self._memo))
            case "BINPUT" | "LONG_BINPUT":
                self._remember(argument)
            case "BINGET" | "LONG_BINGET":
                self._stack.append(self._memo[argument])
            case "MARK":
                self._below_marks.append(self._stack)
                self._stack = []
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._stack.append(self._pop(int(instruction[-1])))
            case "TUPLE":
                items = self._pop_to_mark()  # which changes the stack
                self._stack.append(tuple(items))
            case "EMPTY_LIST":
                self._stack.append([])
            case "APPEND":
                self._extend(self._pop(1))
            case "APPENDS":
                self._extend(self._pop_to_mark())
            case "EMPTY_DICT":
                self._stack.append({})
            case "SETITEM":
                self._update(self._pop(2))
            case "SETITEMS":
                self._update(self._pop_to_mark())
            case "GLOBAL":
                self._name(*argument.split(" ", 1))
            case "STACK_GLOBAL":
                self._name(*self._pop(2))
            case "REDUCE":
                self._stack.append(self._made(*self._pop(2)))
            case "BUILD":
                self._fill(*self._pop(2))
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:  # objects of other kinds, other files, registered extensions, and the instructions of protocol 0
                of = f" of {_shown(argument.replace(' ', '.', 1))}" if instruction == "INST" else ""
                raise self._refusal(f"the instruction {instruction}{of}")

    def _refusal(self, what: str) -> DataError:
        return DataError(
            f"{self._path} asks for {what}, which is neither a numpy array nor plain data: it is not read on."
        )

    def _check_finished(self, result: object) -> None:
        """Refuse what names or announces something without making it."""
        pending, seen = [result], set()
        while pending:
            value = pending.pop()
            if isinstance(value, _Name | _Unfinished):
                raise self._refusal(value if isinstance(value, _Name) else "an unfinished array or dtype")
            if isinstance(value, list | tuple | dict) and id(value) not in seen:
                seen.add(id(value))
                pending.extend(value.values() if isinstance(value, dict) else value)

    def _pop(self, count: int) -> tuple[Any, ...]:
        if len(self._stack) < count:
            raise ValueError("the stack is too short")
        items = tuple(self._stack[-count:])
        del self._stack[-count:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below_marks.pop()
        return items

    def _remember(self, key: int) -> None:
        value = self._memo[key] = self._stack[-1]
        if isinstance(value, _Unfinished):
            value.memo_keys.append(key)

    def _extend(self, items: tuple[Any, ...] | list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise TypeError("items of something that is no list")
        target.extend(items)

    def _update(self, items: tuple[Any, ...] | list[Any]) -> None:
        target = self._stack[-1]
        # A nested tuple can take for ever to hash.
        if type(target) is not dict or not all(type(key) in (str, int) for key in items[::2]):
            raise TypeError("items of something that is no dictionary, or with keys that are neither text nor integers")
        target.update(zip(items[::2], items[1::2], strict=True))

    def _name(self, module: str, name: str) -> None:
        if type(module) is not str or type(name) is not str:
            raise TypeError("a name that is no text")
        full = f"{module}.{name}".replace("numpy._core.", "numpy.core.")  # since numpy 2, and before
        if full not in _KNOWN:
            raise self._refusal(_shown(full))
        self._stack.append(_Name(full))

    def _made(self, name: Any, arguments: tuple[Any, ...]) -> object:
        """What the call of a known name makes."""
        if type(name) is not _Name or type(arguments) is not tuple:
            raise TypeError("a call of something that is no name")
        if name == _DTYPE:
            code = arguments[0] if type(arguments[0]) is str else "?"
            if code not in _DTYPE_CODES:
                raise self._refusal(f"the dtype {_shown(code)}")
            return _Unfinished(code)
        if name == _RECONSTRUCT:
            if arguments[0] != _NDARRAY:
                raise self._refusal("a subclass of numpy.ndarray")
            return _Unfinished(None)
        if name == _FROMBUFFER:
            data, dtype, shape, order = arguments
            return _array(data, dtype, shape, order)
        if name == _SCALAR:
            dtype, data = arguments
            return _array(data, dtype, (1,))[0]
        if name == _BYTES and arguments[1] == "latin1":
            text = arguments[0]
            if type(text) is not str or len(text) > self._uncopied:  # one text, encoded over and over
                raise ValueError("no text, or more of it than the file has")
            self._uncopied -= len(text)
            return text.encode("latin1")
        if name == _NO_BYTES and not arguments:
            return b""
        raise self._refusal(f"a call of {name}")

    def _fill(self, target: Any, state: Any) -> None:
        """Replace an unfinished array or dtype by the finished one, wherever it is remembered."""
        if type(target) is not _Unfinished or type(state) is not tuple:
            raise TypeError("a state of something that has none")
        value: object
        if target.code is None:
            _, shape, dtype, is_fortran, data = state
            value = _array(data, dtype, shape, "F" if is_fortran else "C")
        else:
            if state[1] not in ("<", ">", "|", "=") or state[2:5] != (None, None, None):
                raise self._refusal("a dtype with fields")
            value = np.dtype(state[1] + target.code)
        self._stack.append(value)
        self._memo.update(dict.fromkeys(target.memo_keys, value))
        target.memo_keys.clear()


def _shown(text: str) -> str:
    """A foreign name, short and on one line."""
    return ascii(text[:100])[1:-1]


def _array(data: Any, dtype: Any, shape: Any, order: Any = "C") -> npt.NDArray[Any]:
    """The array of a shape over bytes of exactly its size, which it does not copy."""
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, np.dtype) or type(shape) is not tuple:
        raise TypeError("an array needs bytes, a dtype and a shape")
    if len(shape) > 8 or not all(type(length) is int and 0 <= length <= MAX_BYTES for length in shape):
        raise ValueError("no shape")
    if order not in ("C", "F"):
        raise ValueError("no order")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError("the shape needs another number of bytes")
    if not data:  # numpy refuses to look into an empty buffer
        return np.empty(shape, dtype)
    return np.frombuffer(data, dtype).reshape(shape, order=order)
