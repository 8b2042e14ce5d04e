"""What is read of a compiled program against what it was written to compute."""

from pathlib import Path

import pytest

from tests.fixtures.hlo import write
from xpo_jax.topology import hlo

FIXTURES = Path(__file__).parents[1] / "fixtures" / "hlo"
TEXT = (FIXTURES / "loops_v5e.txt").read_text()


@pytest.fixture(scope="module")
def cost():
  return hlo.read(TEXT, {"jit(program)/data/while": 3.0}.__getitem__)


def test_flops_of_loops_and_batched_products_are_those_of_the_program(cost):
  rows = write.ROWS // 4  # of each chip
  layers = (write.LAYERS + 3) * 2 * rows * write.WIDTH**2
  pairs = 2 * write.BATCH // 4 * 64 * 64 * 32
  assert cost.flops == layers + pairs


def test_each_layer_is_gathered_once_a_trip(cost):
  size = 2 * write.WIDTH**2  # bfloat16
  assert cost.collectives == {
    "all-gather": (write.LAYERS + 3, (write.LAYERS + 3) * size)
  }


def test_each_reduce_scatter_of_one_channel_counts():
  """Also those that are written as a fusion of an all-reduce and a slice."""
  text = (FIXTURES / "scattered_v5e.txt").read_text()
  ((kind, (runs, size)),) = (
    item
    for item in hlo.read(text, {}.__getitem__).collectives.items()
    if item[0] in ("reduce-scatter", "all-reduce")
  )
  assert (kind, runs) == ("reduce-scatter", 2 * len(write.LINES))
  whole = 2 * 2 * write.SUM[0] * write.SUM[1]  # two sums, bfloat16
  least = whole / 4 + whole / 16  # after a line of 4, and after the second
  assert least <= size < 1.1 * least  # the compiler pads some


def test_cycles_grow_with_the_trips(cost):
  other = hlo.read(TEXT, lambda path: 6.0)
  loop = (other.cycles - cost.cycles) / 3
  # A layer's product alone, at the peak of 197 TFLOP/s and 1.5 GHz.
  assert loop > 2 * write.ROWS // 4 * write.WIDTH**2 / 197e12 * 1.5e9
  assert cost.cycles > (write.LAYERS + 3) * loop * 0.5


@pytest.mark.parametrize(
  "size, kernel, out, stride, pad, dilate, spread, expected",
  [
    (4, 2, 3, 1, 0, 1, 1, 6),  # plain
    (3, 3, 3, 1, 1, 1, 1, 7),  # padded: the outer outputs miss one each
    (2, 2, 2, 1, 0, 2, 1, 2),  # a batch of two as a dilated operand
    (1, 8, 8, 1, 7, 1, 1, 8),  # an outer product: one element meets each
  ],
)
def test_pairs_of_a_convolution_that_meet_an_element(
  size, kernel, out, stride, pad, dilate, spread, expected
):
  pairs = hlo._valid_pairs(size, kernel, out, stride, pad, dilate, spread)
  assert pairs == expected


def test_text_that_is_no_module_is_refused():
  with pytest.raises(ValueError, match="no ENTRY computation"):
    hlo.read("HloModule nothing", lambda path: 1.0)
