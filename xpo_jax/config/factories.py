"""Configures objectives, judges and rules by a factory's name and its arguments.

A value can be printed, compared, stored as YAML and changed from a shell; the object is
built when a run starts.
"""

import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from xpo_jax import objectives
from xpo_jax.config import trust
from xpo_jax.data import imports
from xpo_jax.types import Objective

Factory = Callable[..., Any]


@dataclasses.dataclass(frozen=True, init=False)
class ObjectiveConfig:
  """An objective by factory and hyperparameters, built when the run starts.

  Attributes:
    name: a name of the index `xpo_jax.objectives`, or "module:factory" of your own.
    hparams: every argument of the factory, defaults filled in, so that the record of a
      run does not change with a later default.
  """

  name: str
  hparams: Mapping[str, Any]

  def __init__(self, objective: str | Factory, /, **hparams: Any):
    """Takes the factory or its name, and its arguments; nested `ObjectiveConfig`s are
    built too.

    Raises:
      ValueError: unknown objective, a hyperparameter the factory lacks or misses, or a
        value it refuses.
    """
    name = objective if isinstance(objective, str) else name_of(objective)
    trust.allow_used(name)
    object.__setattr__(self, "name", name)
    object.__setattr__(self, "hparams", bound(name, hparams, "hyperparameter"))
    self.build()

  def __setstate__(self, state: Mapping[str, Any]):
    """Takes what another process of the user's handed over."""
    trust.allow_used(state["name"])
    vars(self).update(state)

  def build(self, **traced: Any) -> Objective:
    """Builds the objective; `traced` replaces hyperparameters, possibly by traced
    numbers."""
    hparams = dict(self.hparams) | traced
    return factory(self.name)(**{name: _built(x) for name, x in hparams.items()})

  def __str__(self) -> str:
    listed = ", ".join(f"{name}={value}" for name, value in self.hparams.items())
    return f"{self.name}({listed})"


@dataclasses.dataclass(frozen=True, init=False)
class Configured:
  """An object that a function builds when the run starts: a judge, a rule, records.

  Attributes:
    name: "module:function".
    arguments: every argument of the function, defaults filled in; `Configured`s and
      `ObjectiveConfig`s among them are built too, singly or in a list, and a `Stage`
      becomes the directory of its policy.
  """

  name: str
  arguments: Mapping[str, Any]

  def __init__(self, make: str | Factory, /, **arguments: Any):
    """Takes the function or its name, and its arguments.

    Raises:
      ValueError: no such function, or an argument it lacks or misses.
    """
    name = make if isinstance(make, str) else name_of(make)
    trust.allow_used(name)
    trust.allow_used_servers(arguments)
    object.__setattr__(self, "name", name)
    object.__setattr__(self, "arguments", bound(name, arguments, "argument"))

  def __setstate__(self, state: Mapping[str, Any]):
    """Takes what another process of the user's handed over."""
    trust.allow_used(state["name"])
    trust.allow_used_servers(state["arguments"])
    vars(self).update(state)

  @property
  def title(self) -> str:
    """Name for display: the function, and what it is given by name, as in
    "named(my_rewards:exact_answer)"."""
    names = ", ".join(_names_within(self.arguments.values()))
    function = self.name.partition(":")[2] or self.name
    return f"{function}({names})" if names else self.name

  def build(self) -> Any:
    """Calls the function and returns its result."""
    arguments = {name: _built(value) for name, value in self.arguments.items()}
    return factory(self.name)(**arguments)


def _names_within(values: Iterable[Any]) -> Iterator[str]:
  """What arguments name: functions and directories, not texts, numbers or options."""
  for value in values:
    if isinstance(value, Configured):
      yield value.title
    elif isinstance(value, str) and re.fullmatch(r"\S*[:/]\S*", value):
      yield value
    elif isinstance(value, list | tuple):
      yield from _names_within(value)


def bound(name: str, given: Mapping[str, Any], word: str) -> dict[str, Any]:
  """Binds arguments of a factory, defaults filled in, in the order of its signature.

  Args:
    name: see `factory`.
    given: arguments by name.
    word: the word for an argument in messages.

  Raises:
    ValueError: an argument that the factory lacks or misses.
  """
  signature = inspect.signature(factory(name)).parameters
  unknown = sorted(set(given) - set(signature))
  if unknown:
    close = difflib.get_close_matches(unknown[0], signature, n=1)
    suggestion = f" (did you mean {close[0]!r}?)" if close else ""
    known = ", ".join(signature) or "none"
    raise ValueError(
      f"{name} has no {word} {unknown[0]!r}{suggestion}; its {word}s: {known}"
    )
  defaults = {k: p.default for k, p in signature.items() if p.default is not p.empty}
  arguments = defaults | dict(given)
  missing = [k for k in signature if k not in arguments]
  if missing:
    raise ValueError(f"{name} needs a value for its {word} {', '.join(missing)}")
  return {k: arguments[k] for k in signature}


def factory(name: str) -> Factory:
  """Looks up the factory of an index name, or of "module:factory".

  Raises:
    ValueError: unknown name, with the nearest known one.
  """
  if ":" not in name:
    return objectives.get(name)
  return imports.function(name, "factory")


def name_of(function: Factory) -> str:
  """The index name of an objective's factory, else "module:factory"."""
  name = function.__name__
  if name in objectives.NAMES and objectives.get(name) is function:
    return name
  return f"{function.__module__}:{function.__qualname__}"


def _built(value: Any) -> Any:
  if isinstance(value, Configured | ObjectiveConfig):
    return value.build()
  if type(value) in (list, tuple):  # a NamedTuple, such as a link, stays whole
    return tuple(_built(item) for item in value)
  return value
