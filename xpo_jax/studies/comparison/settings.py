"""The comparison of objectives as a value: settings, objectives, results."""

import dataclasses
import difflib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xpo_jax import objectives
from xpo_jax.config.factories import ObjectiveConfig, factory
from xpo_jax.data import collate, sealed_files, tokenise
from xpo_jax.evaluation import bootstrap, frontier
from xpo_jax.ops import token_stats
from xpo_jax.studies.sentiment.settings import Arm, SentimentStudy
from xpo_jax.types import Layout, Objective, Scored

ROLES = {"policy", "policy.value", "ref"}  # parameter sets of a run


@dataclasses.dataclass(frozen=True)
class Comparison(SentimentStudy):
  """A study whose methods are all objectives that pairs can train.

  `arms`, `online`, `control_beta`, `reward_learning_rate` and `split` of a study are
  not read: the search looks at the tune split, policies are judged on the test split.

  Attributes:
    only: names of objectives, or "module:factory" of your own, with commas between;
      None takes all of the index that can.
    configured: objectives whose hyperparameters are not all at their defaults; one
      that is not compared has no effect, and is refused unless the index has it.
    baseline: the objective that others are set against.
    targets: KLs, nats, that the search looks for; they bracket the matched ones.
    first_learning_rates: peak learning rates of every seed's first round.
    rounds: rounds of the search, each of as many runs a seed as the first.
    tune_prompts: prompts of the tune split that the search measures KL on.
  """

  num_pairs: int = 1600
  pool: int = 128
  arms: tuple[Arm, ...] = ()
  only: str | None = None
  configured: tuple[ObjectiveConfig, ...] = ()
  baseline: str = "dpo"
  targets: tuple[float, ...] = (0.35, 0.9, 1.8, 3.2)
  first_learning_rates: tuple[float, ...] = (1e-4, 1e-3)
  rounds: int = 4
  tune_prompts: int = 64

  def __post_init__(self):
    super().__post_init__()
    names = self.names()
    for name in (self.baseline, *names):
      factory(name)  # refuses an unknown one, with the nearest known
    configured = [config.name for config in self.configured]
    for name in configured:
      # One of the index may be left out by `only`: it waits for another choice.
      if name not in names and name not in objectives.NAMES:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
          f"Comparison.configured has {name!r}, which is not compared{hint}; compared: "
          f"{', '.join(names)}"
        )
      if configured.count(name) > 1:
        raise ValueError(f"Comparison.configured has {name!r} twice; give it once")

  def names(self) -> tuple[str, ...]:
    """Names of the chosen objectives; all of the index where none is chosen."""
    if self.only is None:
      return objectives.NAMES
    return tuple(name.strip() for name in self.only.split(","))

  def objective(self, name: str) -> ObjectiveConfig:
    """An objective as it is compared."""
    known = {config.name: config for config in self.configured}
    return known.get(name) or ObjectiveConfig(name)

  def judging(self) -> "Comparison":
    """The study on whose prompts policies are judged."""
    return dataclasses.replace(self, split="test")

  def searching(self) -> "Comparison":
    """The study on whose prompts the search measures KL."""
    return dataclasses.replace(
      self, split="tune", eval_prompts=self.tune_prompts, eval_samples=2
    )


def barrier(name: str) -> str | None:
  """Why an objective cannot be trained on the study's pairs, or None if it can.

  Decided from the objective itself, built at its defaults: its layout, the data
  columns and the parameter sets it reads.
  """
  try:
    objective = ObjectiveConfig(name).build()
  except ValueError as error:
    return str(error)
  try:
    columns = _columns(objective.layout)
  except ValueError:
    return f"layout {objective.layout.name}: pairs do not lead there"
  if token_stats.LOGP not in objective.stats:
    return "does not read the policy's probability of an answer"
  roles = {role for stat in objective.stats for role in stat.roles}
  if roles - ROLES:
    return f"reads another frozen model: {', '.join(sorted(roles - ROLES))}"
  missing = sorted(objective.columns - columns)
  if missing:
    return f"reads data columns that pairs do not give: {', '.join(missing)}"
  return None


def _columns(layout: Layout) -> set[str]:
  """The fields that a batch of pairs has in a layout, found by laying some out.

  Raises:
    ValueError: pairs do not lead there.
  """
  prompts, answers = np.arange(2, dtype=np.int32)[:, None], np.zeros((2, 1), np.int32)
  pairs = [
    tokenise.Example(str(i), prompts[i], tuple(answers), Layout.PAIR) for i in range(2)
  ]
  laid_out = collate.to_layout(pairs, layout)
  always = {
    field.name
    for field in dataclasses.fields(Scored)
    if field.default is field.default_factory is dataclasses.MISSING
  }
  return always | {f"{field}_BK" for field in laid_out[0].fields}


def feedback(objective: Objective) -> str:
  """What an objective learns from, in words: for the table and the plot."""
  kind = {Layout.PAIR: "pairs", Layout.DEMO: "chosen answers"}
  reads_start = any("ref" in stat.roles for stat in objective.stats)
  return kind.get(objective.layout, "thumbs") + (" and start" if reads_start else "")


class Trial(NamedTuple):
  """One run of an objective.

  Attributes:
    learning_rate: peak.
    seed: of its pairs, labels, order and samples.
    tune_kl: KL on the search's prompts, nats; None where the run diverged.
    reward_P, kl_P: per test prompt, means over its samples; empty where it diverged.
    diverged: the step at which it did, or None.
  """

  learning_rate: float
  seed: int
  tune_kl: float | None
  reward_P: tuple[float, ...]
  kl_P: tuple[float, ...]
  diverged: int | None = None


class ComparedObjective(NamedTuple):
  """An objective's runs, or its error.

  Attributes:
    name: of the objective.
    hparams: its hyperparameters.
    feedback: kind of the data it learns from.
    code: digest of the package that trained it.
    trials: its runs.
    seconds: stage -> seconds.
    error: why it could not be trained, or None.
  """

  name: str
  hparams: dict[str, Any]
  feedback: str
  code: str
  trials: list[Trial]
  seconds: dict[str, float]
  error: str | None = None

  def points(self) -> list[frontier.Run]:
    """The runs that did not diverge, as points of the objective's frontier."""
    return [
      frontier.Run(
        self.name, t.learning_rate, t.seed, np.array(t.reward_P), np.array(t.kl_P)
      )
      for t in self.trials
      if t.diverged is None
    ]

  def at(self, kl: float) -> bootstrap.Interval | str:
    """Reward at a KL; "diverged" or "not reached" where there is none."""
    points = self.points()
    seeds = {trial.seed for trial in self.trials}
    reward = None
    if points and {run.seed for run in points} == seeds:
      reward = frontier.reward_at_kl(points, kl)
    if reward is not None:
      return reward
    return "diverged" if len(points) < len(self.trials) else "not reached"

  def minus(self, other: "ComparedObjective", kl: float) -> bootstrap.Interval | None:
    """Reward over another's at a KL, paired; None where either has none there."""
    both = (self.at(kl), other.at(kl))
    if any(isinstance(reward, str) for reward in both):
      return None
    return frontier.difference_at_kl(self.points(), other.points(), kl)


def write(path: Path, entry: ComparedObjective) -> None:
  """Writes an entry whole or not at all."""
  content = entry._asdict()
  content["trials"] = [trial._asdict() for trial in entry.trials]
  sealed_files.write_lines(path, [content])


def read(path: Path) -> ComparedObjective:
  """What `write` wrote."""
  (content,) = sealed_files.read_lines(path)
  content["trials"] = [
    Trial(**trial | {name: tuple(trial[name]) for name in ("reward_P", "kl_P")})
    for trial in content["trials"]
  ]
  return ComparedObjective(**content)
