"""Scores samples by functions of one's own, which may read a record's columns.

A reward function is called with lists, an item for each sample, by the names of its
parameters, as in TRL:

    def exact_answer(completions, answer):
      return [float(text.strip() == a) for text, a in zip(completions, answer)]

`prompts` and `completions` are the texts; any other parameter is a column of the
records that the prompts are of. A function without a parameter `completions` is called
as `function(prompts, completions)`. A parameter with a default is a setting and no
column. It returns a number for each sample; None or NaN is an abstention.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xpo_jax.data import imports, records
from xpo_jax.feedback.protocol import Scorer, Scores, check_scores

_TEXTS = ("prompts", "completions")


def named(reward_function: str) -> Scorer:
  """Makes the scorer of a reward function.

  Args:
    reward_function: "module:function".

  Raises:
    ValueError: no such function, or one whose parameters are not those of a reward
      function.
  """
  return scorer(imports.function(reward_function, "reward function"))


def is_factory(function: Callable[..., Any]) -> bool:
  """Whether a function makes a scorer, as those of `feedback.rules` do: it can be
  called without arguments."""
  parameters = inspect.signature(function).parameters.values()
  return all(
    parameter.default is not parameter.empty or parameter.kind is parameter.VAR_KEYWORD
    for parameter in parameters
  )


def columns(function: Callable[..., Any]) -> tuple[str, ...]:
  """The columns of records that a reward function reads.

  Raises:
    ValueError: parameters that are not those of a reward function.
  """
  name = f"{function.__module__}:{function.__qualname__}"
  parameters = inspect.signature(function).parameters.values()
  named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
  required = [p.name for p in named if p.default is p.empty]
  if absent := [p.name for p in named if p.default is None]:
    raise ValueError(
      f"reward function {name} has the parameter {absent[0]}=None; a column of the "
      f"records has no default: write {absent[0]} alone, or give a setting another "
      "default"
    )
  if any(p.kind is p.VAR_POSITIONAL for p in named):
    raise ValueError(f"reward function {name} takes *arguments; name its parameters")
  if "completions" not in required and len(required) != 2:
    raise ValueError(
      f"reward function {name} takes ({', '.join(required)}); it must take "
      "`completions`, and as it needs them `prompts` and columns of the records, such "
      "as `answer`"
    )
  if "completions" not in required:
    return ()
  return tuple(column for column in required if column not in _TEXTS)


def scorer(function: Callable[..., Any]) -> Scorer:
  """Makes the scorer of a reward function; see the module.

  Raises:
    ValueError: parameters that are not those of a reward function; when it scores, a
      column that the records lack.
  """
  wanted = columns(function)
  parameters = inspect.signature(function).parameters
  texts = [name for name in _TEXTS if name in parameters]

  def score(prompts: Sequence[str], completions: Sequence[str]) -> Any:
    if "completions" not in parameters:
      return function(prompts, completions)
    given: dict[str, Any] = {"prompts": prompts, "completions": completions}
    given = {name: list(given[name]) for name in texts}
    return function(**given, **{name: _column(prompts, name) for name in wanted})

  return functools.wraps(function)(score)


def weighted(scorers: Sequence[Scorer], weights: Sequence[float]) -> Scorer:
  """Adds the scores of several scorers, each times its weight.

  It abstains where one of them does. `Scores.parts` has each score alone.

  Args:
    scorers: functions of prompts and completions.
    weights: a factor for each.

  Raises:
    ValueError: another number of weights than of scorers; a weight that is not finite.
  """
  if len(scorers) != len(weights) or not scorers:
    raise ValueError(f"{len(scorers)} rewards and {len(weights)} weights; one for each")
  if not np.isfinite(weights).all():
    raise ValueError(f"reward weights are {list(weights)}; they must be finite")
  names = _names(scorers)

  def score(prompts: Sequence[str], completions: Sequence[str]) -> Scores:
    parts = {
      name: check_scores(each(prompts, completions), len(prompts), name).value_N
      for name, each in zip(names, scorers, strict=True)
    }
    total = sum(w * part for w, part in zip(weights, parts.values(), strict=True))
    return Scores(np.asarray(total, np.float32), parts=parts)

  return score


def _names(scorers: Sequence[Scorer]) -> list[str]:
  """A name for each scorer, numbered where two are called the same."""
  names = [scorer.__qualname__.partition(".<locals>")[0] for scorer in scorers]
  return [
    name if names.count(name) == 1 else f"{name}_{number}"
    for number, name in enumerate(names)
  ]


def _column(prompts: Sequence[str], name: str) -> list[Any]:
  """A column of the records that prompts are of."""
  values = []
  for prompt in prompts:
    kept = records.columns_of(prompt)
    if name not in kept:
      raise ValueError(
        f"the reward reads the column {name!r}, and the prompt {prompt[:60]!r} comes "
        f"with {sorted(kept) or 'no columns'}; keep it by "
        f"--data.prompts.reading.columns {name}"
      )
    values.append(kept[name])
  return values
