"""Held-out prompts that something of the same run trains on, refused.

A prompt's place in [0, 1) is a hash of a seed and its text (`data.split`); portions
and shares are parts of that line. So whether two meet is known before a row is read.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from xpo_jax.config.experiment import Data, Experiment, Trained
from xpo_jax.config.on_policy import OnlineExperiment, Prompts
from xpo_jax.data import split


class _Cut(NamedTuple):
  """The prompts of a source whose hash lies in [low, high)."""

  where: str
  source: tuple[str, str]
  seed: int
  low: float
  high: float


def check(experiment: Experiment | OnlineExperiment) -> None:
  """Refuses a run whose start or parts train on prompts that it holds out.

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


def _held(experiment: Experiment | OnlineExperiment) -> _Cut | None:
  online = isinstance(experiment, OnlineExperiment)
  data = experiment.prompts if online else experiment.data
  held, where = experiment.evaluation, type(data).__name__
  own = _cut(where, data, data.portion)
  if held.share:
    return own._replace(low=max(own.low, 1 - held.share))
  if held.path is None:
    return None
  other = _cut(where, data, held.portion)
  return other._replace(source=_source(held.path, held.split))


def _others(experiment: Experiment | OnlineExperiment) -> Iterator[_Cut]:
  """What the parts and the stages before train on."""
  before = ""
  while True:
    for part in experiment.parts:
      yield _cut(f"{before}parts[{part.name}].data", part.data, part.data.portion)
    if not isinstance(experiment.start, Trained):
      return
    before += "start.experiment."
    experiment = experiment.start.experiment
    cut = _cut(f"{before}data", experiment.data, experiment.data.portion)
    yield cut._replace(high=min(cut.high, 1 - experiment.evaluation.share))


def _cut(where: str, data: Data | Prompts, portion: str | None) -> _Cut:
  low, high = 0.0, 1.0
  if portion is not None:
    names = list(split.PORTIONS)
    shares = list(split.PORTIONS.values())
    at = names.index(portion)
    low, high = sum(shares[:at]), sum(shares[: at + 1])
  return _Cut(where, _source(data.path, data.split), data.seed, low, high)


def _source(path: str, name: str) -> tuple[str, str]:
  """A path, and its split where it has such."""
  return path, name if path.startswith("hub:") or Path(path).is_dir() else ""
