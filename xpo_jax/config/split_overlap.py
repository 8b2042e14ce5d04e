"""Refuses runs that train on their own held-out prompts.

A prompt is assigned a number in [0, 1), a hash of a seed and its text (`data.split`);
portions and shares are intervals. So an overlap is known before a record is read.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from xpo_jax.config.data import Data, Prompts
from xpo_jax.config.experiment import Experiment, stages
from xpo_jax.config.factories import Configured
from xpo_jax.data import split


class _Cut(NamedTuple):
  """The prompts of a source whose hash lies in [low, high)."""

  where: str
  source: tuple[str, str]
  seed: int
  low: float
  high: float


def check(experiment: Experiment) -> None:
  """Refuses a run whose stages or auxiliary losses train on prompts that it holds out.

  Args:
    experiment: the run. Its own training prompts and the held-out ones are disjoint;
      those of its stages may overlap, where a seed or a share of one was changed.

  Raises:
    ValueError: they overlap; names both fields and the fix.
  """
  held = _held(experiment)
  for cut, held_out in itertools.product(_others(experiment), held):
    if cut.source != held_out.source:
      continue
    if cut.seed != held_out.seed:
      raise ValueError(
        f"{cut.where}.seed is {cut.seed}, {held_out.where}.seed is {held_out.seed}: "
        "prompts that this run holds out would be trained on there; set both the same"
      )
    if max(cut.low, held_out.low) < min(cut.high, held_out.high):
      raise ValueError(
        f"{cut.where} trains on {_said(cut)} of {cut.source[0]!r} and this run holds "
        f"out {_said(held_out)}: set a portion there or an evaluation.share beside it, "
        "as large as this run's, so that both leave out the same prompts"
      )


def _said(cut: _Cut) -> str:
  whole = (cut.low, cut.high) == (0, 1)
  return "all prompts" if whole else f"prompts {cut.low:.0%} to {cut.high:.0%}"


def _held(experiment: Experiment) -> list[_Cut]:
  data, evaluation = experiment.data.source, experiment.evaluation
  field = type(data).__name__
  if evaluation.share:
    low = 1 - evaluation.share
    return [own._replace(low=max(own.low, low)) for own in _cuts(field, data)]
  if evaluation.path is None:
    return []
  source = _source(evaluation.path, evaluation.split)
  low, high = _range(evaluation.portion)
  return [_Cut(field, source, data.seed, low, high)]


def _others(experiment: Experiment, before: str = "") -> Iterator[_Cut]:
  """Yields the prompts that auxiliary losses and stages train on; data that a function
  makes has no source to compare."""
  for loss in experiment.aux_losses:
    yield from _cuts(f"{before}aux_losses[{loss.name}].data", loss.data)
  for where, stage in stages(experiment):
    inner, path = stage.experiment, f"{before}{where}.experiment."
    data = inner.data.source
    for cut in _cuts(f"{path}{_name(inner)}", data):
      yield cut._replace(high=min(cut.high, 1 - inner.evaluation.share))
    yield from _others(inner, path)


def _name(experiment: Experiment) -> str:
  """The path of an experiment's records or prompts within it."""
  return "data" if experiment.data.source is experiment.data else "data.prompts"


def _cuts(where: str, data: Data | Prompts) -> list[_Cut]:
  """The prompts of each source of the data."""
  if isinstance(data.path, Configured):
    return []
  also = [path for path, _ in data.others] if isinstance(data, Data) else []
  return [
    _Cut(where, _source(path, data.split), data.seed, *_range(data.portion))
    for path in (data.path, *also)
  ]


def _range(portion: str | None) -> tuple[float, float]:
  """The interval of [0, 1) of a portion."""
  if portion is None:
    return 0.0, 1.0
  names = list(split.PORTIONS)
  shares = list(split.PORTIONS.values())
  at = names.index(portion)
  return sum(shares[:at]), sum(shares[: at + 1])


def _source(path: str, name: str) -> tuple[str, str]:
  """A path, and its split where it has splits."""
  return path, name if path.startswith("hub:") or Path(path).is_dir() else ""
