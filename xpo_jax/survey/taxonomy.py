"""The 13 directions of the survey, and the type of a row of its table.

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
  """RM2: a reward per completion, or a probability that one beats another?"""

  POINTWISE = "pointwise"
  PREFERENCEWISE = "preferencewise"


class Level(enum.Enum):
  """RM3: what is rewarded?"""

  RESPONSE = "response"
  TOKEN = "token"


class Sign(enum.Enum):
  """RM4: which completions are learned from?"""

  BOTH = "both"
  NEGATIVE = "negative only"


class FeedbackType(enum.Enum):
  """F1: what does a label state?"""

  PREFERENCE = "preference"
  BINARY = "binary"


class Size(enum.Enum):
  """F2: how many completions does a label compare?"""

  PAIR = "pair"
  LIST = "list"


class Labeller(enum.Enum):
  """F3: who labels?"""

  HUMAN = "human"
  AI = "AI"


class Reference(enum.Enum):
  """RL1: is the policy regularised towards a reference?"""

  BASED = "reference"
  FREE = "free"


class Length(enum.Enum):
  """RL2: is the length of completions controlled?"""

  CONTROLLED = "controlled"
  NOT = "not"


class Tie(enum.Enum):
  """RL3: which divergence regularises the policy towards the reference?"""

  REVERSE_KL = "reverse KL"
  OTHER = "other"


class SamplingPolicy(enum.Enum):
  """RL4: are the completions sampled from the current policy?"""

  ON_POLICY = "on"
  OFF_POLICY = "off"


class Iteration(enum.Enum):
  """O1: are data or reference renewed during training?"""

  ITERATIVE = "iterative"
  ONCE = "once"


class Sft(enum.Enum):
  """O2: is fine-tuning a separate stage, or part of the loss?"""

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
  """Basis of a cell."""

  STATED = "*"  # by the survey, the paper or its code
  INFERRED = ""  # by the survey's definition, applied to the paper
  AMBIGUOUS = "?"  # left open by the survey's terms


class Cell(NamedTuple):
  """Values of a paper in one direction.

  Attributes:
    values: members of the direction's enum; none where it does not apply.
    basis: basis of the values.
    note: qualification of the values, or "".
  """

  values: frozenset[enum.Enum]
  basis: Basis
  note: str = ""


class Paper(NamedTuple):
  """One row of the table.

  Attributes:
    name: name in the survey.
    section: section of the survey (3.9 and later were not checked); "" for a method
      that it does not discuss.
    arxiv: arXiv number; "" where there is none.
    cells: direction code -> cell.
    objectives: names in `xpo_jax.objectives`; for a recipe without a loss of its own,
      those it uses.
    recipe: description of a method that is no loss, or "".
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
  """Parses a row of 13 abbreviated cells: values joined by "/" ("n/a": none), basis.

  Raises:
    ValueError: not 13 cells, or a value of another direction.
  """
  notes = notes or {}
  abbreviations = row.split()
  if len(abbreviations) != len(DIRECTIONS) or not set(notes) <= set(DIRECTIONS):
    raise ValueError(f"{name}: {len(abbreviations)} cells, notes of {sorted(notes)}")
  cells = {}
  for (code, direction), short in zip(DIRECTIONS.items(), abbreviations, strict=True):
    basis = Basis(short[-1]) if short[-1] in "*?" else Basis.INFERRED
    given = short.rstrip("*?")
    values = {SHORT[one] for one in given.split("/")} if given != "n/a" else set()
    if not all(isinstance(value, direction) for value in values):
      raise ValueError(f"{name}: {short} is no value of {code}")
    cells[code] = Cell(frozenset(values), basis, notes.get(code, ""))
  return Paper(name, section, arxiv, cells, tuple(objectives.split()), recipe)
