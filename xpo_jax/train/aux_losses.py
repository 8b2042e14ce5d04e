"""Prepares auxiliary losses, each on data of its own: PPO-ptx, a retain set.

The batch of a loss is a function of the index of the optimiser step, so that a resumed
run continues with the same batches.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xpo_jax.config.experiment import AuxLossConfig
from xpo_jax.data import audit, collate, pack
from xpo_jax.data.pack import Batch, Batches
from xpo_jax.feedback import teacher
from xpo_jax.train import loading, references
from xpo_jax.train.loading import Datasets
from xpo_jax.types import AuxLoss, Objective


class AuxLosses(NamedTuple):
  """The auxiliary losses of a run and their batches.

  Attributes:
    losses: the losses.
    batches: batches of each loss, by `AuxLoss.data`.
    place: puts a batch on the mesh.
    counts: audit of each loss's data, with a digest of its examples.
  """

  losses: tuple[AuxLoss, ...]
  batches: Mapping[str, Batches]
  place: Callable[[Batch], Batch]
  counts: Mapping[str, Any]

  def batch(self, update: int) -> dict[str, Batch]:
    """The batch of each loss at an optimiser step of the run, from 0."""
    return {n: self.place(x[update % len(x)]) for n, x in self.batches.items()}


def check(configs: Sequence[AuxLossConfig], datasets: Datasets) -> None:
  """Reads the data of every loss once, before anything expensive.

  Raises:
    ValueError: no such data, or an objective that only rollouts can feed.
    BadRecords: bad rows, where they stop the run.
  """
  for config in configs:
    objective = config.objective.build()
    if any(column.startswith("old_") for column in objective.columns):
      raise ValueError(
        f"aux_losses {config.name!r}: {objective.name} reads what is recorded with "
        "rollouts; an auxiliary loss trains on data of its own"
      )
    if not loading.is_there(config.data):
      continue
    loaded = loading.load_checked(config.data, datasets)
    if not loaded.records:
      raise ValueError(f"aux_losses {config.name!r}: {loaded.name} holds no row")


def prepare(
  configs: Sequence[AuxLossConfig],
  tokenizer: Any,
  run_dir: Path,
  datasets: Datasets,
  place: Callable[[Batch], Batch],
) -> AuxLosses:
  """Reads, tokenises and packs the data of every loss.

  Args:
    configs: the losses, accepted by `check`.
    tokenizer: of the policy.
    run_dir: directory for the lists of dropped bad rows.
    datasets: see `loading.load`.
    place: puts a batch on the mesh.
  """
  losses = tuple(config.build() for config in configs)
  batches, counts = {}, {}
  for config, loss in zip(configs, losses, strict=True):
    data = config.data
    examples, audited = loading.examples(
      data, config.name, tokenizer, run_dir, datasets
    )
    examples = collate.to_layout(examples, loss.objective.layout, data.seed)
    counts[config.name] = audited | {"trained_on_sha256": audit.digest(examples)}
    batches[config.name] = pack.plan(
      examples, data.sizes, seed=data.seed, epochs=data.epochs, steps=data.steps
    )
  return AuxLosses(losses, batches, place, counts)


def joined(objective: Objective, losses: Sequence[AuxLoss]) -> Objective:
  """Adds the statistics of the losses to those of an objective, which select heads."""
  stats = objective.stats.union(*(loss.objective.stats for loss in losses))
  return objective._replace(stats=stats)


def read_reference(objective: Objective, losses: Sequence[AuxLoss]) -> bool:
  """Whether the step reads the reference's parameters: the objective, where they cannot
  be cached (`references.reads_live`), or a loss, whose data has no cache."""
  stats = [stat for loss in losses for stat in loss.objective.stats]
  in_losses = any(references.ROLE in stat.decoders for stat in stats)
  return in_losses or references.reads_live(objective)


def read_teacher(objective: Objective, losses: Sequence[AuxLoss]) -> bool:
  """Whether the step of a run on rollouts reads the teacher's parameters, as
  `read_reference`; that of a run on records always does."""
  in_losses = any(teacher.reads(loss.objective.stats) for loss in losses)
  return in_losses or references.reads_live(objective, teacher.TEACHER)
