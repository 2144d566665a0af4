"""Vectors of lanes inside Numba: a register-sized value type and the few operations the kernels need.

A `Lanes` value is one LLVM vector: 16 float32 or 8 float64 numbers (64 bytes: two AVX2 registers, one AVX-512
register, four NEON registers). LLVM splits it as the processor needs, so nothing here depends on the processor.
Written out this way a loop needs neither the loop vectoriser nor the SLP vectoriser (which Numba leaves off), and
accumulators stay in registers. Importing this module imports Numba: import it only from a kernel's first call.

Numba's cache does not see a change in this file when a kernel in another file uses it: after editing it, delete
`__pycache__/*.nbi` next to it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit
from numba.core import types
from numba.extending import models, register_model

intrinsic: Any = extending.intrinsic

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False}


def compiled(function: Callable[..., Any]) -> Any:
    """Compiles a loop at its first call, without the GIL, and keeps the result on disk where any folder can be written.

    Numba takes the package's `__pycache__`, or a folder of the user's, and refuses where neither is there.
    """
    try:
        return njit(cache=True, **OPTIONS)(function)
    except RuntimeError:
        return njit(**OPTIONS)(function)


#: Bytes of one vector of lanes.
BYTES = 64


class LanesType(types.Type):
    """Numba's type of a vector of lanes.

    Args:
        scalar: Numba type of one lane.
        width: number of lanes.
    """

    def __init__(self, scalar: Any, width: int) -> None:
        self.scalar = scalar
        self.width = width
        super().__init__(name=f"Lanes({scalar}, {width})")


class LanesModel(models.PrimitiveModel):
    """A vector of lanes is an LLVM vector."""

    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.VectorType(_element(kind.scalar), kind.width))


register_model(LanesType)(LanesModel)


def _element(scalar: Any) -> ir.Type:
    if isinstance(scalar, types.Float):
        return ir.FloatType() if scalar.bitwidth == 32 else ir.DoubleType()
    return ir.IntType(scalar.bitwidth)


def _lanes(scalar: Any) -> LanesType:
    return LanesType(scalar, BYTES * 8 // scalar.bitwidth)


def _integer(kind: LanesType) -> LanesType:
    return LanesType(types.Integer.from_bitwidth(kind.scalar.bitwidth), kind.width)


def _constant(kind: ir.Type, value: float | int) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count)  # pyright: ignore[reportAttributeAccessIssue]


def _address(context: Any, builder: Any, kind: Any, value: Any, index: Any, vector: ir.Type) -> Any:
    data = context.make_array(kind)(context, builder, value).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _call(builder: Any, name: str, result: ir.Type, values: list[Any], suffix: str | None = None) -> Any:
    suffix = suffix or _suffix(result)
    function = builder.module.declare_intrinsic(
        f"{name}.{suffix}", (), ir.FunctionType(result, [v.type for v in values])
    )
    return builder.call(function, values)


def _suffix(kind: Any) -> str:
    element = {"float": "f32", "double": "f64"}.get(str(kind.element), str(kind.element))
    return f"v{kind.count}{element}"


@intrinsic
def width(typing: Any, array: Any) -> Any:
    """Number of lanes of a vector of this array's element type."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return context.get_constant(types.intp, _lanes(array.dtype).width)

    return types.intp(array), code


@intrinsic
def zero(typing: Any, array: Any) -> Any:
    """A vector of zeros of this array's element type."""
    kind = _lanes(array.dtype)

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return ir.Constant(context.get_value_type(kind), None)

    return kind(array), code


@intrinsic
def splat(typing: Any, array: Any, index: Any) -> Any:
    """One element of an array in all lanes."""
    kind = _lanes(array.dtype)

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        vector = context.get_value_type(kind)
        data = context.make_array(array)(context, builder, values[0]).data
        return _splat(builder, vector, builder.load(builder.gep(data, [values[1]])))

    return kind(array, types.intp), code


def _splat(builder: Any, vector: ir.Type, value: Any) -> Any:
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)  # pyright: ignore[reportAttributeAccessIssue]
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), mask)


@intrinsic
def fill(typing: Any, array: Any, value: Any) -> Any:
    """A number in all lanes of a vector of this array's element type."""
    kind = _lanes(array.dtype)

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _splat(builder, context.get_value_type(kind), values[1])

    return kind(array, array.dtype), code


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """The lanes that start at flat position `index` of a contiguous array."""
    kind = _lanes(array.dtype)

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        vector = context.get_value_type(kind)
        address = _address(context, builder, array, values[0], values[1], vector)
        return builder.load(address, align=array.dtype.bitwidth // 8)

    return kind(array, types.intp), code


@intrinsic
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Writes lanes at flat position `index` of a contiguous array."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        address = _address(context, builder, array, values[0], values[1], values[2].type)
        builder.store(values[2], address, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), code


def _mask(builder: Any, count: Any, lanes: int) -> Any:
    vector = ir.VectorType(ir.IntType(64), lanes)
    steps = ir.Constant(vector, list(range(lanes)))
    return builder.icmp_signed("<", steps, _splat(builder, vector, count))


@intrinsic
def zero_half(typing: Any, array: Any) -> Any:
    """Half a vector of zeros."""
    kind = LanesType(array.dtype, _lanes(array.dtype).width // 2)

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return ir.Constant(context.get_value_type(kind), None)

    return kind(array), code


@intrinsic
def load_half(typing: Any, array: Any, index: Any) -> Any:
    """Half as many lanes as `load`: more of them fit into the registers."""
    kind = LanesType(array.dtype, _lanes(array.dtype).width // 2)

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        address = _address(context, builder, array, values[0], values[1], context.get_value_type(kind))
        return builder.load(address, align=array.dtype.bitwidth // 8)

    return kind(array, types.intp), code


@intrinsic
def peek(typing: Any, array: Any, index: Any) -> Any:
    """The element at flat position `index` of a contiguous array."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(array)(context, builder, values[0]).data
        return builder.load(builder.gep(data, [values[1]]))

    return array.dtype(array, types.intp), code


@intrinsic
def poke(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Writes the element at flat position `index` of a contiguous array."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(array)(context, builder, values[0]).data
        builder.store(values[2], builder.gep(data, [values[1]]))
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype), code


@intrinsic
def load_some(typing: Any, array: Any, index: Any, count: Any, other: Any) -> Any:
    """The first `count` lanes at flat position `index`; `other` in the rest, which is not read."""
    kind = _lanes(array.dtype)

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        vector = context.get_value_type(kind)
        address = _address(context, builder, array, values[0], values[1], vector)
        mask = _mask(builder, values[2], kind.width)
        rest = _splat(builder, vector, values[3])
        align = ir.Constant(ir.IntType(32), array.dtype.bitwidth // 8)
        return _call(builder, "llvm.masked.load", vector, [address, align, mask, rest], f"{_suffix(vector)}.p0")

    return kind(array, types.intp, types.intp, array.dtype), code


@intrinsic
def store_some(typing: Any, array: Any, index: Any, value: Any, count: Any) -> Any:
    """Writes the first `count` lanes at flat position `index`."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        vector = values[2].type
        address = _address(context, builder, array, values[0], values[1], vector)
        mask = _mask(builder, values[3], vector.count)
        align = ir.Constant(ir.IntType(32), array.dtype.bitwidth // 8)
        function = builder.module.declare_intrinsic(
            f"llvm.masked.store.{_suffix(vector)}.p0",
            (),
            ir.FunctionType(ir.VoidType(), [vector, address.type, align.type, mask.type]),
        )
        builder.call(function, [values[2], address, align, mask])
        return context.get_dummy_value()

    return types.void(array, types.intp, value, types.intp), code


def _binary(name: str, emit: Callable[[Any, Any, Any], Any], doc: str) -> Any:
    def operation(typing: Any, a: Any, b: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return emit(builder, values[0], values[1])

        return a(a, a), code

    operation.__name__ = operation.__qualname__ = name
    operation.__doc__ = doc
    return intrinsic(operation)


add = _binary("add", lambda builder, a, b: builder.fadd(a, b), "a + b.")
sub = _binary("sub", lambda builder, a, b: builder.fsub(a, b), "a - b.")
mul = _binary("mul", lambda builder, a, b: builder.fmul(a, b), "a b.")
larger = _binary(
    "larger",
    lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b),
    "a where a > b, else b (so b where either is NaN).",
)
ratio = _binary(
    "ratio",
    lambda builder, a, b: builder.select(
        builder.fcmp_ordered(">", b, ir.Constant(b.type, None)),
        builder.fdiv(a, b),
        ir.Constant(b.type, None),
    ),
    "a / b where b > 0, else 0.",
)
lift = _binary(
    "lift",
    lambda builder, a, b: builder.select(
        builder.fcmp_ordered("<", a, b), _constant(a.type, 2.0**64), _constant(a.type, 1.0)
    ),
    "2^64 where a < b, else 1.",
)
where_positive = _binary(
    "where_positive",
    lambda builder, a, b: builder.select(
        builder.fcmp_ordered(">", b, ir.Constant(b.type, None)), a, ir.Constant(b.type, None)
    ),
    "a where b > 0, else 0.",
)


@intrinsic
def where_above(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """The first where b > c, else 0."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        zeros = ir.Constant(values[0].type, None)
        return builder.select(builder.fcmp_ordered(">", values[1], values[2]), values[0], zeros)

    return a(a, a, a), code


@intrinsic
def finite(typing: Any, a: Any) -> Any:
    """a, but 0 where it is infinite: what may be subtracted from an infinity without a NaN."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        x = values[0]
        infinity = _constant(x.type, float("inf"))
        size = _call(builder, "llvm.fabs", x.type, [x])
        return builder.select(builder.fcmp_ordered("==", size, infinity), ir.Constant(x.type, None), x)

    return a(a), code


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """A b + c, fused where the processor can."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _call(builder, "llvm.fmuladd", values[0].type, list(values))

    return a(a, a, a), code


@intrinsic
def total(typing: Any, a: Any) -> Any:
    """Sum over the lanes."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        vector = values[0].type
        function = builder.module.declare_intrinsic(
            f"llvm.vector.reduce.fadd.{_suffix(vector)}",
            (),
            ir.FunctionType(vector.element, [vector.element, vector]),
        )
        start = ir.Constant(vector.element, 0.0)
        return builder.call(function, [start, values[0]], fastmath=("reassoc",))

    return a.scalar(a), code


@intrinsic
def largest(typing: Any, a: Any) -> Any:
    """Maximum over the lanes."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        vector = values[0].type
        result = builder.extract_element(values[0], ir.Constant(ir.IntType(32), 0))
        for lane in range(1, vector.count):
            other = builder.extract_element(values[0], ir.Constant(ir.IntType(32), lane))
            result = builder.select(builder.fcmp_ordered(">", other, result), other, result)
        return result

    return a.scalar(a), code


@intrinsic
def zero_index(typing: Any, array: Any) -> Any:
    """A vector of integer zeros, as wide as this array's elements."""
    kind = _integer(_lanes(array.dtype))

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return ir.Constant(context.get_value_type(kind), None)

    return kind(array), code


@intrinsic
def index_larger(typing: Any, candidate: Any, best: Any, index: Any, indices: Any) -> Any:
    """`index` where candidate > best, else `indices`."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        vector = values[3].type
        number = values[2]
        if vector.element.width < 64:
            number = builder.trunc(number, vector.element)
        larger_ = builder.fcmp_ordered(">", values[0], values[1])
        return builder.select(larger_, _splat(builder, vector, number), values[3])

    return indices(candidate, best, types.int64, indices), code


@intrinsic
def store_index(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Writes a vector of indices into an array of integers of their size or a smaller one."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        small = ir.VectorType(ir.IntType(array.dtype.bitwidth), values[2].type.count)
        address = _address(context, builder, array, values[0], values[1], small)
        number = values[2] if values[2].type.element.width == array.dtype.bitwidth else builder.trunc(values[2], small)
        builder.store(number, address, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), code


# exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2) / 2. float32: the minimax polynomial of Cephes' expf (Moshier,
# 1989); float64: the Taylor polynomial of degree 13 (truncation 4e-18).
_EXP = {
    32: {
        "magic": 12582912.0,
        "shift": 23,
        "hi": 0.693359375,
        "lo": -2.12194440e-4,
        "coefficients": [
            1.9875691500e-4,
            1.3981999507e-3,
            8.3334519073e-3,
            4.1665795894e-2,
            1.6666665459e-1,
            5.0000001201e-1,
            1.0,
            1.0,
        ],
        "low": -87.33,
        "high": 88.72,
    },
    64: {
        "magic": 6755399441055744.0,
        "shift": 52,
        "hi": 6.93147180369123816490e-01,
        "lo": 1.90821492927058770002e-10,
        "coefficients": [1.0 / float(np.prod(np.arange(1.0, d + 1.0))) for d in range(13, -1, -1)],
        "low": -708.39,
        "high": 709.78,
    },
}


@intrinsic
def exp(typing: Any, a: Any) -> Any:
    """Exp in every lane: 0 below the smallest normal number, inf above the largest, NaN stays NaN."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        x = values[0]
        vector = x.type
        table = _EXP[a.scalar.bitwidth]
        integers = ir.VectorType(ir.IntType(a.scalar.bitwidth), vector.count)

        def number(value: float) -> Any:
            if a.scalar.bitwidth == 32:
                value = float(np.float32(value))
            return _constant(vector, value)

        def multiply_add(p: Any, q: Any, r: Any) -> Any:
            return _call(builder, "llvm.fmuladd", vector, [p, q, r])

        shifted = multiply_add(x, number(1.4426950408889634), number(table["magic"]))
        n = builder.fsub(shifted, number(table["magic"]))
        r = multiply_add(n, number(-table["hi"]), x)
        r = multiply_add(n, number(-table["lo"]), r)
        value = number(table["coefficients"][0])
        for coefficient in table["coefficients"][1:]:
            value = multiply_add(value, r, number(coefficient))
        power = builder.shl(builder.bitcast(shifted, integers), _constant(integers, table["shift"]))
        value = builder.bitcast(builder.add(builder.bitcast(value, integers), power), vector)
        value = builder.select(builder.fcmp_ordered("<", x, number(table["low"])), ir.Constant(vector, None), value)
        value = builder.select(builder.fcmp_ordered(">", x, number(table["high"])), number(float("inf")), value)
        return builder.select(builder.fcmp_unordered("uno", x, x), x, value)

    return a(a), code


@intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Asks for the cache line at flat position `index` of a contiguous array."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(array)(context, builder, values[0]).data
        address = builder.gep(data, [values[1]])
        number = ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch.p0", (), ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
        )
        builder.call(function, [address, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), code


def _shuffle(builder: Any, a: Any, b: Any, positions: list[int]) -> Any:
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(positions)), positions)
    return builder.shuffle_vector(a, b, mask)


def _transpose(builder: Any, r: list[Any]) -> list[Any]:
    """The transpose of 4 vectors of 4."""
    low, high = [0, 4, 1, 5], [2, 6, 3, 7]
    a, b = _shuffle(builder, r[0], r[1], low), _shuffle(builder, r[0], r[1], high)
    c, d = _shuffle(builder, r[2], r[3], low), _shuffle(builder, r[2], r[3], high)
    first, second = [0, 1, 4, 5], [2, 3, 6, 7]
    return [
        _shuffle(builder, a, c, first),
        _shuffle(builder, a, c, second),
        _shuffle(builder, b, d, first),
        _shuffle(builder, b, d, second),
    ]


def _tile_addresses(context: Any, builder: Any, kinds: Any, values: Any, lanes: int) -> list[Any]:
    array, offsets = kinds
    data = context.make_array(array)(context, builder, values[0]).data
    places = context.make_array(offsets)(context, builder, values[1]).data
    four = ir.VectorType(_element(array.dtype), 4)
    result = []
    for lane in range(lanes):
        place = builder.load(builder.gep(places, [ir.IntType(64)(lane)]))
        address = builder.gep(data, [builder.add(place, values[2])])
        result.append(builder.bitcast(address, four.as_pointer()))
    return result


def _store_turned(
    context: Any, builder: Any, source: Any, addresses: list[Any], target: Any, value: Any, base: Any, width: int
) -> None:
    """Four numbers at each lane's address to four vectors of lanes from `base` on."""
    vector, size = ir.VectorType(_element(source.dtype), width), source.dtype.bitwidth // 8
    rows = [builder.load(a, align=size) for a in addresses]
    blocks = [_transpose(builder, rows[i : i + 4]) for i in range(0, width, 4)]
    for j in range(4):
        parts = [block[j] for block in blocks]
        while len(parts) > 1:
            n = parts[0].type.count
            parts = [_shuffle(builder, parts[i], parts[i + 1], list(range(2 * n))) for i in range(0, len(parts), 2)]
        place = builder.add(base, ir.IntType(64)(j * width))
        builder.store(parts[0], _address(context, builder, target, value, place, vector), align=size)


def _load_turned(
    context: Any, builder: Any, target: Any, addresses: list[Any], source: Any, value: Any, base: Any, width: int
) -> None:
    """The reverse."""
    vector, size = ir.VectorType(_element(target.dtype), width), target.dtype.bitwidth // 8
    columns = []
    for j in range(4):
        place = builder.add(base, ir.IntType(64)(j * width))
        columns.append(builder.load(_address(context, builder, source, value, place, vector), align=size))
    for i in range(0, width, 4):
        part = [_shuffle(builder, c, c, list(range(i, i + 4))) for c in columns]
        for j, row in enumerate(_transpose(builder, part)):
            builder.store(row, addresses[i + j], align=size)


@intrinsic
def take_tile(typing: Any, source: Any, offsets: Any, column: Any, target: Any, position: Any) -> Any:
    """Four columns of one row for every lane: lane i of vector j becomes source[offsets[i] + column + j]."""
    width = _lanes(source.dtype).width

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        addresses = _tile_addresses(context, builder, (source, offsets), values, width)
        _store_turned(context, builder, source, addresses, target, values[3], values[4], width)
        return context.get_dummy_value()

    return types.void(source, offsets, types.intp, target, types.intp), code


@intrinsic
def put_tile(typing: Any, target: Any, offsets: Any, column: Any, source: Any, position: Any) -> Any:
    """The reverse of `take_tile`: target[offsets[i] + column + j] becomes lane i of vector j."""
    width = _lanes(target.dtype).width

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        addresses = _tile_addresses(context, builder, (target, offsets), values, width)
        _load_turned(context, builder, target, addresses, source, values[3], values[4], width)
        return context.get_dummy_value()

    return types.void(target, offsets, types.intp, source, types.intp), code


def _spaced(context: Any, builder: Any, kind: Any, values: Any, lanes: int) -> list[Any]:
    """Addresses first, first + step, ... of an array, one a lane; the values are the array, first and step."""
    data = context.make_array(kind)(context, builder, values[0]).data
    first, step = values[1], values[2]
    number = ir.IntType(64)
    return [builder.gep(data, [builder.add(first, builder.mul(step, number(lane)))]) for lane in range(lanes)]


@intrinsic
def gather(typing: Any, source: Any, first: Any, step: Any) -> Any:
    """Lane i becomes source[first + i step]."""
    kind = _lanes(source.dtype)

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        result = ir.Constant(context.get_value_type(kind), ir.Undefined)
        for lane, address in enumerate(_spaced(context, builder, source, values, kind.width)):
            result = builder.insert_element(result, builder.load(address), ir.Constant(ir.IntType(32), lane))
        return result

    return kind(source, types.intp, types.intp), code


@intrinsic
def scatter(typing: Any, target: Any, first: Any, step: Any, value: Any) -> Any:
    """The reverse of `gather`."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        lanes = values[3].type.count
        for lane, address in enumerate(_spaced(context, builder, target, values, lanes)):
            builder.store(builder.extract_element(values[3], ir.Constant(ir.IntType(32), lane)), address)
        return context.get_dummy_value()

    return types.void(target, types.intp, types.intp, value), code


@intrinsic
def gather_four(typing: Any, source: Any, first: Any, step: Any, target: Any, position: Any) -> Any:
    """Four neighbours for every lane: lane i of vector j at `position` becomes source[first + i step + j]."""
    width = _lanes(source.dtype).width

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        four = ir.VectorType(_element(source.dtype), 4).as_pointer()
        places = _spaced(context, builder, source, values, width)
        addresses = [builder.bitcast(x, four) for x in places]
        _store_turned(context, builder, source, addresses, target, values[3], values[4], width)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, target, types.intp), code


@intrinsic
def scatter_four(typing: Any, target: Any, first: Any, step: Any, source: Any, position: Any) -> Any:
    """The reverse of `gather_four`: target[first + i step + j] becomes lane i of vector j."""
    width = _lanes(target.dtype).width

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        four = ir.VectorType(_element(target.dtype), 4).as_pointer()
        places = _spaced(context, builder, target, values, width)
        addresses = [builder.bitcast(x, four) for x in places]
        _load_turned(context, builder, target, addresses, source, values[3], values[4], width)
        return context.get_dummy_value()

    return types.void(target, types.intp, types.intp, source, types.intp), code


@intrinsic
def store_pairs(typing: Any, array: Any, index: Any, a: Any, b: Any) -> Any:
    """Writes a[0], b[0], a[1], b[1], ... from flat position `index` of a contiguous array on."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        target, place, a, b = values
        n, size = a.type.count, array.dtype.bitwidth // 8
        for half in range(2):
            mixed = _shuffle(builder, a, b, [half * n // 2 + k // 2 + k % 2 * n for k in range(n)])
            at = builder.add(place, ir.IntType(64)(half * n))
            builder.store(mixed, _address(context, builder, array, target, at, a.type), align=size)
        return context.get_dummy_value()

    return types.void(array, types.intp, a, b), code


@intrinsic
def log(typing: Any, a: Any) -> Any:
    """The natural logarithm in every float64 lane, as fdlibm's: log 0 = -inf, below 0 and NaN give NaN."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        given = values[0]
        vector = given.type
        integers = ir.VectorType(ir.IntType(64), vector.count)

        def number(value: float) -> Any:
            return _constant(vector, value)

        def multiply_add(p: Any, q: Any, r: Any) -> Any:
            return _call(builder, "llvm.fmuladd", vector, [p, q, r])

        small = builder.fcmp_ordered("<", given, number(2.2250738585072014e-308))
        x = builder.select(small, builder.fmul(given, number(2.0**54)), given)
        # x = 2^k m with m in [sqrt(1/2), sqrt(2)): subtract sqrt(1/2)'s bits, so that the exponent carries over there.
        bits = builder.bitcast(x, integers)
        offset = _constant(integers, 0x3FE6A09E00000000)
        shifted = builder.sub(bits, offset)
        k = builder.ashr(shifted, _constant(integers, 52))
        kept = builder.and_(shifted, _constant(integers, 0x000FFFFFFFFFFFFF))
        m = builder.bitcast(builder.add(kept, offset), vector)
        # The integer k as a float64, by the bits of 2^52 + 2^51.
        magic = 6755399441055744.0
        exponent = builder.bitcast(builder.add(k, _constant(integers, int(np.float64(magic).view(np.int64)))), vector)
        exponent = builder.fsub(exponent, number(magic))
        exponent = builder.select(small, builder.fsub(exponent, number(54.0)), exponent)
        f = builder.fsub(m, number(1.0))
        s = builder.fdiv(f, builder.fadd(f, number(2.0)))
        z = builder.fmul(s, s)
        series = number(1.479819860511658591e-01)
        for coefficient in (
            1.531383769920937332e-01,
            1.818357216161805012e-01,
            2.222219843214978396e-01,
            2.857142874366239149e-01,
            3.999999999940941908e-01,
            6.666666666666735130e-01,
        ):
            series = multiply_add(series, z, number(coefficient))
        half = builder.fmul(builder.fmul(number(0.5), f), f)
        inner = builder.fmul(s, multiply_add(series, z, half))
        inner = multiply_add(exponent, number(1.90821492927058770002e-10), inner)
        result = builder.fsub(f, builder.fsub(half, inner))
        result = multiply_add(exponent, number(6.93147180369123816490e-01), result)
        zeros = ir.Constant(vector, None)
        infinity = number(float("inf"))
        result = builder.select(builder.fcmp_ordered("==", given, infinity), infinity, result)
        result = builder.select(builder.fcmp_ordered("==", given, zeros), number(float("-inf")), result)
        return builder.select(builder.fcmp_unordered("<", given, zeros), number(float("nan")), result)

    return a(a), code
