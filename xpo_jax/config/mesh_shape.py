"""Configures the mesh of devices: how many along each of its axes."""

import dataclasses

from xpo_jax.config import checks


@dataclasses.dataclass(frozen=True)
class MeshShape:
  """Devices along each axis of the mesh; their product is the number of devices.

  Attributes:
    data: copies of the model, each with its rows; None: all devices that the other
      axes leave. 1 x 1 x 1 is one device, however many there are.
    fsdp: shards of parameters and optimiser state; rows are split over it too. None:
      all devices that the other axes leave; `data` is then 1 where it is None.
    tensor: shards of heads, MLP and vocabulary.
  """

  data: int | None = None
  fsdp: int | None = 1
  tensor: int = 1

  def __post_init__(self):
    checks.check_positive(self, "data", "fsdp", "tensor")
