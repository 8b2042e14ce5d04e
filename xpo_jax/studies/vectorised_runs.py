"""Trains many runs of one objective with one compilation, one run on each device.

For models that fit on one device. Runs differ in hyperparameters, seed and data. The
trainer's step is scanned over a run's batches, without transfers to the host between
steps.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from xpo_jax.config import optim
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.data.pack import Batch, Batches
from xpo_jax.models import heads
from xpo_jax.models.transformer import Model
from xpo_jax.train import state, step
from xpo_jax.types import Params


class VectorisedRun(NamedTuple):
  """One run.

  Attributes:
    data: `stack`ed batches, one a step; all runs of a sweep have the same shapes.
    hparams: of `step.hparams`; all runs of a sweep have the same names.
    seed: of the method's random draws and of new heads.
  """

  data: Batch
  hparams: Mapping[str, Any]
  seed: int


class Outcome(NamedTuple):
  """Result of a run.

  Attributes:
    params: the final weights, `{"lm": ..., "value": ...}`, the latter if it has a head.
    curve: metric -> one value a step.
  """

  params: Params
  curve: dict[str, np.ndarray]

  @property
  def diverged(self) -> int | None:
    """The first step whose loss or gradient is not finite, or None."""
    finite = np.isfinite(self.curve["loss"]) & np.isfinite(self.curve["grad_norm"])
    return None if finite.all() else int(np.argmin(finite))


def stack(batches: Batches) -> Batch:
  """Stacks the batches of a run into one `Batch` with a leading axis of steps."""
  steps = [batches[i] for i in range(len(batches))]
  return jax.tree.map(lambda *x: np.stack(x), *steps)


class Sweep:
  """Runs of one objective from one start; `programs` contains the compiled ones."""

  def __init__(
    self,
    use: ObjectiveConfig,
    model: Model,
    start: Params,
    optimizer: optim.Optimizer,
    devices: Sequence[jax.Device] | None = None,
  ):
    """Sets what all runs share.

    Args:
      use: the objective; `VectorisedRun.hparams` replaces its hyperparameters.
      model: the architecture.
      start: `{"lm": ...}`; also the reference, whose statistics that the batches lack
        are computed in the step.
      optimizer: its learning rate is not used: it is in `VectorisedRun.hparams`.
      devices: one run at a time on each; None: all of this process.
    """
    self._use, self._model, self._optimizer = use, model, optimizer
    self._start = jax.device_get(start)
    self._devices = list(devices or jax.local_devices())
    self.programs: dict[int, Any] = {}

  def __call__(self, runs: Sequence[VectorisedRun]) -> list[Outcome]:
    """Trains every run.

    Raises:
      FloatingPointError: a run diverged; names run and step.
    """
    outcomes = self.attempt(runs)
    for i, outcome in enumerate(outcomes):
      at = outcome.diverged
      if at is not None:
        loss, norm = (outcome.curve[name][at] for name in ("loss", "grad_norm"))
        raise FloatingPointError(
          f"run {i} of the sweep: loss is {loss}, its gradient's norm {norm} at step "
          f"{at}; lower its learning rate"
        )
    return outcomes

  def attempt(self, runs: Sequence[VectorisedRun]) -> list[Outcome]:
    """Trains every run; the weights of one that `diverged` are invalid."""
    width = min(len(runs), len(self._devices))
    if width not in self.programs:
      self.programs[width] = self._compile(width)
    outcomes = []
    for first in range(0, len(runs), width):
      group = runs[first : first + width]
      # A short last group repeats its last run: one shape, one program.
      filled = [*group, *[group[-1]] * (width - len(group))]
      data, hparams = (
        jax.tree.map(lambda *x: np.stack(x), *[run[i] for run in filled])
        for i in range(2)
      )
      seeds = np.array([run.seed for run in filled])
      results = jax.device_get(self.programs[width](self._start, data, hparams, seeds))
      for i in range(len(group)):
        outcomes.append(Outcome(*jax.tree.map(lambda x, i=i: x[i], results)))
    return outcomes

  def _compile(self, width: int):
    objective = self._use.build()
    chain = optim.transform(self._optimizer, self._model.logical_axes())

    def train(start, data, hparams, seed):
      data, hparams, seed = jax.tree.map(lambda x: x[0], (data, hparams, seed))
      steps = data.weight_MB.shape[0]
      models = dict.fromkeys(("policy", "ref"), self._model)
      update = step.make_update(self._use.build, models, self._optimizer, steps)
      key = jax.random.key(seed)
      head = heads.init_reward_head(key, self._model.config.width)
      params = state.with_heads(objective, start, head)
      initial = state.create(params, chain, objective.init(), key)

      def one(carry, batch):
        return update(carry, {"ref": start}, batch, hparams)

      final, curve = jax.lax.scan(one, initial, data)
      outcome = (state.final_params(final), curve)
      return jax.tree.map(lambda x: jnp.asarray(x)[None], outcome)

    # No communication between runs: every device has the program of one run.
    mesh = Mesh(np.array(self._devices[:width]), ("run",), axis_types=(AxisType.Auto,))
    split = (P(), P("run"), P("run"), P("run"))
    return jax.jit(
      jax.shard_map(
        train, mesh=mesh, in_specs=split, out_specs=P("run"), check_vma=False
      )
    )
