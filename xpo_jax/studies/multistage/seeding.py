"""Gives a study's judges, raters and critics the seed of a run."""

from typing import Any

from xpo_jax.config.factories import Configured


def with_seed(source: Configured, seed: int) -> Configured:
  """The same function with this seed, where it takes one.

  The functions among its arguments get it too. What takes no seed stays as it is, such
  as a language model behind an endpoint.

  Args:
    source: a judge, a rater or a critic.
    seed: the run's.
  """
  arguments = {name: _with_seed(x, seed) for name, x in source.arguments.items()}
  if "seed" in arguments:
    arguments["seed"] = seed
  return Configured(source.name, **arguments)


def _with_seed(value: Any, seed: int) -> Any:
  if isinstance(value, Configured):
    return with_seed(value, seed)
  if type(value) in (list, tuple):
    return tuple(_with_seed(item, seed) for item in value)
  return value
