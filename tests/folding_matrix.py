"""The matrix of small graphs that folding is tested on: families of cases, each a product."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from folding_cases import BATCH, TYPES, Case, Layer, array, batch_norm, ints

SOURCES = ("initializer", "Constant", "Identity", "ConstantOfShape", "input", "input of IR 3")
OPSETS = (1, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 18, 21, 22)
C, M = 2, 4  # channels into and out of convolutions


def conv(
    groups: int = 1,
    rank: int = 4,
    pads: int = 0,
    bias: bool = True,
    kernel: int = 2,
    **more: object,
) -> Layer:
    spatial = [kernel, *[2] * (rank - 3)] if rank < 5 else [kernel, 1, 2]
    constants = {1: array(M, C // groups, *spatial)}
    if bias:
        constants[2] = array(M, seed=3)
    attributes = {"group": groups, "kernel_shape": spatial, **more}
    if pads:
        attributes["pads"] = [pads] * 2 * (rank - 2)
    return Layer("Conv", constants, attributes)


def conv_transpose(
    groups: int = 1,
    rank: int = 4,
    stride: int = 1,
    bias: bool = True,
    kernel: int = 2,
    pads: int = 0,
) -> Layer:
    spatial = [kernel] * (rank - 2)
    constants = {1: array(C, M // groups, *spatial)}
    if bias:
        constants[2] = array(M, seed=3)
    attributes = {"group": groups, "kernel_shape": spatial, "strides": [stride] * (rank - 2)}
    return Layer("ConvTranspose", constants, attributes | {"pads": [pads] * 2 * (rank - 2)})


def gemm(
    trans_a: int = 0,
    trans_b: int = 0,
    c: tuple[int, ...] | None = (3,),
    factor: float = 1.0,
    inner: int = C,
) -> Layer:
    constants = {1: array(*((3, inner) if trans_b else (inner, 3)))}
    if c is not None:
        constants[2] = array(*c, seed=3)
    attributes = {"transA": trans_a, "transB": trans_b, "alpha": factor, "beta": 1.5 * factor}
    return Layer("Gemm", constants, attributes)


def image(rank: int = 4) -> tuple[int, ...]:
    return (BATCH, C, 4, 3, 3)[:rank] if rank > 3 else (BATCH, C, 5)


def label(**parts: object) -> str:
    return "-".join(f"{key}={value}" for key, value in parts.items())


def convolutions() -> Iterator[Case]:
    """Behind Conv and ConvTranspose, whatever pads, groups and rank."""
    for groups, rank, pads, bias in itertools.product((1, 2), (3, 4, 5), (0, 1), (False, True)):
        name = label(groups=groups, rank=rank, pads=pads, bias=bias)
        layers = [conv(groups, rank, pads, bias), batch_norm(M)]
        yield Case(f"Conv-BN-{name}", layers, image(rank))
    for groups, rank, stride, bias in itertools.product((1, 2), (3, 4), (1, 2), (False, True)):
        name = label(groups=groups, rank=rank, stride=stride, bias=bias)
        layers = [conv_transpose(groups, rank, stride, bias), batch_norm(M)]
        yield Case(f"ConvTranspose-BN-{name}", layers, image(rank))


def into_convolutions() -> Iterator[Case]:
    """Before Conv and ConvTranspose: padding and gaps stop a shift, not a scale."""
    modes: dict[str, tuple[int, dict[str, object]]] = {
        "none": (0, {}),
        "zeros": (1, {}),
        "SAME_UPPER": (0, {"auto_pad": "SAME_UPPER"}),
        "VALID": (0, {"auto_pad": "VALID"}),
    }
    products = itertools.product((1, 2), (3, 4, 5), modes, (False, True), (False, True))
    for groups, rank, mode, shift, bias in products:
        name = label(groups=groups, rank=rank, padding=mode, shift=shift, bias=bias)
        pads, more = modes[mode]
        layers = [batch_norm(C, shift=shift), conv(groups, rank, pads, bias, **more)]
        yield Case(f"BN-Conv-{name}", layers, image(rank))
    even = [batch_norm(C), conv(auto_pad="SAME_LOWER", strides=[2, 2])]
    yield Case("BN-Conv-SAME_LOWER-fits", even, (BATCH, C, 4, 4))
    yield Case("BN-Conv-SAME_LOWER-pads", even, (BATCH, C, 5, 4))
    products = itertools.product((1, 2), (1, 2), (1, 2), (0, 1), (False, True))
    for groups, kernel, stride, pads, shift in products:
        if kernel == 1 and pads:
            continue
        name = label(groups=groups, kernel=kernel, stride=stride, pads=pads, shift=shift)
        layers = [
            batch_norm(C, shift=shift),
            conv_transpose(groups, 4, stride, kernel=kernel, pads=pads),
        ]
        yield Case(f"BN-ConvTranspose-{name}", layers, image())


def products() -> Iterator[Case]:
    """Behind and before Gemm and MatMul."""
    shapes: tuple[tuple[int, ...] | None, ...] = (None, (), (3,), (1, 3), (BATCH, 1), (BATCH, 3))
    for trans_a, trans_b, c, factor in itertools.product((0, 1), (0, 1), shapes, (1.0, -0.5)):
        name = label(transA=trans_a, transB=trans_b, C=c, factor=factor)
        shape = (C, BATCH) if trans_a else (BATCH, C)
        layer = gemm(trans_a, trans_b, c, factor)
        yield Case(f"Gemm-BN-{name}", [layer, batch_norm(3)], shape)
        if c in (None, (3,), (BATCH, 3)):
            layers = [batch_norm(shape[1]), layer]
            yield Case(f"BN-Gemm-{name}", layers, shape)
    swap = Layer("Transpose", {}, {"perm": [0, 2, 1]})
    right, left = Layer("MatMul", {1: array(C, 3)}), Layer("MatMul", {0: array(3, C)}, {}, 1)
    add = Layer("Add", {1: array(3, seed=3)})
    yield Case("MatMul-BN", [right, batch_norm(3)], (BATCH, C))
    yield Case("MatMul-Add-BN", [right, add, batch_norm(3)], (BATCH, C))
    yield Case("MatMul-Transpose-BN", [right, swap, batch_norm(3)], (BATCH, 4, C))
    yield Case("MatMul-Add-Transpose-BN", [right, add, swap, batch_norm(3)], (BATCH, 4, C))
    turn = Layer("Transpose", {}, {"perm": [0, 3, 1, 2]})
    yield Case("MatMul-last-to-first-BN", [right, turn, batch_norm(3)], (BATCH, 4, 2, C))
    yield Case("MatMul-BN-along-rows", [right, batch_norm(4)], (BATCH, 4, C))
    yield Case("left-MatMul-BN", [left, batch_norm(3)], (BATCH, C, 4))
    yield Case("left-MatMul-Transpose-BN", [left, swap, batch_norm(4)], (BATCH, C, 4))
    yield Case("BN-MatMul", [batch_norm(C), right], (BATCH, C))
    yield Case("BN-MatMul-Add", [batch_norm(C), right, add], (BATCH, C))
    yield Case("BN-MatMul-unshifted", [batch_norm(C, shift=False), right], (BATCH, C))
    yield Case("BN-Transpose-MatMul-Add", [batch_norm(C), swap, right, add], (BATCH, C, 4))
    yield Case("BN-MatMul-over-length", [batch_norm(C), right], (BATCH, C, C))
    yield Case("BN-left-MatMul", [batch_norm(C), left], (BATCH, C, 4))
    stack = Layer("MatMul", {1: array(BATCH, C, 3)})
    yield Case("stacked-MatMul-Transpose-BN", [stack, swap, batch_norm(3)], (BATCH, 4, C))
    yield Case("BN-Transpose-stacked-MatMul", [batch_norm(C), swap, stack], (BATCH, C, 4))


def passages() -> Iterator[Case]:
    """Past pooling, reductions and layout, for scales of both signs, with a shift and without."""
    pool = {"kernel_shape": [2, 2]}
    carriers: dict[str, Layer] = {
        "AveragePool": Layer("AveragePool", {}, pool),
        "AveragePool-padded": Layer("AveragePool", {}, {**pool, "pads": [1] * 4}),
        "AveragePool-counted": Layer(
            "AveragePool", {}, {**pool, "pads": [1] * 4, "count_include_pad": 1}
        ),
        "MaxPool": Layer("MaxPool", {}, pool),
        "MaxPool-padded": Layer("MaxPool", {}, {**pool, "pads": [1] * 4}),
        "GlobalAveragePool": Layer("GlobalAveragePool"),
        "GlobalMaxPool": Layer("GlobalMaxPool"),
        "Relu": Layer("Relu"),
        "Identity": Layer("Identity"),
        "Dropout": Layer("Dropout"),
        "Pad-zeros": Layer("Pad", {1: ints(0, 0, 1, 1, 0, 0, 1, 1)}),
        "Pad-value": Layer("Pad", {1: ints(0, 0, 1, 0, 0, 0, 0, 1), 2: np.array(0.5)}),
        "Pad-reflect": Layer("Pad", {1: ints(0, 0, 1, 1, 0, 0, 1, 1)}, {"mode": "reflect"}),
        "Pad-edge": Layer("Pad", {1: ints(0, 0, 1, 1, 0, 0, 1, 1)}, {"mode": "edge"}),
        "Pad-axes": Layer("Pad", {1: ints(1, 1), 2: np.array(0.0), 3: ints(-1)}),
    }
    for name, sign, shift in itertools.product(carriers, (0, 1), (False, True)):
        kind = label(sign=sign or "both", shift=shift)
        after = [conv(), carriers[name], batch_norm(M, shift=shift, sign=sign)]
        yield Case(f"Conv-{name}-BN-{kind}", after, (BATCH, C, 5, 4))
        before = [batch_norm(C, shift=shift, sign=sign), carriers[name], conv(kernel=1, rank=4)]
        before[2] = Layer("Conv", {1: array(M, C, 1, 1), 2: array(M, seed=3)})
        yield Case(f"BN-{name}-Conv-{kind}", before, (BATCH, C, 3, 3))
    unit = Layer("Conv", {1: array(M, C, 1, 1), 2: array(M, seed=3)})
    for name in ("Pad-zeros", "Pad-value"):
        after = [conv(), carriers[name], same_batch_norm(M)]
        yield Case(f"Conv-{name}-BN-same-in-all", after, (BATCH, C, 5, 4))
        before = [same_batch_norm(C), carriers[name], unit]
        yield Case(f"BN-{name}-Conv-same-in-all", before, (BATCH, C, 3, 3))


def same_batch_norm(channels: int) -> Layer:
    """A batch norm that does the same to every channel."""
    numbers = enumerate((2.0, 1.0, 0.5, 3.0), start=1)
    return Layer("BatchNormalization", {i: np.full(channels, v) for i, v in numbers})


def reshapes() -> Iterator[Case]:
    """Between layouts: what Flatten, Reshape, Transpose and reductions do to the channels."""
    norm, flat, wide = batch_norm(C), Layer("Flatten", {}, {"axis": 1}), gemm(inner=4 * C)
    swap = Layer("Transpose", {}, {"perm": [0, 2, 3, 1]})
    pool = Layer("MaxPool", {}, {"kernel_shape": [2, 2]})
    mean = Layer("ReduceMean", {1: ints(2, 3)}, {"keepdims": 0})
    across = Layer("ReduceMean", {1: ints(1)}, {"keepdims": 0})
    before = {
        "Flatten": [norm, flat, wide],
        "Reshape": [norm, reshape(0, -1), wide],
        "Reshape-counted": [norm, reshape(-1, 4 * C), wide],
        "MaxPool-Flatten": [batch_norm(C, sign=1), pool, flat, gemm()],
        "GlobalAveragePool-Flatten": [norm, Layer("GlobalAveragePool"), flat, gemm()],
        "ReduceMean": [norm, mean, gemm()],
        "ReduceMean-of-channels": [norm, across, flat, gemm(inner=4)],
        "Transpose-Flatten": [norm, swap, flat, wide],
    }
    for name, layers in before.items():
        yield Case(f"BN-{name}-Gemm", layers, (BATCH, C, 2, 2))
    squeeze = [norm, Layer("Squeeze", {1: ints(-1)}), gemm()]
    yield Case("BN-Squeeze-Gemm", squeeze, (BATCH, C, 1))
    behind = {
        "Reshape": [gemm(), reshape(0, 3, 1), batch_norm(3)],
        "Reshape-merged": [gemm(), reshape(-1, 1), batch_norm(1)],
        "Reshape-split": [gemm(), reshape(0, 1, 3), batch_norm(1)],
        "Reshape-across": [gemm(), reshape(3, -1), batch_norm(BATCH)],
        "Unsqueeze": [gemm(), Layer("Unsqueeze", {1: ints(2)}), batch_norm(3)],
    }
    for name, layers in behind.items():
        yield Case(f"Gemm-{name}-BN", layers, (BATCH, C))
    squeezed = [conv(rank=3), Layer("Squeeze", {1: ints(2)}), batch_norm(M)]
    yield Case("Conv-Squeeze-BN", squeezed, (BATCH, C, 2))
    turn = Layer("Transpose", {}, {"perm": [0, 2, 1, 3]})
    shuffle = [conv(), reshape(0, 2, 2, -1), turn, reshape(0, 4, 4, 3), batch_norm(4)]
    yield Case("Conv-shuffle-BN", shuffle, (BATCH, C, 5, 4))


def reshape(*shape: int) -> Layer:
    return Layer("Reshape", {1: ints(*shape)})


def neighbours() -> Iterator[Case]:
    """With constant Mul, Add, Sub and Div between and around."""
    column = array(M, 1, 1, seed=4)
    for op, index in itertools.product(("Mul", "Add", "Sub", "Div"), (0, 1)):
        layer = Layer(op, {1 - index: column}, {}, index)
        if (op, index) != ("Div", 1):
            yield Case(f"Conv-{op}{index}-BN", [conv(), layer, batch_norm(M)], image())
            yield Case(f"Conv-BN-{op}{index}", [conv(), batch_norm(M), layer], image())
    both = [Layer("Mul", {1: column}), Layer("Add", {1: column})]
    yield Case("Conv-BN-Mul-Add", [conv(), batch_norm(M), *both], image())
    yield Case("Conv-Mul-Add-BN", [conv(), *both, batch_norm(M)], image())


FAMILIES = {
    "Conv-BN": ([conv(), batch_norm(M)], image()),
    "BN-Conv": ([batch_norm(C), conv()], image()),
    "ConvTranspose-BN": ([conv_transpose(2), batch_norm(M)], image()),
    "Gemm-BN": ([gemm(trans_b=1), batch_norm(3)], (BATCH, C)),
    "BN-Gemm": ([batch_norm(C), gemm()], (BATCH, C)),
}


def writings() -> Iterator[Case]:
    """The same graphs in other types and opsets, their parameters from elsewhere, read by more."""
    for (name, (layers, shape)), dtype in itertools.product(FAMILIES.items(), TYPES):
        yield Case(f"{name}-{dtype}", layers, shape, opset=22, dtype=dtype)
    for (name, (layers, shape)), source in itertools.product(FAMILIES.items(), SOURCES):
        opset = 8 if source == "input of IR 3" else 18
        yield Case(f"{name}-from-{source}", layers, shape, opset=opset, source=source)
    for (name, (layers, shape)), opset in itertools.product(FAMILIES.items(), OPSETS):
        yield Case(f"{name}-opset{opset}", layers, shape, opset=opset)
    readers = ("an output", "a second reader", "a shared weight")
    for (name, (layers, shape)), who, clone in itertools.product(
        FAMILIES.items(), readers, (False, True)
    ):
        yield Case(f"{name}-{who}-clone={clone}", layers, shape, readers=who, clone=clone)


CASES = [
    case
    for family in (
        convolutions,
        into_convolutions,
        products,
        passages,
        reshapes,
        neighbours,
        writings,
    )
    for case in family()
]
