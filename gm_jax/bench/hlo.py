"""The matrix products of a program, counted in its text (HLO), as the compiler is given it.

A compiler's own cost analysis counts the body of a loop once. Here a body counts as often as its
loop runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple


_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_LINE = re.compile(r"^  (?:ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\((.*)$")
_ARRAY = re.compile(r"^([a-z]+)(\d*)\w*\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:to_apply|calls|body)=%?([\w.-]+)")


class Work(NamedTuple):
    """What matrix products do and move."""

    flops: int
    moved: int  # bytes of their operands and results, if nothing stays on the chip in between


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    result: str  # type
    operation: str
    rest: str  # operands and attributes


def work(text: str) -> Work:
    """Return the matrix products of one call of a program.

    Loops must count from 0 in steps of 1, as those of `scan` do. A loop whose bound is an argument
    counts once, the branches of a conditional not at all: of `learner.train` one iteration without
    its validation.

    Args:
        text: `lowered.as_text(dialect="hlo")`.
    """
    computations, entry = parse(text)
    known: dict[str, Work] = {}

    def of(name: str) -> Work:
        if name not in known:
            parts = [Work(0, 0), *parts_of(name)]
            known[name] = Work(sum(p.flops for p in parts), sum(p.moved for p in parts))
        return known[name]

    def parts_of(name: str) -> Iterator[Work]:
        types = {line.name: line.result for line in computations[name]}
        for line in computations[name]:
            if line.operation == "dot":
                yield _product(line, types)
            times = _trips(line, computations) if line.operation == "while" else 1
            if line.operation in ("while", "call", "fusion"):
                inner = of(_CALLED.findall(line.rest)[0])
                yield Work(times * inner.flops, times * inner.moved)

    return of(entry)


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Return the instructions of every computation, and the name of the first to run.

    Args:
        text: of a lowered or of a compiled program.
    """
    computations: dict[str, list[Instruction]] = {}
    entry = ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name = head[2]
            computations[name] = []
            entry = name if head[1] else entry
        elif found := _LINE.match(line):
            computations[name].append(Instruction(*found.groups()))
    return computations, entry


def _product(line: Instruction, types: dict[str, str]) -> Work:
    """Return the work of one matrix product: 2 · results · terms of each sum."""
    names = [name.strip().split()[-1].lstrip("%") for name in line.rest.split(")")[0].split(",")]
    operands = [_array(types[name]) for name in names]
    result = _array(line.result)
    axes = re.findall(r"lhs_contracting_dims=\{([\d,]*)\}", line.rest)[0].split(",")
    terms = math.prod(operands[0][0][int(axis)] for axis in axes)
    moved = sum(math.prod(sizes) * width for sizes, width in (*operands, result))
    return Work(2 * math.prod(result[0]) * terms, moved)


def _array(kind: str) -> tuple[list[int], int]:
    """Return the sizes of an array type such as f32[3,8,16], and the bytes of an entry."""
    found = _ARRAY.match(kind)
    if not found:
        raise ValueError(f"an operand of a matrix product is {kind}, expected an array")
    return [int(size) for size in found[3].split(",") if size], int(found[2]) // 8


def _trips(line: Instruction, computations: dict[str, list[Instruction]]) -> int:
    """Return how often a loop runs: the constant its counter is held to, 1 if there is none."""
    condition = computations[re.findall(r"condition=%?([\w.-]+)", line.rest)[0]]
    last = condition[-1]
    compared = {name.strip().lstrip("%") for name in last.rest.split(")")[0].split(",")}
    bounds = [
        int(x.rest.split(")")[0])
        for x in condition
        if x.operation == "constant" and x.name in compared
    ]
    return bounds[0] if len(bounds) == 1 and "direction=LT" in last.rest else 1
