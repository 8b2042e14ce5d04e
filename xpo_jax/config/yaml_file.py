"""Reads and writes experiments as YAML, and compares them."""

import dataclasses
import difflib
import enum
import hashlib
import os
import platform
import subprocess
import sys
import types
import typing
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import yaml

import xpo_jax
from xpo_jax import objectives
from xpo_jax.config import trust
from xpo_jax.config.data import Data, Prompts
from xpo_jax.config.experiment import (
  Experiment,
  Pretrained,
  Rollouts,
  Scratch,
  Stage,
)
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.data import sealed_files
from xpo_jax.models.config import Remat, remat_of

FILE = "config.yaml"
FORMAT = 2  # of config.yaml and what stands beside it
# Where reward heads are read; recorded as `reward_head_at` by a run that trains one.
REWARD_HEAD_AT = "the token itself"
# Members of unions, and what may be an argument of a `Configured`.
_TAGGED = (Scratch, Pretrained, Stage, Data, Rollouts, Prompts)
_KINDS = {kind.__name__: kind for kind in _TAGGED}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "xpo_jax")
_FLAGS = ("XLA_FLAGS", "JAX_PLATFORMS", "JAX_ENABLE_X64", "LIBTPU_INIT_ARGS")


def write(run_dir: Path, experiment: Experiment) -> None:
  """Writes config.yaml: the experiment, versions, flags, devices and code.

  Modules outside the package are listed under `trust`, for the reader: a run that names
  some goes on with `--trust MODULE`.
  """
  plain = to_dict(experiment)
  content = {"format": FORMAT, "experiment": plain, **surroundings()}
  if reads_reward_head(experiment):
    content["reward_head_at"] = REWARD_HEAD_AT
  if foreign := trust.foreign_modules(plain):
    content["trust"] = foreign
  text = yaml.dump(
    content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=88
  )
  sealed_files.write_commented(run_dir / FILE, text)


def read(run_dir: Path) -> tuple[Experiment, dict[str, Any]]:
  """Reads the experiment of a run, and everything else in its config.yaml.

  Raises:
    ValueError: as `content` and `from_dict`.
  """
  recorded = content(run_dir)
  return from_dict(Experiment, recorded.pop("experiment")), recorded


def content(run_dir: Path) -> dict[str, Any]:
  """Reads a run's config.yaml as plain data; nothing that it names is built.

  Raises:
    ValueError: no such file, a damaged one, no YAML, no experiment in it, or another
      format.
  """
  path = Path(run_dir) / FILE
  if not path.exists():
    raise ValueError(f"{run_dir} is not a run: it has no {FILE}")
  try:
    content = yaml.load(sealed_files.read_commented(path), _Loader)
  except yaml.YAMLError as error:
    raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
  except RecursionError as error:
    raise ValueError(f"{path} is nested too deep: no run wrote it") from error
  if not isinstance(content, dict) or "experiment" not in content:
    raise ValueError(f"{path} holds no `experiment`: it is not a run's, or was cut")
  version = content.get("format", 1)
  if version != FORMAT:
    raise ValueError(
      f"{path} has format {version}, and this version reads format {FORMAT}; train the "
      "run again, or read it with the version that wrote it"
    )
  return content


def reads_reward_head(experiment: Experiment) -> bool:
  """Whether an objective of a run trains a scalar head on tokens that it has read."""
  own = [experiment.objective, *(loss.objective for loss in experiment.aux_losses)]
  stats = {stat for objective in own for stat in objective.build().stats}
  return any(role.endswith(".reward") for stat in stats for role in stat.roles)


class _Loader(yaml.SafeLoader):
  """Reads plain data; refuses aliases, which can stand for endless or huge data."""

  def compose_node(self, parent, index):
    if self.check_event(yaml.AliasEvent):
      event = self.peek_event()
      raise yaml.composer.ComposerError(
        None,
        None,
        f"*{event.anchor} is an alias; write the value out",
        event.start_mark,
      )
    return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
  """Writes equal values out each time."""

  def ignore_aliases(self, data):
    del data
    return True


def surroundings() -> dict[str, Any]:
  """Versions, flags, devices and code that the bits of a run may depend on."""
  return {
    "versions": _versions(),
    "flags": {name: os.environ[name] for name in _FLAGS if name in os.environ},
    "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "code": {"sha256": code_digest(), "git": _git()},
  }


def _versions() -> dict[str, str]:
  return {"python": platform.python_version()} | {
    name: metadata.version(name) for name in _PACKAGES
  }


def code_digests(plain: Any) -> dict[str, str]:
  """The versions of packages, and SHA-256 of the package and of the modules outside it
  that a config names, each by its name.

  Args:
    plain: the config, of `to_dict`.
  """
  digests = _versions() | {"xpo_jax": code_digest()}
  for module in trust.foreign_modules(plain):
    # What it names was imported to build it.
    path = vars(sys.modules[module]).get("__file__") if module in sys.modules else None
    if path is not None:
      digests[module] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
  return digests


def code_digest() -> str:
  """SHA-256 over the package's Python files."""
  total = hashlib.sha256()
  for root in sorted(xpo_jax.__path__):
    for file in sorted(Path(root).rglob("*.py")):
      total.update(str(file.relative_to(root)).encode() + file.read_bytes())
  return total.hexdigest()


def to_dict(value: Any) -> Any:
  """Converts a config to plain data for YAML and JSON.

  An `ObjectiveConfig` becomes `{"name": name, **hparams}`, a `Configured`
  `{"function": name, **arguments}`; a named hyperparameter, such as a link or a
  divergence, its name; a member of a union carries its class as `kind`.
  """
  if isinstance(value, ObjectiveConfig):
    return {"name": value.name} | {k: to_dict(v) for k, v in value.hparams.items()}
  if isinstance(value, Configured):
    arguments = {k: to_dict(v) for k, v in value.arguments.items()}
    return {"function": value.name} | arguments
  if dataclasses.is_dataclass(value):
    tag = {"kind": type(value).__name__} if isinstance(value, _TAGGED) else {}
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
  """Builds a value of the type `hint` from what `to_dict` returned.

  Args:
    hint: the type.
    value: plain data, perhaps of a file from someone else.
    where: its path, for messages.

  Raises:
    ForeignCode: it names code that is neither the package's nor trusted; nothing was
      imported or built.
    ValueError: a field that the class does not have; a value it refuses.
  """
  trust.refuse_foreign(value, where)
  return _from_dict(hint, value, where)


def _from_dict(hint: Any, value: Any, where: str) -> Any:
  """Builds a value of plain data whose names were checked."""
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    if value is None:
      return None
    return _from_dict(_member(typing.get_args(hint), value), value, where)
  if hint is ObjectiveConfig or hint is Configured:
    word = "name" if hint is ObjectiveConfig else "function"
    return hint(value[word], **{k: _argument(v) for k, v in value.items() if k != word})
  if dataclasses.is_dataclass(hint):
    hints = typing.get_type_hints(hint)
    fields = {k: v for k, v in value.items() if k != "kind" or "kind" in hints}
    unknown = sorted(set(fields) - set(hints))
    if unknown:
      near = difflib.get_close_matches(unknown[0], hints, n=1)
      hint_at = f"did you mean {near[0]}?" if near else f"known: {', '.join(hints)}"
      raise ValueError(f"{where} has no field {unknown[0]}; {hint_at}")
    return hint(
      **{k: _from_dict(hints[k], v, f"{where}.{k}") for k, v in fields.items()}
    )
  if isinstance(hint, type) and issubclass(hint, enum.Enum):
    return hint(value)
  if typing.get_origin(hint) is tuple:
    kind, *_ = typing.get_args(hint)
    return tuple(_from_dict(kind, x, f"{where}.{i}") for i, x in enumerate(value))
  if hint == Remat and isinstance(value, bool):  # of a run before there was a choice
    return remat_of(value)
  if hint is float and isinstance(value, int):
    return float(value)
  return value


def _member(kinds: tuple[Any, ...], value: Any) -> Any:
  """The member of a union that a value belongs to."""
  if isinstance(value, Mapping) and "kind" in value:
    return _KINDS[value["kind"]]
  if isinstance(value, Mapping) and "function" in value and Configured in kinds:
    return Configured
  return next(kind for kind in kinds if kind is not types.NoneType)


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Lists where two nested dicts differ, a line each: `data.seed: 0 -> 1`."""
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


_ABSENT = "(absent)"


def _leaves(tree: Mapping[str, Any], prefix: str = ""):
  for name, value in tree.items():
    if isinstance(value, Mapping):
      yield from _leaves(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", value


def _argument(value: Any) -> Any:
  """An argument of a factory; a mapping that names a factory or a stage is one."""
  if isinstance(value, list):
    return tuple(map(_argument, value))
  if not isinstance(value, Mapping):
    return value
  if value.get("kind") in _KINDS:
    return _from_dict(_KINDS[value["kind"]], value, "experiment")
  if isinstance(value.get("function"), str):
    return _from_dict(Configured, value, "experiment")
  name = value.get("name")
  if name in objectives.NAMES or (isinstance(name, str) and ":" in name):
    return _from_dict(ObjectiveConfig, value, "experiment")
  return value


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


def _is_named(value: Any) -> bool:
  """Whether a value is a NamedTuple: a hyperparameter that YAML and flags give by
  name."""
  return isinstance(value, tuple) and type(value) is not tuple
