"""Overrides the fields of an experiment by command-line flags.

Beside `--data.epochs 2`, a flag of an optional record makes the record
(`--adapter.rank 16`); a field that holds a function is given by the function's name,
and then has its arguments as flags (`--objective simpo --objective.beta 2`); a mapping
is given as words NAME=VALUE.
"""

import dataclasses
import enum
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import tyro

from xpo_jax.config import yaml_file
from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import Configured, ObjectiveConfig, factory

# Where a function of a field is looked up by its name alone.
_HOMES = {
  "conversion": "xpo_jax.data.transforms.conversions",
  "pair_construction": "xpo_jax.train.pair_construction",
  "kl_controller": "xpo_jax.ops.kl_control",
  "source": "xpo_jax.feedback.rules",
  "evaluator": "xpo_jax.evaluation.evaluators",
}


def from_args(
  default: Experiment,
  args: Sequence[str],
  prog: str | None = None,
  description: str | None = None,
) -> Experiment:
  """Overrides fields of an experiment by flags such as `--objective.beta 0.2`.

  `--help` prints them all, optional records as if they were there.

  Args:
    default: the experiment, or another frozen dataclass.
    args: the flags.
    prog: name of the command, for `--help`.
    description: what `--help` says first; None: the docstring of the class.

  Raises:
    ValueError: a value that its field refuses, or a mapping that is not NAME=VALUE.
  """
  default, args = _with_functions(default, list(args))
  helping = bool({"-h", "--help"} & set(args))
  face = _face(default, None if helping else _flags(args))
  given = tyro.cli(
    type(face), default=face, args=args, prog=prog, description=description
  )
  return _behind(default, given)


def _flags(args: Sequence[str]) -> set[tuple[str, ...]]:
  """The paths of the flags: ("data", "limits", "prompt")."""
  flags = set()
  for word in args:
    if word.startswith("--"):
      *path, name = word[2:].partition("=")[0].replace("-", "_").split(".")
      flags.add((*path, name.removeprefix("no_")))  # --dora and --no-dora
  return flags


def _with_functions(value: Any, args: list[str]) -> tuple[Any, list[str]]:
  """Sets the fields that hold a function, given as `--objective NAME`, in the order of
  their flags; returns the other words too."""
  rest: list[str] = []
  words = iter(args)
  for word in words:
    option, equals, name = word.partition("=")
    path = option[2:].replace("-", "_").split(".")
    kind = _function_kind(value, path) if option.startswith("--") else None
    if kind is None:
      rest.append(word)
      continue
    name = name if equals else next(words, "")
    if not name or name.startswith("-"):
      raise ValueError(f"{option} needs the name of a function, as in {option} dpo")
    if path[-1] in _HOMES and ":" not in name:
      name = f"{_HOMES[path[-1]]}:{name}"
    value = _set(value, path, kind(name))
  return value, rest


def _function_kind(value: Any, path: Sequence[str]) -> Any:
  """ObjectiveConfig or Configured where a field of this path holds nothing else."""
  for name in path[:-1]:
    if not dataclasses.is_dataclass(value) or name not in vars(value):
      return None
    value = vars(value)[name]
  if isinstance(value, ObjectiveConfig | Configured):
    return None
  if not dataclasses.is_dataclass(value):
    return None
  hint = typing.get_type_hints(type(value)).get(path[-1])
  kinds = {kind for kind in _members(hint) if kind is not type(None)}
  for kind in (ObjectiveConfig, Configured):
    if kinds == {kind}:
      return kind
  return None


def _set(value: Any, path: Sequence[str], item: Any) -> Any:
  name, *rest = path
  if rest:
    item = _set(vars(value)[name], rest, item)
  return dataclasses.replace(value, **{name: item})


def _is_below(flag: tuple[str, ...], path: tuple[str, ...]) -> bool:
  return len(flag) > len(path) and flag[: len(path)] == path


def _record(hint: Any, names: set[str] | None) -> Any:
  """A record of an optional field that has these fields; None: the first without a
  required one."""
  for kind in _members(hint):
    if not dataclasses.is_dataclass(kind) or kind in (ObjectiveConfig, Configured):
      continue
    fields = {field.name: field for field in dataclasses.fields(kind)}
    required = {
      name: tyro.MISSING
      for name, field in fields.items()
      if field.default is field.default_factory is dataclasses.MISSING
    }
    if (names is None and not required) or (names and names <= set(fields)):
      return kind(**required)
  return None


def _members(hint: Any) -> tuple[Any, ...]:
  """The members of a union; of another type itself."""
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return typing.get_args(hint)
  return (hint,)


def _face(
  value: Any, flags: set[tuple[str, ...]] | None, where: tuple[str, ...] = ()
) -> Any:
  """A dataclass instance with the fields that flags can set: tyro needs one concrete
  class where an experiment has unions and hyperparameters.

  Args:
    value: the record.
    flags: see `_flags`; they make optional records, None makes all of them.
    where: path of the record.
  """
  if isinstance(value, ObjectiveConfig | Configured):
    source, items = factory(value.name), _arguments(value)
  else:
    source = type(value)
    items = {f.name: vars(value)[f.name] for f in dataclasses.fields(value)}
  hints = typing.get_type_hints(source)
  fields = []
  for name, item in items.items():
    hint, path = hints.get(name), (*where, name)
    if item is None and hint is not None:
      below = flags and {f[len(path)] for f in flags if _is_below(f, path)}
      item = _record(hint, below)
    if dataclasses.is_dataclass(item):
      face = _face(item, flags, path)
      fields.append((name, type(face), dataclasses.field(default=face)))
    elif name in hints and _may_be_named(hint):
      fields.append((name, str, dataclasses.field(default=yaml_file.to_dict(item))))
    elif name in hints and typing.get_origin(hint) is Mapping:
      words = _words(item, typing.get_args(hint)[1])
      fields.append((name, tuple[str, ...], dataclasses.field(default=words)))
    elif name in hints and (plain := _plain(item, hint)) is not None:
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
  if type(item) is tuple:
    kinds = typing.get_args(hint)
    plain = kinds and all(kind in (int, float, str, ...) for kind in kinds)
    return hint if plain else None
  if item is tyro.MISSING:
    return hint
  if not isinstance(item, int | float | str | enum.Enum | None):
    return None
  kinds = _members(hint)
  plain = tuple(kind for kind in kinds if _is_written(kind))
  if len(plain) == len(kinds):
    return hint
  return None if plain in ((), (type(None),)) else typing.Union[plain]  # noqa: UP007


def _is_written(kind: Any) -> bool:
  """Whether words of a shell can say a value of this type: no record, no function."""
  if typing.get_origin(kind) is tuple:
    return all(member is ... or _is_written(member) for member in typing.get_args(kind))
  if isinstance(kind, type):
    return issubclass(kind, int | float | str | enum.Enum | None)
  return typing.get_origin(kind) is typing.Literal


def _words(mapping: Mapping[str, Any], values: Any) -> tuple[str, ...]:
  """A mapping as words NAME=VALUE, from which `mapping` makes the same one: a value
  that is no string as JSON, and where `values` is not `str` a string that would be read
  as something else too."""
  return tuple(
    f"{name}={value if _is_word(value, values) else json.dumps(value)}"
    for name, value in mapping.items()
  )


def _is_word(value: Any, values: Any) -> bool:
  return isinstance(value, str) and (values is str or _json(value) == value)


def mapping(where: str, words: Sequence[str], values: Any = Any) -> dict[str, Any]:
  """A mapping from words NAME=VALUE.

  Args:
    where: the field, for messages.
    words: of the shell.
    values: type of the values; of other types than `str` they are JSON where they can
      be read as such.

  Raises:
    ValueError: a word that is not NAME=VALUE.
  """
  items: dict[str, Any] = {}
  for word in words:
    name, equals, value = word.partition("=")
    if not equals or not name:
      raise ValueError(f"{where} is given {word!r}; write NAME=VALUE, as in a=b")
    items[name] = value if values is str else _json(value)
  return items


def _json(text: str) -> Any:
  try:
    return json.loads(text)
  except ValueError:
    return text


def _behind(value: Any, face: Any) -> Any:
  """`value` with the fields of its face, which flags may have set."""
  named = isinstance(value, ObjectiveConfig | Configured)
  old = _arguments(value) if named else vars(value)
  hints = typing.get_type_hints(factory(value.name) if named else type(value))
  new = {}
  for name, item in vars(face).items():
    if dataclasses.is_dataclass(item):
      record = old[name]
      if record is None:
        record = _record(hints[name], set(vars(item)))
      item = _behind(record, item)
    elif typing.get_origin(hints.get(name)) is Mapping:
      kind = typing.get_args(hints[name])[1]
      item = mapping(f"{type(value).__name__}.{name}", item, kind)
    new[name] = item
  if named:
    return type(value)(value.name, **(dict(old) | new))
  return dataclasses.replace(value, **new)


def _arguments(value: ObjectiveConfig | Configured) -> typing.Mapping[str, Any]:
  return value.hparams if isinstance(value, ObjectiveConfig) else value.arguments
