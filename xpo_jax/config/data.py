"""Configures data: training records, prompts to sample for, held-out data."""

import dataclasses
import math
from typing import Literal

from xpo_jax.config import checks, trust
from xpo_jax.config.factories import Configured
from xpo_jax.data.pack import PackSizes
from xpo_jax.data.render import Template
from xpo_jax.data.sources import Reading
from xpo_jax.data.tokenise import Limits


@dataclasses.dataclass(frozen=True)
class Data:
  """Training records and how they are split into steps.

  Attributes:
    path: a file of JSON, JSON lines, CSV, Parquet or Arrow, a directory of
      `save_to_disk` or TFDS, "hub:NAME[:config][@revision]" for a data set of the hub
      (all of them in `data.formats`), "synthetic:NUMBER" for so many synthetic reviews,
      the name of records handed to `loop.train`, or a `Configured` function that
      returns records: it runs when the run starts, and a `Stage` among its arguments is
      trained first (samples of a policy, labelled).
    also: further sources of the same kind of records, each "PATH" or "PATH=WEIGHT": of
      a weight of 2 every record counts twice, of 0.5 half of them, by a hash of `seed`
      and the record; `split` and `limit` hold for each.
    split: of a TFDS or Hugging Face data set; of several names with "|" between them
      the first that it has ("train|train_prefs").
    portion: only the rows of these prompts, by a hash of `seed` and the prompt:
      "train" (80 %), "tune" or "test" (10 % each); None: all rows.
    limit: use only the first so many records, or None.
    reading: which columns mean what.
    template: how a record becomes text.
    limits: longest prompt and completion in tokens.
    bad_rows: "stop" with a list of them, or "drop" them, counted and listed in a file.
    conversion: makes a conversion to another layout (`data.transforms.conversions`),
      or None; such as `all_pairs`, all pairs of a list by a gap of rewards.
    transform: "module:function" that turns the examples and the tokenizer into other
      examples before they are laid out, or None; such as
      "xpo_jax.feedback.preference_model:both_orders".
    row_length: tokens of a packed row; None: the longest group.
    rows_per_step: rows of an optimiser step, all microbatches and devices together.
    microbatches: gradient accumulation; divides rows_per_step.
    groups_per_row: most prompt groups in a row; None: as many as fit; 1: a step is
      rows_per_step groups.
    epochs: passes over the data.
    steps: stop after so many steps, or None for whole epochs.
    seed: order of the rows, portions and held-out share, and KTO's mismatched
      completions.
    reference_cache: directory of the reference's log-probs, shared by the runs that
      name it; None keeps them in the run's own.
    token_cache: directory of tokenised data sets, each by the digest of its records,
      tokenizer, template, limits and split, shared by the runs that name it; None:
      every run tokenises its data.
  """

  path: str | Configured
  also: tuple[str, ...] = ()
  split: str = "train"
  portion: str | None = None
  limit: int | None = None
  reading: Reading = dataclasses.field(default_factory=Reading)
  template: Template = dataclasses.field(default_factory=Template)
  limits: Limits = dataclasses.field(default_factory=Limits)
  bad_rows: Literal["stop", "drop"] = "stop"
  conversion: Configured | None = None
  transform: str | None = None
  row_length: int | None = None
  rows_per_step: int = 16
  microbatches: int = 1
  groups_per_row: int | None = None
  epochs: int = 1
  steps: int | None = None
  seed: int = 0
  reference_cache: str | None = None
  token_cache: str | None = None

  def __post_init__(self):
    checks.check_among(self, "bad_rows", ("stop", "drop"))
    if self.also and not isinstance(self.path, str):
      raise ValueError(
        f"Data.also is {self.also}, and records are made by {self.path.name}: name a "
        "path, or leave it out"
      )
    _ = self.others  # refuses wrong weights
    if self.transform is not None:
      if ":" not in self.transform:
        raise ValueError(
          f"Data.transform is {self.transform!r}; it must be 'module:function'"
        )
      trust.allow_used(self.transform)
    checks.check_portion(self)
    checks.check_positive(self, "limit", "row_length", "rows_per_step", "microbatches")
    checks.check_positive(self, "groups_per_row", "epochs", "steps")
    checks.check_not_negative(self, "seed")
    if self.rows_per_step % self.microbatches:
      raise ValueError(
        f"Data.microbatches is {self.microbatches}, which does not divide "
        f"rows_per_step = {self.rows_per_step}"
      )

  @property
  def title(self) -> str:
    """Name of the training data, for display."""
    return " + ".join((title_of(self.path), *self.also))

  @property
  def others(self) -> tuple[tuple[str, float], ...]:
    """The further sources, each with its weight."""
    sources = []
    for text in self.also:
      path, equals, weight = text.rpartition("=")
      if not equals:
        path, weight = text, "1"
      try:
        number = float(weight)
      except ValueError:
        number = math.nan
      if not path or not 0 < number < math.inf:
        raise ValueError(f"Data.also has {text!r}; write PATH or PATH=WEIGHT, above 0")
      sources.append((path, number))
    return tuple(sources)

  @property
  def sizes(self) -> PackSizes:
    """How examples are packed into rows and steps."""
    return PackSizes(
      rows_per_step=self.rows_per_step,
      microbatches=self.microbatches,
      row_length=self.row_length,
      groups_per_row=self.groups_per_row,
    )

  @property
  def source(self) -> "Data":
    """The config that records are read by: this one; see `Rollouts.source`."""
    return self

  @property
  def max_completion_tokens(self) -> int | None:
    """Limit on the tokens of a completion, or None for no limit."""
    return self.limits.completion

  @property
  def temperature(self) -> float:
    """Temperature of the log-probs."""
    return 1.0

  @property
  def feedback(self) -> None:
    """None: records contain their labels; see `Rollouts.feedback`."""
    return None


@dataclasses.dataclass(frozen=True)
class Prompts:
  """Prompts to sample completions for. Equal prompts count once.

  Attributes:
    path: as `Data.path`; of a record only its prompt is used.
    split: of a TFDS or Hugging Face data set.
    portion: as `Data.portion`.
    limit: use only the first so many records, or None.
    reading: which columns mean what.
    template: how a prompt becomes text.
    limits: longest prompt in tokens; `limits.completion` is
      `Sampling.max_completion_tokens`'s.
    bad_rows: "stop" with a list of them, or "drop" them, counted and listed in a file.
    seed: order of the prompts, their portions and the held-out share.
  """

  path: str | Configured
  split: str = "train"
  portion: str | None = None
  limit: int | None = None
  reading: Reading = dataclasses.field(default_factory=Reading)
  template: Template = dataclasses.field(default_factory=Template)
  limits: Limits = dataclasses.field(default_factory=Limits)
  bad_rows: Literal["stop", "drop"] = "stop"
  seed: int = 0

  def __post_init__(self):
    checks.check_among(self, "bad_rows", ("stop", "drop"))
    checks.check_portion(self)
    checks.check_positive(self, "limit")
    checks.check_not_negative(self, "seed")
    if self.limits.completion is not None:
      raise ValueError(
        f"Prompts.limits.completion is {self.limits.completion}; prompts have no "
        "completions, set Sampling.max_completion_tokens"
      )


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Held-out data that the policy is evaluated on.

  Attributes:
    path: held-out data of its own, read like `Data.path`; None splits some off.
    split: of a TFDS builder or a data set of the hub.
    portion: as `Data.portion`, by the seed of the training data.
    share: share of the prompts held out where `path` is None; a prompt is on one side
      only. 0 holds out nothing.
    limit: use only so many held-out records (prompts, in a run on rollouts), or None.
  """

  path: str | None = None
  split: str = "test"
  portion: str | None = None
  share: float = 0.0
  limit: int | None = None

  def __post_init__(self):
    checks.check_portion(self)
    checks.check_positive(self, "limit")
    if not 0 <= self.share < 1:
      raise ValueError(f"Evaluation.share is {self.share}; it must be in [0, 1)")
    if self.path is not None and self.share:
      raise ValueError(
        f"Evaluation.path is {self.path!r} and share is {self.share}: held-out data "
        "come from a file or from a share of the training data, not both"
      )

  @property
  def shares(self) -> dict[str, float]:
    """Shares of the prompts that are trained on and, if any, held out, by side."""
    held_out = {"held_out": self.share} if self.share else {}
    return {"train": 1 - self.share} | held_out


def title_of(path: str | Configured) -> str:
  """Name of a data source for display: its path, or the function that makes it."""
  return path if isinstance(path, str) else path.name
