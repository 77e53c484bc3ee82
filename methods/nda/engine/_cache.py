"""Compiled kernels kept on disk."""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import compiler
from numba.core.serialize import dumps

from attribench.errors import ArtifactError
from attribench.store.files import atomic_write

_said: set[str] = set()


class KernelCache:
    """Keeps a kernel's machine code in a folder, one file a signature: what numba calls a cache.

    Whatever is wrong with the files is a miss: the kernel is compiled anew, and a line says why, once a process. (numba's
    own cache raises instead, at each run; and it would run machine code of which a byte has changed.) The files are
    pickles, so the folder must be the user's own, as numba's has to be; no file is unpickled whose checksum is wrong.

    Args:
        function: the kernel's source.
        folder: named by the content of all sources; made when first written to.
    """

    def __init__(self, function: Callable[..., Any], folder: Path) -> None:
        self._name, self._folder = function.__name__, folder

    @property
    def cache_path(self) -> str:
        """The folder, for numba's statistics."""
        return str(self._folder)

    def load_overload(self, signature: Any, context: Any) -> Any:
        """The compiled kernel, or None."""
        context.refresh()
        path = self._path(signature, context.codegen())
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            return _say(f"Cannot read {path} ({error.strerror}): the kernel it holds is compiled anew.")
        checksum, payload = content[:32], content[32:]
        try:
            if hashlib.sha256(payload).digest() != checksum:
                raise ValueError("its checksum is wrong")
            return compiler.CompileResult._rebuild(context, *pickle.loads(payload))  # type: ignore[no-untyped-call]
        except Exception as error:  # whatever numba makes of a file of another origin
            return _say(f"{path} is damaged ({error}): the kernel it holds is compiled anew.")

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep a compiled kernel, if the disk will."""
        path = self._path(signature, result.codegen)
        payload = dumps(result._reduce())  # type: ignore[no-untyped-call]
        try:
            atomic_write(path, hashlib.sha256(payload).digest() + payload)
        except (ArtifactError, OSError) as error:
            cause = error.__cause__ if isinstance(error, ArtifactError) else error
            _say(
                f"Compiled kernels cannot be kept in {self._folder} ({getattr(cause, 'strerror', cause)}): every process "
                "compiles them anew. Free the folder, or set NUMBA_CACHE_DIR to another one."
            )

    def flush(self) -> None:
        """Nothing: a file is never stale, since its name tells what it holds."""

    def _path(self, signature: Any, codegen: Any) -> Path:
        key = repr((signature, codegen.magic_tuple(), numba.__version__, sys.version_info))
        return self._folder / f"{self._name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.kernel"


def _say(text: str) -> None:
    if text not in _said:
        _said.add(text)
        print(f"attribench: {text}", file=sys.stderr, flush=True)
