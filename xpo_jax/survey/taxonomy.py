"""The 13 directions in which the survey places a paper, and what a row of it holds.

"A Comprehensive Survey of LLM Alignment Techniques: RLHF, RLAIF, PPO, DPO and More",
Wang et al. 2024, arXiv:2407.16216v1, Figure 1. Imports no JAX.
"""

import enum
from collections.abc import Mapping
from typing import NamedTuple


class Reward(enum.Enum):
  """RM1: is a reward model fitted, or implied by the policy?"""

  EXPLICIT = "explicit"
  IMPLICIT = "implicit"


class Preference(enum.Enum):
  """RM2: a reward of one answer, or a probability that one beats another?"""

  POINTWISE = "pointwise"
  PREFERENCEWISE = "preferencewise"


class Level(enum.Enum):
  """RM3: what is rewarded?"""

  RESPONSE = "response"
  TOKEN = "token"


class Sign(enum.Enum):
  """RM4: answers of which kind teach?"""

  BOTH = "both"
  NEGATIVE = "negative only"


class FeedbackType(enum.Enum):
  """F1: what a label says."""

  PREFERENCE = "preference"
  BINARY = "binary"


class Size(enum.Enum):
  """F2: how many answers a label compares."""

  PAIR = "pair"
  LIST = "list"


class Labeller(enum.Enum):
  """F3: who labels."""

  HUMAN = "human"
  AI = "AI"


class Reference(enum.Enum):
  """RL1: is the policy tied to a reference?"""

  BASED = "reference"
  FREE = "free"


class Length(enum.Enum):
  """RL2: is the length of answers controlled?"""

  CONTROLLED = "controlled"
  NOT = "not"


class Tie(enum.Enum):
  """RL3: the divergence that ties the policy to the reference."""

  REVERSE_KL = "reverse KL"
  OTHER = "other"


class SamplingPolicy(enum.Enum):
  """RL4: whose answers are learned from."""

  ON_POLICY = "on"
  OFF_POLICY = "off"


class Iteration(enum.Enum):
  """O1: are data or reference renewed while training?"""

  ITERATIVE = "iterative"
  ONCE = "once"


class Sft(enum.Enum):
  """O2: is fine-tuning a stage of its own, or part of the loss?"""

  SEPARATE = "separate"
  MERGED = "merged"


# In the order of the survey's Figure 1; the codes RM1 .. O2 were not checked.
DIRECTIONS: Mapping[str, type[enum.Enum]] = {
  "RM1": Reward,
  "RM2": Preference,
  "RM3": Level,
  "RM4": Sign,
  "F1": FeedbackType,
  "F2": Size,
  "F3": Labeller,
  "RL1": Reference,
  "RL2": Length,
  "RL3": Tie,
  "RL4": SamplingPolicy,
  "O1": Iteration,
  "O2": Sft,
}


class Basis(enum.Enum):
  """What a cell rests on."""

  STATED = "*"  # the survey, the paper or its code says so
  INFERRED = ""  # the survey's definition applied to the paper
  AMBIGUOUS = "?"  # the survey's own terms leave it open


class Cell(NamedTuple):
  """Where a paper stands in one direction.

  Attributes:
    values: members of the direction's enum; none where it does not apply.
    basis: of the values.
    note: what the values leave out, or "".
  """

  values: frozenset[enum.Enum]
  basis: Basis
  note: str = ""


class Paper(NamedTuple):
  """One row.

  Attributes:
    name: as the survey calls it.
    section: of the survey (3.9 and later were not checked); "" for a relative that it
      does not discuss.
    arxiv: number; "" where there is none.
    cells: direction code -> cell.
    objectives: names in `xpo_jax.objectives`; of a recipe without a loss of its own,
      those it uses.
    recipe: what the method is where it is not a loss, or "".
  """

  name: str
  section: str
  arxiv: str
  cells: Mapping[str, Cell]
  objectives: tuple[str, ...]
  recipe: str


SHORT: Mapping[str, enum.Enum] = {
  "E": Reward.EXPLICIT,
  "I": Reward.IMPLICIT,
  "P": Preference.POINTWISE,
  "Pr": Preference.PREFERENCEWISE,
  "R": Level.RESPONSE,
  "T": Level.TOKEN,
  "+-": Sign.BOTH,
  "-": Sign.NEGATIVE,
  "Pf": FeedbackType.PREFERENCE,
  "B": FeedbackType.BINARY,
  "Pw": Size.PAIR,
  "Lw": Size.LIST,
  "H": Labeller.HUMAN,
  "A": Labeller.AI,
  "Ref": Reference.BASED,
  "Free": Reference.FREE,
  "len": Length.CONTROLLED,
  "no": Length.NOT,
  "rKL": Tie.REVERSE_KL,
  "other": Tie.OTHER,
  "On": SamplingPolicy.ON_POLICY,
  "Off": SamplingPolicy.OFF_POLICY,
  "It": Iteration.ITERATIVE,
  "Once": Iteration.ONCE,
  "Sep": Sft.SEPARATE,
  "Mrg": Sft.MERGED,
}


def paper(
  name: str,
  section: str,
  arxiv: str,
  row: str,
  objectives: str,
  recipe: str = "",
  notes: Mapping[str, str] | None = None,
) -> Paper:
  """A row from 13 short cells: values joined by "/" ("n/a": none), then its basis.

  Raises:
    ValueError: not 13 cells, or a value of another direction.
  """
  notes = notes or {}
  shorts = row.split()
  if len(shorts) != len(DIRECTIONS) or not set(notes) <= set(DIRECTIONS):
    raise ValueError(f"{name}: {len(shorts)} cells, notes of {sorted(notes)}")
  cells = {}
  for (code, direction), short in zip(DIRECTIONS.items(), shorts, strict=True):
    basis = Basis(short[-1]) if short[-1] in "*?" else Basis.INFERRED
    given = short.rstrip("*?")
    values = {SHORT[one] for one in given.split("/")} if given != "n/a" else set()
    if not all(isinstance(value, direction) for value in values):
      raise ValueError(f"{name}: {short} is no value of {code}")
    cells[code] = Cell(frozenset(values), basis, notes.get(code, ""))
  return Paper(name, section, arxiv, cells, tuple(objectives.split()), recipe)
