"""A paper's claim as data: what is run, what is predicted, what decides.

A table names arms (what is run, once for each seed) and predictions (a number of each
seed, and the range that the claim expects it in); `Table.revised` says which of them
were changed after a first look. Its verdict is a pure function of the cells' metrics:

- *agrees*: every prediction's 95 % interval lies within its range;
- *contrary*: some interval lies outside its range;
- *not separable*: some interval crosses an end of its range;
- *not testable here*: some prediction has no value in some seed.

Arms of two tables that run the same function with the same settings share their cells.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xpo_jax.evaluation import bootstrap
from xpo_jax.evaluation.bootstrap import Interval
from xpo_jax.studies.atlas import worlds
from xpo_jax.studies.atlas.worlds import World
from xpo_jax.survey import table as survey_table
from xpo_jax.survey import taxonomy

Metrics = Mapping[str, float | Sequence[float]]
Run = Callable[..., Metrics]
ABOVE, BELOW = (0.0, math.inf), (-math.inf, 0.0)
ABOVE_1, BELOW_1 = (1.0, math.inf), (-math.inf, 1.0)  # of a ratio
STEP = "step"  # the metric of a path
KL, REWARD = "KL to the reference, nats", "expected reward above the reference's"


class Verdict(enum.Enum):
  """What a run says about a claim."""

  AGREES = "agrees"
  CONTRARY = "contrary"
  NOT_SEPARABLE = "not separable"
  NOT_TESTABLE = "not testable here"


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run: everything that its metrics depend on, besides the code.

  Attributes:
    run: a public function of the package, `run(seed, **settings) -> metrics`.
    settings: of the data, the start, the objective ("objective": its name); plain
      values.
    seed: of the data and of every random draw.
  """

  run: Run
  settings: Mapping[str, Any]
  seed: int

  @property
  def run_name(self) -> str:
    """The function as "module:function"."""
    return f"{self.run.__module__}:{self.run.__qualname__}"


class Arm(NamedTuple):
  """A setting that is run once for each seed.

  Attributes:
    series: the method, a curve of the figure.
    strength: the swept number that tells arms of a series apart; NaN-free.
    run: see `Cell`.
    settings: see `Cell`.
    files: what the settings name that must be there: path -> where it is from.
  """

  series: str
  strength: float
  run: Run
  settings: Mapping[str, Any]
  files: Mapping[str, str] = {}


class Results:
  """Metrics of a table's cells: arrays with one entry a seed, `[S]`.

  A cell with the metric `step` is a path: its metrics are lists, and each of its steps
  stands as an arm of that strength. Of another cell, a list has an entry for each
  held-out prompt: the metric is `[S, P]`.
  """

  def __init__(self, arms: Sequence[Arm], metrics: Sequence[Sequence[Metrics]]):
    """Takes the metrics of each arm's cells, in the order of the seeds."""
    self._columns: dict[str, dict[float, dict[str, np.ndarray]]] = {}
    for arm, cells in zip(arms, metrics, strict=True):
      columns = {name: np.array([cell[name] for cell in cells]) for name in cells[0]}
      own = self._columns.setdefault(arm.series, {})
      if STEP not in columns:
        own[arm.strength] = columns
        continue
      for t, step in enumerate(columns.pop(STEP)[0]):
        own[float(step)] = {name: x_ST[:, t] for name, x_ST in columns.items()}

  def arms(self) -> list[tuple[str, float]]:
    """Series and strength of every arm."""
    return [(series, at) for series, own in self._columns.items() for at in own]

  def strengths(self, series: str) -> list[float]:
    """The strengths of a series, in the order of its arms."""
    return list(self._columns[series])

  def metric(self, series: str, name: str, strength: float | None = None) -> np.ndarray:
    """A metric of an arm, `[S]` or `[S, P]`.

    `strength` is needed where the series has several.
    """
    arms = self._columns[series]
    if strength is None:
      (strength,) = arms
    return arms[strength][name]

  def at(self, series: str, y: str, x: str, value: float) -> np.ndarray:
    """Metric `y` where metric `x` has a value, linear between neighbouring strengths.

    Interpolate along an `x` of which `y` is nearly linear: between few points of a
    concave curve a chord lies below it, and further below where they are further apart.

    Returns:
      `[S]`; NaN for a seed in which no two neighbouring arms bracket the value, or more
      than two do: where the curve comes back there is no one answer.
    """
    x_AS, y_AS = (
      np.stack([columns[name] for columns in self._columns[series].values()])
      for name in (x, y)
    )
    curves = zip(x_AS.T, y_AS.T, strict=True)
    return np.array([_crossing(x_A, y_A, value) for x_A, y_A in curves])


def _crossing(x_A: np.ndarray, y_A: np.ndarray, value: float) -> float:
  """y at the one place where x, in the order of the arms, passes a value; else NaN."""
  exactly = np.flatnonzero(x_A == value)
  passed = np.flatnonzero((x_A[:-1] - value) * (x_A[1:] - value) < 0)
  if len(exactly) + len(passed) != 1:
    return math.nan
  if len(exactly):
    return float(y_A[exactly[0]])
  i = passed[0]
  part = (value - x_A[i]) / (x_A[i + 1] - x_A[i])
  return float(y_A[i] + part * (y_A[i + 1] - y_A[i]))


Value = Callable[[Results], np.ndarray]


class Prediction(NamedTuple):
  """A number that the claim predicts.

  Attributes:
    text: what it is; names both sides of a difference.
    unit: of the number.
    value: results -> one number a seed, or `[S, P]` a seed and prompt, paired where it
      is a difference.
    range: the open interval that the claim expects; `ABOVE` and `BELOW` 0.
  """

  text: str
  unit: str
  value: Value
  range: tuple[float, float]


# An arm in the results: its series and strength; None where the series has one arm.
Named = tuple[str, float | None]


class Plot(NamedTuple):
  """The table's figure: a curve for each series, a point for each arm.

  Attributes:
    x, y: metrics; x None: the strength.
    x_label, y_label: name the units.
    see: a sentence: what to see.
    log_x: draw log10 of x.
  """

  x: str | None
  y: str
  x_label: str
  y_label: str
  see: str
  log_x: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
  """A claim of a paper, its test and what would count against it.

  Attributes:
    paper: name of its row in `survey.table`.
    method: the name that `xpo reproduce` takes for all tables of the method.
    claim: in our words.
    where: it stands in the paper.
    design: what is run here.
    contrary: what would count as contrary.
    departs: how the design differs from the paper's.
    arms: what is run.
    predictions: what decides.
    plot: the figure.
    seeds: number of seeds, from 0; one is enough where intervals are over prompts.
    paper_scale: model, data and hyperparameters of the paper or of its public code, and
      whether they were run.
    revised: what of arms, predictions or figure was changed after a first look, and
      why; "": nothing.
    world: where it is tested; cells of a chat model measure held-out prompts.
  """

  paper: str
  method: str
  claim: str
  where: str
  design: str
  contrary: str
  departs: str
  arms: tuple[Arm, ...]
  predictions: tuple[Prediction, ...]
  plot: Plot
  seeds: int = 10
  paper_scale: str = ""
  revised: str = ""
  world: World = worlds.EXACT

  def __post_init__(self):
    self.row  # noqa: B018 - refuses an unknown paper
    keys = [(arm.series, arm.strength) for arm in self.arms]
    if len(set(keys)) < len(keys):
      twice = next(key for key in keys if keys.count(key) > 1)
      raise ValueError(f"Table.arms has {twice} twice; give them different strengths")
    if not self.predictions:
      raise ValueError("Table.predictions is empty; a claim predicts a number at least")
    least = 2 if self.world == worlds.EXACT else 1
    if self.seeds < least:
      raise ValueError(
        f"Table.seeds is {self.seeds}; an interval needs {least} at least"
      )

  @property
  def row(self) -> taxonomy.Paper:
    """The paper's row of the survey's table.

    Raises:
      ValueError: the survey's table has no such paper.
    """
    rows = {row.name: row for row in survey_table.PAPERS}
    if self.paper not in rows:
      raise ValueError(f"Table.paper is {self.paper!r}; allowed: {', '.join(rows)}")
    return rows[self.paper]

  def cells(self) -> list[list[Cell]]:
    """Every cell, arm by arm and seed by seed."""
    return [
      [Cell(arm.run, arm.settings, seed) for seed in range(self.seeds)]
      for arm in self.arms
    ]


class Outcome(NamedTuple):
  """A prediction and what came out.

  Attributes:
    text, unit, range: of the prediction.
    interval: see `interval`; None: no value.
    verdict: of this prediction alone.
    because: why it is not testable, or "".
  """

  text: str
  unit: str
  range: tuple[float, float]
  interval: Interval | None
  verdict: Verdict
  because: str = ""


def sweep(
  series: str, run: Run, name: str, values: Sequence[float], **settings: Any
) -> tuple[Arm, ...]:
  """Arms of a series over a setting, which is also their strength.

  Args:
    series: see `Arm`.
    run: see `Arm`.
    name: of the setting; "a.b" is entry b of the setting a.
    values: of the setting.
    **settings: the others.
  """
  outer, _, inner = name.partition(".")
  arms = []
  for value in values:
    own = {**settings.get(outer, {}), inner: value} if inner else value
    arms.append(Arm(series, value, run, {**settings, outer: own}))
  return tuple(arms)


def metric(name: str, arm: Named) -> Value:
  """The value of a metric of an arm."""
  return lambda results: results.metric(arm[0], name, arm[1])


def gap(name: str, first: Named, second: Named) -> Value:
  """A metric of one arm minus that of another, seed by seed."""
  one, other = metric(name, first), metric(name, second)
  return lambda results: one(results) - other(results)


def ratio(name: str, first: Named, second: Named) -> Value:
  """A metric of one arm over that of another, seed by seed."""
  one, other = metric(name, first), metric(name, second)
  return lambda results: one(results) / other(results)


def gap_at(y: str, x: str, value: float, first: str, second: str) -> Value:
  """Metric `y` where metric `x` has a value: one series minus another, as
  `Results.at`."""
  return lambda results: (
    results.at(first, y, x, value) - results.at(second, y, x, value)
  )


def at_equal_kl(
  first: str, second: str, kl: float, expected: tuple[float, float] = ABOVE
) -> Prediction:
  """Reward of one series minus another's where both have a KL, nats.

  It is interpolated along the metric `root_kl`, of which reward is nearly linear.
  """
  return Prediction(
    f"{first} minus {second}, reward at {kl:g} nats",
    "reward",
    gap_at("reward", "root_kl", math.sqrt(kl), first, second),
    expected,
  )


def frontier(see: str) -> Plot:
  """Reward over KL."""
  return Plot("kl", "reward", KL, REWARD, see)


def judge(table: Table, results: Results) -> tuple[Outcome, ...]:
  """Judges every prediction of a table."""
  return tuple(_outcome(prediction, results) for prediction in table.predictions)


def verdict(outcomes: Sequence[Outcome]) -> Verdict:
  """The verdict of a table: the first of contrary, not testable and not separable that
  any outcome has, else agrees."""
  found = {outcome.verdict for outcome in outcomes}
  worst_first = (Verdict.CONTRARY, Verdict.NOT_TESTABLE, Verdict.NOT_SEPARABLE)
  return next((one for one in worst_first if one in found), Verdict.AGREES)


def _outcome(prediction: Prediction, results: Results) -> Outcome:
  text, unit, value, expected = prediction
  x = np.asarray(value(results), np.float64)
  missing = int((~np.isfinite(x)).sum())
  if missing:
    because = f"{missing} of {x.size} seeds have no such value"
    return Outcome(text, unit, expected, None, Verdict.NOT_TESTABLE, because)
  found = interval(x)
  return Outcome(text, unit, expected, found, side(found, expected))


def interval(x: np.ndarray) -> Interval:
  """Mean and 95 % interval: of `[S]` Student's t over the seeds, of `[S, P]` by
  bootstrap over seeds and prompts."""
  return bootstrap.bootstrap_seeds(x) if x.ndim == 2 else bootstrap.t_interval(x)


def side(interval: Interval, expected: tuple[float, float]) -> Verdict:
  """The verdict of an interval on a range: within it, outside of it, or neither."""
  low, high = expected
  if low < interval.low and interval.high < high:
    return Verdict.AGREES
  if interval.high <= low or interval.low >= high:
    return Verdict.CONTRARY
  return Verdict.NOT_SEPARABLE
