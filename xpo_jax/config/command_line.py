"""Overrides the fields of an experiment by command-line flags."""

import dataclasses
import enum
import typing
from collections.abc import Sequence
from typing import Any

import tyro

from xpo_jax.config import yaml_file
from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import Configured, ObjectiveConfig, factory


def from_args(
  default: Experiment, args: Sequence[str], prog: str | None = None
) -> Experiment:
  """Overrides fields of an experiment by flags such as `--objective.beta 0.2`.

  `--objective NAME` selects another objective of the index, whose own hyperparameters
  are then the flags. `--help` prints them all.
  """
  args = list(args)
  if "--objective" in args:
    at = args.index("--objective")
    name = args[at + 1] if at + 1 < len(args) else ""
    default = dataclasses.replace(default, objective=ObjectiveConfig(name))
    del args[at : at + 2]
  face = _face(default)
  return _behind(default, tyro.cli(type(face), default=face, args=args, prog=prog))


def _face(value: Any) -> Any:
  """A dataclass instance with the fields that flags can set: tyro needs one concrete
  class where an experiment has unions and hyperparameters."""
  if isinstance(value, ObjectiveConfig | Configured):
    source, items = factory(value.name), _arguments(value)
  else:
    source = type(value)
    items = {f.name: vars(value)[f.name] for f in dataclasses.fields(value)}
  hints = typing.get_type_hints(source)
  fields = []
  for name, item in items.items():
    if dataclasses.is_dataclass(item):
      face = _face(item)
      fields.append((name, type(face), dataclasses.field(default=face)))
    elif name in hints and _may_be_named(hints[name]):
      fields.append((name, str, dataclasses.field(default=yaml_file.to_dict(item))))
    elif name in hints and (plain := _plain(item, hints[name])) is not None:
      fields.append((name, plain, dataclasses.field(default=item)))
  face = dataclasses.make_dataclass(source.__name__, fields, frozen=True)
  face.__doc__ = source.__doc__
  return face()


def _may_be_named(hint: Any) -> bool:
  kinds = [kind for kind in typing.get_args(hint) if isinstance(kind, type)]
  return any(issubclass(kind, tuple) for kind in kinds) and str in kinds


def _plain(item: Any, hint: Any) -> Any:
  """The type that tyro parses from the words of a shell: plain types, tuples of them,
  the plain members of a union; None where there is none."""
  kinds = typing.get_args(hint)
  if type(item) is tuple:
    plain = kinds and all(kind in (int, float, str, ...) for kind in kinds)
    return hint if plain else None
  if not isinstance(item, int | float | str | enum.Enum | None):
    return None
  plain = tuple(kind for kind in kinds if not dataclasses.is_dataclass(kind))
  if len(plain) == len(kinds):
    return hint
  return None if plain in ((), (type(None),)) else typing.Union[plain]  # noqa: UP007


def _behind(value: Any, face: Any) -> Any:
  """`value` with the fields of its face, which flags may have set."""
  named = isinstance(value, ObjectiveConfig | Configured)
  old = _arguments(value) if named else vars(value)
  new = {
    name: _behind(old[name], item) if dataclasses.is_dataclass(item) else item
    for name, item in vars(face).items()
  }
  if named:
    return type(value)(value.name, **(dict(old) | new))
  return dataclasses.replace(value, **new)


def _arguments(value: ObjectiveConfig | Configured) -> typing.Mapping[str, Any]:
  return value.hparams if isinstance(value, ObjectiveConfig) else value.arguments
