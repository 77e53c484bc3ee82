"""SIMD vectors for numba: registers as values, so that a kernel says what stays in a register.

numba vectorises plain loops only where LLVM can prove that no two arrays overlap, after run-time checks, and with half
of an AVX-512 register. These types name the operations instead: :func:`load` reads :data:`BYTES` bytes of float32 or
float64 numbers (the array's dtype decides), arithmetic is element by element, :func:`store` writes them back. LLVM maps a
vector to whatever the processor has: a register of AVX-512 or AVX2, two of NEON. No index is checked: callers pad their
arrays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import platformdirs
from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

from attribench.methods.nda.engine._cache import KernelCache

_numba_config: Any = numba.config


def _vector_bytes() -> int:
    """64 on a processor with AVX-512, else 32: the kernels keep 14 vectors at hand, and AVX2 has 16 registers of 32.

    With vectors of 64 bytes, half of them would be spilled there, which made the kernels up to 1.5 times slower.
    """
    features = _numba_config.CPU_FEATURES  # what numba was told to compile for; None: this processor
    wide = binding.get_host_cpu_features().get("avx512f", False) if features is None else "+avx512f" in features
    return 64 if wide else 32


BYTES = _vector_bytes()  #: size of a vector

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile a kernel on its first call; releases Python's lock, so that threads run it side by side.

    The result is kept on disk, for as long as no module of kernels changes.
    """
    kernel: Any = numba.njit(nogil=True, error_model="numpy")(function)
    kernel._cache = KernelCache(function, _cache_folder())  # what kernel.enable_caching() does with numba's own
    return cast(F, kernel)


def _cache_folder() -> Path:
    """Named by the content of all modules of kernels, since all of them decide what a kernel is."""
    base = Path(_numba_config.CACHE_DIR or platformdirs.user_cache_path("attribench", "attribench") / "kernels")
    sources = sorted(Path(__file__).parent.glob("_*.py"))
    return base / hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:16]


def inlined(function: F) -> F:
    """Compile a part of kernels, into each kernel that calls it."""
    return cast(F, numba.njit(nogil=True, error_model="numpy", forceinline=True)(function))


def operation(function: Callable[..., Any]) -> Callable[..., Any]:
    """Declare an operation by the LLVM instructions it becomes. Called without the first parameter, ``typing``."""
    return cast(Callable[..., Any], intrinsic(function))


class Vector(types.Type):
    """numba's type of a vector of ``BYTES`` bytes."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.bits = dtype.bitwidth
        self.lanes = BYTES * 8 // self.bits
        super().__init__(name=f"Vector({dtype} x {self.lanes})")

    @property
    def mantissa(self) -> int:
        """Bits of the mantissa."""
        return 23 if self.bits == 32 else 52

    def constant(self, number: float) -> Any:
        """``number`` in every lane, as an LLVM constant."""
        return ir.Constant(_llvm(self), [number] * self.lanes)


def _integers(vector: Vector) -> Any:
    """LLVM's type of the vector's bits as whole numbers."""
    return ir.VectorType(ir.IntType(vector.bits), vector.lanes)


def _llvm(vector: Vector) -> Any:
    return ir.VectorType(ir.FloatType() if vector.bits == 32 else ir.DoubleType(), vector.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        cast(Any, super()).__init__(manager, vector, _llvm(vector))


def _broadcast(builder: Any, number: Any, kind: Any) -> Any:
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), mask)


def _call(builder: Any, name: str, vector: Vector, operands: list[Any], flags: tuple[str, ...] = ()) -> Any:
    kind = _llvm(vector)
    signature = ir.FunctionType(kind, [kind] * len(operands))
    name = f"llvm.{name}.v{vector.lanes}f{vector.bits}"
    function = cast(Any, cgutils).get_or_insert_function(builder.module, signature, name)
    return builder.call(function, operands, fastmath=flags)


@operation
def pointer(typing: Any, array: Any) -> Any:
    """Where a contiguous array's numbers stand. Indexed like a flat array, but never checked, nor counted as a reference.

    Counting references takes longer than the parts of a kernel that arrays are handed to.
    """

    def generate(context: Any, builder: Any, signature: Any, v: Any) -> Any:
        return context.make_array(array)(context, builder, v[0]).data

    return cast(Any, types).CPointer(array.dtype)(array), generate


@operation
def width(typing: Any, array: Any) -> Any:
    """How many numbers of the dtype behind a pointer a vector holds; a constant to the compiler."""
    lanes = Vector(array.dtype).lanes
    return types.intp(array), lambda context, builder, signature, v: ir.Constant(ir.IntType(64), lanes)


@operation
def load(typing: Any, array: Any, index: Any) -> Any:
    """The vector that stands behind the pointer ``array`` from ``index`` on."""
    vector = Vector(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, v: Any) -> Any:
        pointer = builder.bitcast(builder.gep(v[0], [v[1]]), _llvm(vector).as_pointer())
        return builder.load(pointer, align=vector.bits // 8)

    return vector(array, types.intp), generate


@operation
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write a vector behind the pointer ``array``, from ``index`` on."""

    def generate(context: Any, builder: Any, signature: Any, v: Any) -> Any:
        pointer = builder.bitcast(builder.gep(v[0], [v[1]]), _llvm(value).as_pointer())
        builder.store(v[2], pointer, align=value.bits // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@operation
def spread(typing: Any, array: Any, index: Any) -> Any:
    """The number ``array[index]`` in every lane."""
    vector = Vector(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, v: Any) -> Any:
        return _broadcast(builder, builder.load(builder.gep(v[0], [v[1]])), _llvm(vector))

    return vector(array, types.intp), generate


@operation
def splat(typing: Any, number: Any, like: Any) -> Any:
    """``number`` in every lane of a vector of ``like``'s type."""
    return like(like.dtype, like), lambda context, builder, signature, v: _broadcast(builder, v[0], _llvm(like))


@operation
def add(typing: Any, a: Any, b: Any) -> Any:
    """a + b."""
    return a(a, a), lambda context, builder, signature, v: builder.fadd(v[0], v[1])


@operation
def sub(typing: Any, a: Any, b: Any) -> Any:
    """a − b."""
    return a(a, a), lambda context, builder, signature, v: builder.fsub(v[0], v[1])


@operation
def mul(typing: Any, a: Any, b: Any) -> Any:
    """a · b."""
    return a(a, a), lambda context, builder, signature, v: builder.fmul(v[0], v[1])


@operation
def div(typing: Any, a: Any, b: Any) -> Any:
    """a / b."""
    return a(a, a), lambda context, builder, signature, v: builder.fdiv(v[0], v[1])


@operation
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a · b + c, fused where the processor can."""
    return a(a, a, a), lambda context, builder, signature, v: _call(builder, "fmuladd", a, list(v))


@operation
def fms(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """c − a · b, fused where the processor can."""

    def generate(context: Any, builder: Any, signature: Any, v: Any) -> Any:
        return _call(builder, "fmuladd", a, [builder.fneg(v[0]), v[1], v[2]])

    return a(a, a, a), generate


# "nnan" lets LLVM use the processor's own instruction, which treats NaN differently from IEEE.
@operation
def maximum(typing: Any, a: Any, b: Any) -> Any:
    """The larger of a and b, neither of which may be NaN."""
    return a(a, a), lambda context, builder, signature, v: _call(builder, "maxnum", a, list(v), ("nnan",))


@operation
def minimum(typing: Any, a: Any, b: Any) -> Any:
    """The smaller of a and b, neither of which may be NaN."""
    return a(a, a), lambda context, builder, signature, v: _call(builder, "minnum", a, list(v), ("nnan",))


@operation
def choose(typing: Any, a: Any, b: Any, above: Any, otherwise: Any) -> Any:
    """``above`` where a > b, else ``otherwise``."""

    def generate(context: Any, builder: Any, signature: Any, v: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", v[0], v[1]), v[2], v[3])

    return a(a, a, a, a), generate


@operation
def highest(typing: Any, a: Any) -> Any:
    """The largest lane, as a number."""

    def generate(context: Any, builder: Any, signature: Any, v: Any) -> Any:
        value, count = v[0], a.lanes
        while count > 1:  # compare the upper half with the lower
            count //= 2
            kind = ir.VectorType(ir.IntType(32), count)
            lower = builder.shuffle_vector(value, value, ir.Constant(kind, list(range(count))))
            upper = builder.shuffle_vector(value, value, ir.Constant(kind, list(range(count, 2 * count))))
            value = builder.select(builder.fcmp_ordered(">", lower, upper), lower, upper)
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return a.dtype(a), generate


@operation
def any_above(typing: Any, a: Any, b: Any) -> Any:
    """Whether a > b in any lane."""

    def generate(context: Any, builder: Any, signature: Any, v: Any) -> Any:
        bits = builder.bitcast(builder.fcmp_ordered(">", v[0], v[1]), ir.IntType(a.lanes))
        return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(a.lanes), 0))

    return types.boolean(a, a), generate


@operation
def rounder(typing: Any, like: Any) -> Any:
    """The number whose addition rounds to a whole number n, and leaves n in the lowest bits of the sum's mantissa."""
    number = 1.5 * 2.0**like.mantissa
    return like(like), lambda context, builder, signature, v: like.constant(number)


@operation
def shift_exponent(typing: Any, value: Any, power: Any) -> Any:
    """``value`` · 2ⁿ with n from the lowest bits of ``power``'s mantissa; see :func:`rounder`."""

    def generate(context: Any, builder: Any, signature: Any, v: Any) -> Any:
        kind = _integers(value)
        shifted = builder.shl(builder.bitcast(v[1], kind), ir.Constant(kind, [value.mantissa] * value.lanes))
        return builder.bitcast(builder.add(builder.bitcast(v[0], kind), shifted), _llvm(value))

    return value(value, value), generate


def _on_bits(instruction: str) -> Callable[..., Any]:
    def declare(typing: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, v: Any) -> Any:
            operands = [builder.bitcast(value, _integers(a)) for value in v]
            return builder.bitcast(getattr(builder, instruction)(*operands), _llvm(a))

        return a(a, a), generate

    return operation(declare)


add_bits = _on_bits("add")  #: a + b, of the bits taken as whole numbers
sub_bits = _on_bits("sub")  #: a − b, likewise
mul_bits = _on_bits("mul")  #: a · b, likewise


@operation
def number_of_bits(typing: Any, a: Any) -> Any:
    """The whole number that the bits make, as a floating-point number."""

    def generate(context: Any, builder: Any, signature: Any, v: Any) -> Any:
        return builder.sitofp(builder.bitcast(v[0], _integers(a)), _llvm(a))

    return a(a), generate
