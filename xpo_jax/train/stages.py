"""Trains the stages of an experiment in a store, and replaces them by directories.

A stage is cached in `STORE/OBJECTIVE-DIGEST`, where the digest covers the experiment
and everything that it reads. Runs that share a store share their equal stages.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xpo_jax.config import experiment as experiments
from xpo_jax.config import yaml_file
from xpo_jax.config.data import Data
from xpo_jax.config.experiment import (
  Experiment,
  NamedReference,
  Pretrained,
  Scratch,
  Stage,
)
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.sharding import distributed
from xpo_jax.train import loading, run_directory
from xpo_jax.train.loading import Datasets

RunStage = Callable[[Experiment, Path], bool]
"""`(experiment, directory) -> go on`: trains a stage or resumes it; False where it was
stopped."""


def default_store(run_dir: Path) -> Path:
  """The store of a run that shares no other: `RUN/stages`, or the directory of a run
  that is itself a stage."""
  if run_dir.parent.name == run_directory.STAGES:
    return run_dir.parent
  return run_dir / run_directory.STAGES


def of(experiment: Experiment) -> Iterator[Stage]:
  """Yields the stages of an experiment, without those within them, each once."""
  seen = []
  for _, stage in experiments.stages(experiment):
    if stage not in seen:
      seen.append(stage)
      yield stage


def resolve(
  experiment: Experiment, store: Path, datasets: Datasets, run_stage: RunStage
) -> Experiment | None:
  """Trains missing stages, and replaces each by its policy's directory.

  Args:
    experiment: the run, with stages in any field.
    store: directory of the stages.
    datasets: records by name; see `loop.train`.
    run_stage: trains one.

  Returns:
    The experiment without a `Stage`; None where a stage was stopped.
  """
  for stage in of(experiment):
    run_dir = directory(stage.experiment, store, datasets)
    if distributed.on_first((run_dir / run_directory.SUMMARY).exists):
      continue
    if not run_stage(stage.experiment, run_dir):
      return None
  policies = {
    id(stage): policy(stage, store, datasets)
    for _, stage in experiments.stages(experiment)
  }
  return replaced(experiment, lambda stage: policies[id(stage)])


def resolved(
  experiment: Experiment, run_dir: Path, store: Path | None, datasets: Datasets
) -> Experiment:
  """Replaces the stages of a finished run's experiment by their directories."""
  store = default_store(run_dir) if store is None else store
  return replaced(experiment, lambda stage: policy(stage, store, datasets))


def policy(stage: Stage, store: Path, datasets: Datasets) -> Path:
  """The directory of a stage's policy in a store."""
  run_dir = directory(stage.experiment, store, datasets)
  return run_directory.exported(run_dir, stage.experiment)


def directory(experiment: Experiment, store: Path, datasets: Datasets) -> Path:
  """The directory of a stage's run in a store."""
  name = experiment.objective.name.rpartition(":")[2]
  return store / f"{name}-{digest(experiment, datasets)[:12]}"


def digest(experiment: Experiment, datasets: Datasets) -> str:
  """Computes the SHA-256 of an experiment and of all that it reads: files, directories
  of weights, records given by name."""
  read = sorted(set(_read(experiment, datasets)))
  content = json.dumps([yaml_file.to_dict(experiment), read], sort_keys=True)
  return hashlib.sha256(content.encode()).hexdigest()


def replaced(value: Any, policy: Callable[[Stage], Path]) -> Any:
  """Replaces each `Stage` of a config by the directory of its policy.

  Args:
    value: an experiment or any part of one.
    policy: `stage -> directory`.
  """
  if isinstance(value, Stage):
    return str(policy(value))
  if isinstance(value, Configured):
    arguments = {n: replaced(x, policy) for n, x in value.arguments.items()}
    return Configured(value.name, **arguments)
  if type(value) in (list, tuple):
    return tuple(replaced(item, policy) for item in value)
  if not dataclasses.is_dataclass(value) or isinstance(value, ObjectiveConfig):
    return value
  changes = {}
  for name, item in experiments.children(value):
    if isinstance(value, Experiment | NamedReference) and isinstance(item, Stage):
      # A start, reference or teacher, which have a dtype and remat of their own.
      changes[name] = dataclasses.replace(
        source(item.experiment), directory=str(policy(item))
      )
    else:
      changes[name] = replaced(item, policy)
  changed = {n: x for n, x in changes.items() if x is not vars(value)[n]}
  return dataclasses.replace(value, **changed) if changed else value


def source(experiment: Experiment) -> Pretrained:
  """Config for reading the weights of a run: dtype and remat of its first start."""
  while isinstance(experiment.start, Stage):
    experiment = experiment.start.experiment
  start = experiment.start
  if isinstance(start, Scratch):
    return Pretrained("", start.model.compute_dtype, start.model.remat)
  return start


def _read(value: Any, datasets: Datasets) -> Iterator[tuple[str, str]]:
  """Yields the files and records that a config reads, with a digest of each."""
  for _, item in experiments.children(value):
    yield from _read(item, datasets)
  for name in ("path", "directory", "tokenizer", "critic_init"):
    location = vars(value).get(name) if dataclasses.is_dataclass(value) else None
    if isinstance(location, str):
      yield from _content(location, datasets)
  if isinstance(value, Data):
    for location, _ in value.others:
      yield from _content(location, datasets)
  if isinstance(value, Configured):
    for location in value.arguments.values():
      if isinstance(location, str):
        yield from _content(location, datasets)


def _content(location: str, datasets: Datasets) -> Iterator[tuple[str, str]]:
  if location in datasets:
    yield location, loading.records_digest(datasets[location])
  elif "\n" not in location and len(location) < 4096 and Path(location).exists():
    yield location, loading.files_digest(Path(location))
