"""An experiment in and out of YAML, compared with another, changed from a shell."""

import dataclasses
import difflib
import enum
import hashlib
import os
import platform
import subprocess
import types
import typing
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import tyro
import yaml

import xpo_jax
from xpo_jax.config.experiment import (
  Experiment,
  ObjectiveConfig,
  Pretrained,
  Scratch,
  Trained,
  factory,
)
from xpo_jax.config.on_policy import Configured, OnlineExperiment

FILE = "config.yaml"
_STARTS = {kind.__name__: kind for kind in (Scratch, Pretrained, Trained)}
_KINDS = _STARTS | {OnlineExperiment.__name__: OnlineExperiment}  # told by a tag
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "xpo_jax")
_FLAGS = ("XLA_FLAGS", "JAX_PLATFORMS", "JAX_ENABLE_X64", "LIBTPU_INIT_ARGS")


def write(run_dir: Path, experiment: Experiment | OnlineExperiment) -> None:
  """Writes config.yaml: the experiment, and what it ran with."""
  content = {"experiment": to_dict(experiment), **surroundings()}
  text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=88)
  (run_dir / FILE).write_text(text, encoding="utf-8")


def read(run_dir: Path) -> tuple[Experiment | OnlineExperiment, dict[str, Any]]:
  """The experiment of a run, and everything else in its config.yaml."""
  rest = content(run_dir)
  return from_dict(Experiment | OnlineExperiment, rest.pop("experiment")), rest


def content(run_dir: Path) -> dict[str, Any]:
  """A run's config.yaml as plain data; nothing that it names is made.

  Raises:
    ValueError: no such file, no YAML, or no experiment in it.
  """
  path = Path(run_dir) / FILE
  if not path.exists():
    raise ValueError(f"{run_dir} is not a run: it has no {FILE}")
  try:
    held = yaml.safe_load(path.read_text(encoding="utf-8"))
  except yaml.YAMLError as error:
    raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
  if not isinstance(held, dict) or "experiment" not in held:
    raise ValueError(f"{path} holds no `experiment`: it is not a run's, or was cut")
  return held


def surroundings() -> dict[str, Any]:
  """Versions, flags, devices and code that the bits of a run may depend on."""
  return {
    "versions": {"python": platform.python_version()}
    | {name: metadata.version(name) for name in _PACKAGES},
    "flags": {name: os.environ[name] for name in _FLAGS if name in os.environ},
    "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "code": {"sha256": code_digest(), "git": _git()},
  }


def code_digest() -> str:
  """SHA-256 over the package's Python files."""
  total = hashlib.sha256()
  for root in sorted(xpo_jax.__path__):
    for file in sorted(Path(root).rglob("*.py")):
      total.update(str(file.relative_to(root)).encode() + file.read_bytes())
  return total.hexdigest()


def to_dict(value: Any) -> Any:
  """Plain data for YAML and JSON. A `ObjectiveConfig` becomes `{"name": name,
  **hparams}`, a `Configured` `{"function": name, **hparams}`; a named hyperparameter, such
  as a link or a divergence, its name."""
  if isinstance(value, ObjectiveConfig | Configured):
    word = "name" if isinstance(value, ObjectiveConfig) else "function"
    return {word: value.name} | {k: to_dict(v) for k, v in value.hparams.items()}
  if dataclasses.is_dataclass(value):
    tag = {"kind": type(value).__name__} if type(value) in _KINDS.values() else {}
    fields = dataclasses.fields(value)
    return tag | {f.name: to_dict(vars(value)[f.name]) for f in fields}
  if isinstance(value, enum.Enum):
    return value.value
  if _is_named(value):
    return value.name
  if isinstance(value, list | tuple):
    return [to_dict(item) for item in value]
  return value


def from_dict(hint: Any, value: Any, where: str = "experiment") -> Any:
  """What `to_dict` made, back as a value of the type `hint`.

  Raises:
    ValueError: a field that the class does not have; a value it refuses.
  """
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    if value is None:
      return None
    kinds = [h for h in typing.get_args(hint) if h is not types.NoneType]
    if isinstance(value, Mapping) and "kind" in value:
      value = dict(value)
      kinds = [_KINDS[value.pop("kind")]]
    return from_dict(kinds[0], value, where)
  if hint is ObjectiveConfig or hint is Configured:
    word = "name" if hint is ObjectiveConfig else "function"
    hparams = {k: _hparam(v) for k, v in value.items() if k != word}
    return hint(value[word], **hparams)
  if dataclasses.is_dataclass(hint):
    hints = typing.get_type_hints(hint)
    unknown = sorted(set(value) - set(hints))
    if unknown:
      near = difflib.get_close_matches(unknown[0], hints, n=1)
      meant = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(hints)}"
      raise ValueError(f"{where} has no field {unknown[0]}{meant}")
    made = {k: from_dict(hints[k], v, f"{where}.{k}") for k, v in value.items()}
    return hint(**made)
  if isinstance(hint, type) and issubclass(hint, enum.Enum):
    return hint(value)
  if typing.get_origin(hint) is tuple:
    kind, *_ = typing.get_args(hint)
    return tuple(from_dict(kind, x, f"{where}.{i}") for i, x in enumerate(value))
  if hint is float and isinstance(value, int):
    return float(value)
  return value


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Where two nested dicts differ, a line each: `data.seed: 0 -> 1`."""
  before, after = dict(_leaves(old)), dict(_leaves(new))
  lines = []
  for name in before | after:
    if before.get(name, _ABSENT) != after.get(name, _ABSENT):
      lines.append(f"{name}: {before.get(name, _ABSENT)} -> {after.get(name, _ABSENT)}")
  return lines


def refuse_change(
  what: str, run_dir: Path, old: Mapping[str, Any], new: Mapping[str, Any]
) -> None:
  """Refuses to resume a run where two records of it differ, and shows the difference.

  Raises:
    ValueError: they differ.
  """
  lines = difference(old, new)
  if lines:
    listed = "\n  ".join(lines)
    raise ValueError(
      f"{run_dir} cannot be resumed: its {what} changed\n  {listed}\n"
      "put it back, or start a new run"
    )


def from_args(
  default: Experiment | OnlineExperiment, args: Sequence[str], prog: str | None = None
) -> Experiment | OnlineExperiment:
  """The experiment with fields overridden by flags such as `--objective.beta 0.2`.

  `--objective NAME` takes another objective of the index, whose own hyperparameters are
  then the flags. `--help` prints them all.
  """
  args = list(args)
  if "--objective" in args:
    at = args.index("--objective")
    name = args[at + 1] if at + 1 < len(args) else ""
    default = dataclasses.replace(default, objective=ObjectiveConfig(name))
    del args[at : at + 2]
  face = _face(default)
  return _behind(default, tyro.cli(type(face), default=face, args=args, prog=prog))


_ABSENT = "(absent)"


def _leaves(tree: Mapping[str, Any], prefix: str = ""):
  for name, value in tree.items():
    if isinstance(value, Mapping):
      yield from _leaves(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", value


def _hparam(value: Any) -> Any:
  if isinstance(value, Mapping) and "name" in value:
    return from_dict(ObjectiveConfig, value)
  if isinstance(value, Mapping) and "function" in value:
    return from_dict(Configured, value)
  return tuple(_hparam(v) for v in value) if isinstance(value, list) else value


def _git() -> str | None:
  """The commit of the working directory, "+" where files differ from it; None outside
  a repository."""

  def run(*command: str) -> str:
    done = subprocess.run(["git", *command], capture_output=True, text=True, check=True)
    return done.stdout.strip()

  try:
    return run("rev-parse", "HEAD") + ("+" if run("status", "--porcelain") else "")
  except (OSError, subprocess.CalledProcessError):
    return None


def _face(value: Any) -> Any:
  """A dataclass instance with the fields that a shell can set: for tyro, which wants
  one concrete class where we have unions and hyperparameters."""
  if isinstance(value, ObjectiveConfig | Configured):
    source, items = factory(value.name), value.hparams
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
      fields.append((name, str, dataclasses.field(default=to_dict(item))))
    elif name in hints and _settable(item, hints[name]):
      fields.append((name, hints[name], dataclasses.field(default=item)))
  face = dataclasses.make_dataclass(source.__name__, fields, frozen=True)
  face.__doc__ = source.__doc__
  return face()


def _is_named(value: Any) -> bool:
  """Whether it is a NamedTuple: a hyperparameter that files and shells give by its
  name."""
  return isinstance(value, tuple) and type(value) is not tuple


def _may_be_named(hint: Any) -> bool:
  kinds = [kind for kind in typing.get_args(hint) if isinstance(kind, type)]
  return any(issubclass(kind, tuple) for kind in kinds) and str in kinds


def _settable(item: Any, hint: Any) -> bool:
  """Whether words of a shell say it: a plain value, or a tuple of plain values."""
  kinds = typing.get_args(hint)
  if type(item) is tuple:
    return bool(kinds) and all(kind in (int, float, str, ...) for kind in kinds)
  plain = isinstance(item, int | float | str | enum.Enum | None)
  return plain and not any(map(dataclasses.is_dataclass, kinds))


def _behind(value: Any, face: Any) -> Any:
  """`value` with what was set on its face."""
  old = (
    value.hparams if isinstance(value, ObjectiveConfig | Configured) else vars(value)
  )
  new = {
    name: _behind(old[name], item) if dataclasses.is_dataclass(item) else item
    for name, item in vars(face).items()
  }
  if isinstance(value, ObjectiveConfig | Configured):
    return type(value)(value.name, **(dict(old) | new))
  return dataclasses.replace(value, **new)
