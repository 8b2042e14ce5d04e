"""Reads a compiled TPU program: FLOPs, estimated cycles and collectives of one run.

XLA's own `cost_analysis` counts the body of a loop once. Here each counts as often as
it runs: as its condition and its counter say, or for loops whose length is data, as
`loops` says. Kernels that the text does not show (custom calls) count nothing:
`flops.in_kernels` counts them.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from xpo_jax.topology.flops import Loops

_COMPUTATION = re.compile(r"^(ENTRY )?%([^ ]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([^ ]+) = (.*)$")
_SHAPE = re.compile(r"([a-z][a-z0-9]*)\[([0-9,]*)\]")
_OPCODE = re.compile(r"(?:^|[ )])([a-z][a-z0-9\-]*)\(")
_NAME = re.compile(r"%([^ ,)}]+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}
_COLLECTIVES = (
  *("all-gather", "all-reduce", "reduce-scatter"),
  *("collective-permute", "all-to-all"),
)
# A fusion of an all-reduce and the slice that a device keeps of it: it is computed as a
# reduce-scatter, the whole sum is nowhere.
_REDUCE_SCATTER = "all-reduce-scatter"


class Cost(NamedTuple):
  """What one device computes in one run of a program.

  Attributes:
    flops: of matrix products.
    cycles: the compiler's estimates, added up; a lower bound, without waiting.
    collectives: kind -> (runs, bytes of their results).
  """

  flops: float
  cycles: float
  collectives: Mapping[str, tuple[float, float]]


class _Instruction(NamedTuple):
  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  text: str
  root: bool
  constant: int | None


_Computation = dict[str, _Instruction]


def read(text: str, loops: Loops) -> Cost:
  """Counts what a compiled module computes.

  Args:
    text: `compiled.as_text()` of a program for TPUs.
    loops: `op_name -> trips` of a loop whose length the text does not say; op_name is
      the path of the JAX operation (`jax.named_scope` names parts of it).

  Raises:
    ValueError: text without an entry computation.
  """
  computations, entry = _parse(text)
  if entry is None:
    raise ValueError("the text of the compiled module has no ENTRY computation")
  return _Reader(computations, loops).total(entry)


def _parse(text: str) -> tuple[dict[str, _Computation], str | None]:
  computations: dict[str, _Computation] = {}
  entry, current = None, {}
  for line in text.splitlines():
    if start := _COMPUTATION.match(line):
      current = computations[start[2]] = {}
      entry = start[2] if start[1] else entry
    elif found := _INSTRUCTION.match(line):
      one = _instruction(found[1], found[2], line.lstrip().startswith("ROOT"))
      current[one.name] = one
  return computations, entry


def _instruction(name: str, rest: str, root: bool) -> _Instruction:
  found = _OPCODE.search(rest, _shape_end(rest))
  shape, opcode = rest[: found.start(1)], found[1]
  depth, end = 1, found.end()
  while depth:  # to the parenthesis that closes the operands
    depth += {"(": 1, ")": -1}.get(rest[end], 0)
    end += 1
  inside = rest[found.end() : end - 1]
  number = re.fullmatch(r"-?\d+", inside) if opcode == "constant" else None
  constant = int(number[0]) if number else None
  operands = tuple(_NAME.findall(inside))
  return _Instruction(name, shape, opcode, operands, rest[end:], root, constant)


def _shape_end(rest: str) -> int:
  """Where the shape at the start of an instruction ends; a tuple's may hold spaces."""
  if not rest.startswith("("):
    return rest.index(" ")
  depth = 0
  for at, letter in enumerate(rest):
    depth += {"(": 1, ")": -1}.get(letter, 0)
    if not depth:
      return at
  raise ValueError(f"a shape without an end: {rest[:80]}")


class _Reader:
  """Adds up costs; every computation is read once."""

  def __init__(self, computations: dict[str, _Computation], loops: Loops):
    self._computations, self._loops = computations, loops
    self._known: dict[str, tuple[float, float, dict]] = {}

  def total(self, entry: str) -> Cost:
    flops, cycles, channels = self._cost(entry)
    kinds: dict[str, tuple[float, float]] = {}
    for (kind, _), (runs, size) in channels.items():
      before = kinds.get(kind, (0.0, 0.0))
      kinds[kind] = (before[0] + runs, before[1] + runs * size)
    return Cost(flops, cycles, kinds)

  def _cost(self, name: str) -> tuple[float, float, dict]:
    if name not in self._known:
      self._known[name] = self._add_up(self._computations[name])
    return self._known[name]

  def _add_up(self, computation: _Computation) -> tuple[float, float, dict]:
    flops = cycles = 0.0
    channels: dict[tuple[str, str], tuple[float, float]] = {}
    for one in computation.values():
      own = _CYCLES.search(one.text)
      cycles += float(own[1]) if own else 0.0
      flops += _product_flops(one, computation)
      kind = one.opcode.removesuffix("-start")
      if kind in _COLLECTIVES:
        _join(channels, (kind, _channel(one)), 1.0, _result_bytes(one))
      # Fusions carry the cycles of all that they hold.
      fused = one.opcode == "fusion"
      for called, times in self._called(one, computation):
        inner_flops, inner_cycles, inner = self._cost(called)
        if called.startswith(_REDUCE_SCATTER):
          inner = {("reduce-scatter", one.name): (1.0, _result_bytes(one))}
        flops += times * inner_flops
        cycles += 0.0 if fused else times * inner_cycles
        for key, (runs, size) in inner.items():
          _join(channels, key, times * runs, size)
    return flops, cycles, channels

  def _called(
    self, one: _Instruction, computation: _Computation
  ) -> Iterator[tuple[str, float]]:
    """Computations that an instruction runs, and how often."""
    if one.opcode == "while":
      yield _attribute(one, "body"), self._trips(one, computation)
    elif one.opcode == "conditional":
      branches = re.search(r"branch_computations=\{([^}]*)\}", one.text)
      names = (
        _NAME.findall(branches[1])
        if branches
        else [
          _attribute(one, "true_computation"),
          _attribute(one, "false_computation"),
        ]
      )
      yield max(names, key=lambda name: self._cost(name)[:2]), 1.0
    elif one.opcode in ("fusion", "async-start"):
      yield _attribute(one, "calls"), 1.0
    elif one.opcode == "call":
      yield _attribute(one, "to_apply"), 1.0

  def _trips(self, one: _Instruction, computation: _Computation) -> float:
    """How often the body of a loop runs."""
    condition = self._computations[_attribute(one, "condition")]
    body = self._computations[_attribute(one, "body")]
    compare = next(x for x in condition.values() if x.root)
    initial = computation.get(one.operands[0])
    if compare.opcode == "compare" and "direction=LT" in compare.text:
      at, limit = (condition.get(name) for name in compare.operands)
      index = _index(at)
      bound = _constant(limit)
      if bound is None and initial is not None and initial.opcode == "tuple":
        start = computation.get(initial.operands[_index(limit)])
        # Only what does not change in the loop bounds it.
        bound = _constant(start) if _carried(body, _index(limit)) else None
      if bound is not None and index is not None:
        first = 0
        if initial is not None and initial.opcode == "tuple":
          first = _constant(computation.get(initial.operands[index])) or 0
        return math.ceil((bound - first) / _step(body, index))
    op_name = re.search(r'op_name="([^"]*)"', one.text)
    return self._loops(op_name[1] if op_name else "")


def _join(channels: dict, key: tuple[str, str], runs: float, size: float) -> None:
  """Adds a collective; the parts of one that is split up share a channel."""
  before = channels.get(key, (0.0, 0.0))
  channels[key] = (max(before[0], runs), max(before[1], size))


def _attribute(one: _Instruction, name: str) -> str:
  return re.search(rf"{name}=%([^ ,]+)", one.text)[1]


def _channel(one: _Instruction) -> str:
  found = re.search(r"channel_id=(\d+)", one.text)
  # JAX gives all collectives of its `shard_map`s the first channel.
  return one.name if found is None or found[1] == "1" else found[1]


def _result_bytes(one: _Instruction) -> float:
  """Bytes of a collective's result; an asynchronous one has operand and result."""
  sizes = [
    math.prod(dims) * _BYTES.get(kind, _integer_bytes(kind))
    for kind, dims in _shapes(one.shape)
  ]
  return max(sizes) if one.opcode.endswith("-start") else sum(sizes)


def _integer_bytes(kind: str) -> float:
  bits = re.search(r"\d+", kind)
  return int(bits[0]) / 8 if bits else 0


def _shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
  return [
    (kind, tuple(int(size) for size in dims.split(",") if size))
    for kind, dims in _SHAPE.findall(re.sub(r"/\*.*?\*/", "", text))
  ]


def _constant(one: _Instruction | None) -> int | None:
  return None if one is None else one.constant


def _index(one: _Instruction | None) -> int | None:
  """Index of a value among those that a loop carries."""
  found = one and re.search(r"index=(\d+)", one.text)
  return int(found[1]) if found else None


def _carried(body: _Computation, index: int) -> bool:
  """Whether a loop hands on one of its values as it is."""
  root = next(x for x in body.values() if x.root)
  handed_on = body.get(root.operands[index])
  return handed_on is not None and _index(handed_on) == index


def _step(body: _Computation, index: int) -> int:
  """What a loop adds to its counter."""
  root = next(x for x in body.values() if x.root)
  one, total = body.get(root.operands[index]), 0
  while one is not None and one.opcode == "add":
    left, right = (body.get(name) for name in one.operands)
    if _constant(left) is not None:
      left, right = right, left
    total += _constant(right) or 0
    one = left
  return total or 1


def _product_flops(one: _Instruction, computation: _Computation) -> float:
  """FLOPs of a matrix product: two for each multiplication of the definition."""
  if one.opcode not in ("convolution", "dot"):
    return 0.0
  out, left, right = (
    _shapes(shape)[0][1]
    for shape in (one.shape, *(computation[name].shape for name in one.operands[:2]))
  )
  if one.opcode == "dot":
    contracted = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", one.text)
    sizes = [left[int(axis)] for axis in contracted[1].split(",") if axis]
    return 2.0 * math.prod(out) * math.prod(sizes)
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.text)
  of_left, of_right, of_out = labels.groups()
  window = _window(one.text)
  pairs = 1
  for axis in filter(str.isdigit, of_out):
    size, kernel = left[of_left.index(axis)], right[of_right.index(axis)]
    pairs *= _valid_pairs(size, kernel, out[of_out.index(axis)], *window(int(axis)))
  features = out[of_out.index("f")] * right[of_right.index("i")]
  return 2.0 * out[of_out.index("b")] * features * pairs


def _window(text: str) -> Callable[[int], tuple[int, int, int, int]]:
  """`axis -> (stride, padding before, dilation of the left, of the right)`."""
  found = re.search(r"window=\{([^}]*)\}", text)
  fields = dict(part.split("=") for part in found[1].split()) if found else {}

  def of(axis: int) -> tuple[int, int, int, int]:
    def number(name: str, default: str) -> int:
      values = fields.get(name, "").split("x")
      value = values[axis] if fields.get(name) else default
      return int(value.split("_")[0])

    return (
      number("stride", "1"),
      number("pad", "0"),
      number("lhs_dilate", "1"),
      number("rhs_dilate", "1"),
    )

  return of


def _valid_pairs(
  size: int, kernel: int, out: int, stride: int, pad: int, dilate: int, spread: int
) -> int:
  """Pairs of output and kernel positions along an axis that meet an element.

  The compiler writes batched products as convolutions, most of whose pairs meet
  padding or the gaps of a dilated operand.
  """
  if dilate == stride == spread == 1 and pad == 0:
    return out * kernel
  count = 0
  for at in range(out):
    first = at * stride - pad
    for k in range(kernel):
      position = first + k * spread
      count += position % dilate == 0 and 0 <= position // dilate < size
  return count
