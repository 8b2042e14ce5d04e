"""Further objectives of a run, each on data of its own: PPO-ptx, a retain set.

The batch of a part is a function of the update's number, so that a resumed run takes
up every part where it stood.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xpo_jax.config.experiment import AuxLossConfig
from xpo_jax.data import audit, collate, pack, records
from xpo_jax.data.pack import Batch, Batches
from xpo_jax.train import loading, references
from xpo_jax.train.loading import Datasets
from xpo_jax.types import AuxLoss, Objective


class Beside(NamedTuple):
  """The parts of a run and their batches.

  Attributes:
    parts: built.
    batches: by `AuxLoss.data`.
    place: puts a batch on the mesh.
    counts: of each one's data, and a digest of what is trained on.
  """

  parts: tuple[AuxLoss, ...]
  batches: Mapping[str, Batches]
  place: Callable[[Batch], Batch]
  counts: Mapping[str, Any]

  def batch(self, update: int) -> dict[str, Batch]:
    """Each part's batch at an update of the run, from 0."""
    return {n: self.place(x[update % len(x)]) for n, x in self.batches.items()}


def check(uses: Sequence[AuxLossConfig], datasets: Datasets) -> None:
  """Reads every part's data once, before anything expensive.

  Raises:
    ValueError: no such data, or an objective that only rollouts can feed.
    BadRecords: bad records, where they stop the run.
  """
  for use in uses:
    objective = use.objective.build()
    if any(field.startswith("old_") for field in objective.columns):
      raise ValueError(
        f"part {use.name!r}: {objective.name} reads what is recorded with rollouts; a "
        "part trains on data of its own"
      )
    loaded = loading.load(use.data, use.data, datasets)
    if loaded.bad and use.data.bad_rows == "stop":
      raise records.BadRecords(loaded.bad)
    if not loaded.records:
      raise ValueError(f"part {use.name!r}: {loaded.name} holds no row")


def prepare(
  uses: Sequence[AuxLossConfig],
  tokenizer: Any,
  run_dir: Path,
  datasets: Datasets,
  place: Callable[[Batch], Batch],
) -> Beside:
  """Reads, tokenises and packs the data of every part.

  Args:
    uses: the parts; `check` let them pass.
    tokenizer: of the policy.
    run_dir: bad rows that are dropped are listed there.
    datasets: see `loading.load`.
    place: puts a batch on the mesh.
  """
  parts, batches, counts = tuple(use.build() for use in uses), {}, {}
  for use, part in zip(uses, parts, strict=True):
    data = use.data
    examples, found = loading.examples(
      data, tokenizer, run_dir / f"bad_rows_{use.name}.jsonl", datasets
    )
    examples = collate.to_layout(examples, part.objective.layout, data.seed)
    counts[use.name] = found | {"trained_on_sha256": audit.digest(examples)}
    batches[use.name] = pack.plan(
      examples,
      pack.PackSizes(
        data.rows_per_step, data.microbatches, data.row_length, data.groups_per_row
      ),
      seed=data.seed,
      epochs=data.epochs,
      steps=data.steps,
    )
  return Beside(parts, batches, place, counts)


def joined(objective: Objective, parts: Sequence[AuxLoss]) -> Objective:
  """The objective with the needs of all: which heads the policy must have."""
  stats = objective.stats.union(*(part.objective.stats for part in parts))
  return objective._replace(stats=stats)


def read_reference(parts: Sequence[AuxLoss]) -> bool:
  """Must the reference's parameters stay for the steps?"""
  stats = [stat for part in parts for stat in part.objective.stats]
  return any(role.split(".")[0] == references.ROLE for s in stats for role in s.roles)
