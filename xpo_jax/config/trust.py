"""Decides which functions a file may name: those of xpo_jax, and those the user trusts.

A run directory may come from someone else. What its config.yaml or study.json names is
looked up only in the parts of xpo_jax that make objectives, judges, records and the
like, or in modules that the user trusts: by `--trust MODULE` (`allow`), or by having
used them in this process, in a recipe or on the command line (`allow_used`). What a
file says about trust grants nothing. A server of another host, to which a judge sends
texts and an API key, is named and trusted as a module is.
"""

import importlib
import inspect
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib import parse

# Packages and modules whose functions a file may name. Not the others: they write,
# train, execute files by path (recipes), or look up names among their own arguments.
_OBJECTIVES = ("xpo_jax.objectives",)
_MAKERS = (
  *_OBJECTIVES,
  "xpo_jax.data.transforms",
  "xpo_jax.data.synthetic_reviews",
  "xpo_jax.evaluation.evaluators",
  "xpo_jax.feedback",
  "xpo_jax.ops",
  "xpo_jax.studies.frontier.fixed_completions",
  "xpo_jax.studies.frontier.labelled_samples",
  "xpo_jax.studies.multistage",
  "xpo_jax.testing",
  "xpo_jax.train.pair_construction",
)
_PROGRAMS = (
  "xpo_jax.feedback.response_cache",
  "xpo_jax.studies.multistage.arm_table",
  "xpo_jax.studies.multistage.arms",
)
_OBJECTIVE = "name"
# Fields of a file that hold "module:function"; `only` holds several, with commas.
_FIELDS = (_OBJECTIVE, "function", "transform", "only", "reward_function")
_SERVER = "base_url"
# Servers to which a file may send texts and a key: the default, and this host's.
_SERVERS = ("api.openai.com", "localhost", "127.0.0.1", "::1")

# Of this process: modules, packages, single names "module:function", paths of recipes,
# servers.
_trusted: set[str] = set()


class Named(NamedTuple):
  """A function that plain data names, or a server.

  Attributes:
    where: the field, as in "experiment.data.feedback.source".
    name: "module:function", or a URL.
    is_objective: whether it is named as an objective.
  """

  where: str
  name: str
  is_objective: bool

  @property
  def module(self) -> str:
    """Its module; of a server, its URL without the path."""
    return _server(self.name) if self.is_server else self.name.partition(":")[0]

  @property
  def is_server(self) -> bool:
    """Whether it is a URL."""
    return self.where.endswith(f".{_SERVER}")


class ForeignCode(ValueError):
  """A file names code that is neither the package's nor trusted.

  Attributes:
    names: every function that is not trusted, in the order of the file.
    options: `--trust MODULE` for each of their modules, for a shell.
  """

  def __init__(self, names: list[Named]):
    self.names = names
    self.options = options(list(dict.fromkeys(named.module for named in names)))
    first = names[0]
    if first.is_server:
      reason = (
        f"is {first.name!r}, a server that you do not trust, so nothing was sent to "
        "it; if it may have your texts and key"
      )
    else:
      reason = (
        f"names {first.name!r}, which is neither in a part of xpo_jax that a file may "
        "name nor in a module that you trust, so nothing was imported; if you know "
        "that code"
      )
    super().__init__(f"{first.where} {reason}, add {self.options}")


def options(modules: list[str]) -> str:
  """The options that trust modules and servers, for a shell."""
  return " ".join(f"--trust {shlex.quote(name)}" for name in modules)


def allow(*names: str) -> None:
  """Trusts modules, packages with all their modules, recipes by path (`.py`), and
  servers by URL."""
  _trusted.update(_server(name) if "://" in name else name for name in names)


def allow_used(name: str) -> None:
  """Trusts the module of a function that code or a command of the user's has named.

  In xpo_jax it is the function alone that is trusted.

  Args:
    name: "module:function"; a name of the index needs no trust.
  """
  module, colon, _ = name.partition(":")
  if colon:
    _trusted.add(name if _within(module, ("xpo_jax",)) else module)


def allow_used_servers(arguments: Any) -> None:
  """Trusts the servers among the arguments of what code of the user's has named."""
  allow(*(named.module for named in names(arguments, "") if named.is_server))


def trusted_path(stem: str) -> Path | None:
  """The trusted recipe of that name; None where the user gave none by path."""
  paths = [Path(name) for name in sorted(_trusted) if name.endswith(".py")]
  return next((path for path in paths if path.stem == stem), None)


def names(plain: Any, where: str) -> Iterator[Named]:
  """Yields every "module:function" and server of plain data, however deep; imports
  nothing.

  Args:
    plain: what a file holds.
    where: its path, for messages.
  """
  if isinstance(plain, Mapping):
    for key, value in plain.items():
      if key == _SERVER and isinstance(value, str):
        yield Named(f"{where}.{key}", value, False)
      elif key not in _FIELDS or not isinstance(value, str):
        yield from names(value, f"{where}.{key}")
      else:
        place = where if key in (_OBJECTIVE, "function") else f"{where}.{key}"
        for name in value.split(",") if key == "only" else [value]:
          if ":" in name:
            yield Named(place, name.strip(), key in (_OBJECTIVE, "only"))
  elif isinstance(plain, list | tuple):
    for number, value in enumerate(plain):
      yield from names(value, f"{where}.{number}")


def foreign_modules(plain: Any) -> list[str]:
  """Modules and servers that plain data names and that need trust, whether they have it
  or not."""
  return sorted({named.module for named in names(plain, "") if not _is_ours(named)})


def refuse_foreign(plain: Any, where: str) -> None:
  """Refuses plain data of a file that name a function which a file may not name.

  Args:
    plain: what the file holds.
    where: its path, for messages.

  Raises:
    ForeignCode: names the field, the function and the option; nothing was imported.
  """
  foreign = [
    named
    for named in names(plain, where)
    if not (_is_trusted(named) or _is_ours(named))
  ]
  if foreign:
    raise ForeignCode(foreign)


def _server(url: str) -> str:
  """A URL without its path."""
  return parse.urlunsplit((*parse.urlsplit(url)[:2], "", "", "")) or url


def _is_trusted(named: Named) -> bool:
  return named.name in _trusted or _within(named.module, tuple(_trusted))


def _is_ours(named: Named) -> bool:
  """Whether it is a function of the package that makes something for a run, defined in
  the very module that is named: what a module imports is not its own."""
  if named.is_server:
    return parse.urlsplit(named.name).hostname in _SERVERS
  allowed = _OBJECTIVES if named.is_objective else _MAKERS
  module, _, attribute = named.name.partition(":")
  if not _within(module, allowed) or _within(module, _PROGRAMS):
    return False
  function = inspect.unwrap(vars(importlib.import_module(module)).get(attribute))
  return inspect.isfunction(function) and function.__module__ == module


def _within(module: str, packages: tuple[str, ...]) -> bool:
  return any(module == name or module.startswith(f"{name}.") for name in packages)
