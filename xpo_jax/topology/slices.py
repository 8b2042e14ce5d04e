"""Names slices of accelerators: chips, their memory and speed, and their devices.

TPU slices are described by libtpu (the extra `tpu-check`), which compiles for them on
any Linux machine. Of GPUs there is no compiler without one: their figures are by
arithmetic. Sources: Google Cloud's pages of each TPU version, NVIDIA's data sheets;
dense bfloat16, without sparsity.
"""

import dataclasses
import importlib.util
import math
import os
import re

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
  """An accelerator.

  Attributes:
    name: as in the name of a slice.
    hbm: bytes of memory that a program may use.
    flops: bfloat16 operations a second, peak.
    clock: cycles a second of the compiler's estimates; None: no compiler.
    shapes: of its slices, chips along each axis of the torus; (): any number.
  """

  name: str
  hbm: float
  flops: float
  clock: float | None = None
  shapes: tuple[tuple[int, ...], ...] = ()


GIB = 2**30
_SQUARES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_CUBES = (
  *((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8)),
  *((8, 8, 8), (8, 8, 16), (8, 16, 16), (16, 16, 16)),
)
CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v5e", 15.75 * GIB, 197e12, 1.5e9, _SQUARES),
    Chip("v5p", 95.74 * GIB, 459e12, 1.75e9, _CUBES),
    Chip("v6e", 31.25 * GIB, 918e12, 1.75e9, _SQUARES),
    Chip("a100-40gb", 39.4 * GIB, 312e12),
    Chip("a100-80gb", 79.2 * GIB, 312e12),
    Chip("h100", 79.6 * GIB, 989e12),
    Chip("h200", 139.8 * GIB, 989e12),
  )
}


@dataclasses.dataclass(frozen=True)
class Slice:
  """Chips of one kind that work together.

  Attributes:
    name: such as "v5e:16x16" or "h100:64".
    chip: of which kind.
    count: how many.
  """

  name: str
  chip: Chip
  count: int

  @property
  def compiled(self) -> bool:
    """Whether there is a compiler for it."""
    return self.chip.clock is not None


def parse(name: str) -> Slice:
  """Reads the name of a slice, CHIP:SHAPE of a TPU or CHIP:COUNT of GPUs.

  Raises:
    ValueError: no such chip or shape; the message lists those that are.
  """
  kind, _, size = name.partition(":")
  if kind not in CHIPS:
    raise ValueError(
      f"--topology {name!r}: no chip {kind!r}; allowed: {', '.join(CHIPS)}, with a "
      "shape or a number of them, such as v5e:16x16 or h100:64"
    )
  chip = CHIPS[kind]
  if chip.shapes:
    shapes = {"x".join(map(str, shape)): math.prod(shape) for shape in chip.shapes}
    if size not in shapes:
      allowed = ", ".join(f"{kind}:{shape}" for shape in shapes)
      raise ValueError(f"--topology {name!r} does not exist; allowed: {allowed}")
    return Slice(name, chip, shapes[size])
  if not re.fullmatch("[1-9][0-9]*", size):
    raise ValueError(
      f"--topology {name!r} needs a number of GPUs, at least 1, such as {kind}:8"
    )
  return Slice(name, chip, int(size))


def devices(slice_: Slice) -> list[jax.Device]:
  """Devices that programs are compiled for; none of them is there.

  Raises:
    ValueError: GPUs, or libtpu is not installed.
  """
  if not slice_.compiled:
    raise ValueError(f"{slice_.name}: there is no compiler for it without a GPU")
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      f"--topology {slice_.name} needs libtpu, which compiles for TPUs without one: "
      "pip install 'xpo_jax[tpu-check]' (Linux)"
    )
  # Read when libtpu starts: it would look for a TPU, and refuse a second process.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  from jax.experimental import topologies

  arguments = {}
  if slice_.name == "v5e:1x1":  # libtpu's default is a host of 2 x 2
    arguments = {"chips_per_host_bounds": (1, 1, 1)}
  found = topologies.get_topology_desc(slice_.name, "tpu", **arguments)
  return list(found.devices)
