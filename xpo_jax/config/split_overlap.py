"""Held-out prompts that something of the same run trains on, refused.

A prompt's place in [0, 1) is a hash of a seed and its text (`data.split`); portions
and shares are parts of that line. So whether two meet is known before a row is read.
"""

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
    experiment: its own training prompts and the held-out ones never meet; those of the
      stages before may, where the shell changed a seed or a share of one of them.

  Raises:
    ValueError: they meet; names both fields and says what to set.
  """
  held = _held(experiment)
  if held is None:
    return
  for cut in _others(experiment):
    if cut.source != held.source:
      continue
    if cut.seed != held.seed:
      raise ValueError(
        f"{cut.where}.seed is {cut.seed}, {held.where}.seed is {held.seed}: prompts "
        "that this run holds out would be trained on there; set both the same"
      )
    if max(cut.low, held.low) < min(cut.high, held.high):
      raise ValueError(
        f"{cut.where} trains on {_said(cut)} of {cut.source[0]!r} and this run holds "
        f"out {_said(held)}: set a portion there or an evaluation.share beside it, as "
        "large as this run's, so that both leave out the same prompts"
      )


def _said(cut: _Cut) -> str:
  whole = (cut.low, cut.high) == (0, 1)
  return "all prompts" if whole else f"prompts {cut.low:.0%} to {cut.high:.0%}"


def _held(experiment: Experiment) -> _Cut | None:
  data, held = experiment.data.source, experiment.evaluation
  where = type(data).__name__
  if held.share:
    own = _cut(where, data, data.portion)
    return own and own._replace(low=max(own.low, 1 - held.share))
  if held.path is None:
    return None
  source = _source(held.path, held.split)
  low, high = _range(held.portion)
  return _Cut(where, source, data.seed, low, high)


def _others(experiment: Experiment, before: str = "") -> Iterator[_Cut]:
  """What the auxiliary losses and the stages train on; data made by a function is of no
  source that could be compared."""
  cuts = [
    _cut(f"{before}aux_losses[{loss.name}].data", loss.data, loss.data.portion)
    for loss in experiment.aux_losses
  ]
  yield from (cut for cut in cuts if cut is not None)
  for where, stage in stages(experiment):
    inner, path = stage.experiment, f"{before}{where}.experiment."
    data = inner.data.source
    cut = _cut(f"{path}{_name(inner)}", data, data.portion)
    if cut is not None:
      yield cut._replace(high=min(cut.high, 1 - inner.evaluation.share))
    yield from _others(inner, path)


def _name(experiment: Experiment) -> str:
  """The path of an experiment's records or prompts within it."""
  return "data" if experiment.data.source is experiment.data else "data.prompts"


def _cut(where: str, data: Data | Prompts, portion: str | None) -> _Cut | None:
  if isinstance(data.path, Configured):
    return None
  return _Cut(where, _source(data.path, data.split), data.seed, *_range(portion))


def _range(portion: str | None) -> tuple[float, float]:
  """The part of [0, 1) that a portion is."""
  if portion is None:
    return 0.0, 1.0
  names = list(split.PORTIONS)
  shares = list(split.PORTIONS.values())
  at = names.index(portion)
  return sum(shares[:at]), sum(shares[: at + 1])


def _source(path: str, name: str) -> tuple[str, str]:
  """A path, and its split where it has such."""
  return path, name if path.startswith("hub:") or Path(path).is_dir() else ""
