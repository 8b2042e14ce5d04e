"""Reads models and data sets of the hub: `hub:ORG/NAME[:config][@revision]`.

Files come through the cache of `huggingface_hub`; `HF_HUB_OFFLINE`, `HF_HOME` and
`HF_ENDPOINT` are honoured. A token is read from the environment alone (`HF_TOKEN`).
Weights, configs, tokenizers and rows are read; no code of a repository is, and a data
set that needs its own script is refused.
"""

import fnmatch
import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import yaml
from huggingface_hub import errors

from xpo_jax.data.formats import splits, tables
from xpo_jax.data.sources import Loaded, Reading

PREFIX = "hub:"
_MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
_ADAPTER = "adapter_config.json"
_SHARD = re.compile(r"-(\d+)-of-(\d+)")
_CARD = "README.md"
_SPLITS = ("train", "validation", "valid", "dev", "test", "eval")


class Address(NamedTuple):
  """A repository.

  Attributes:
    repo: "ORG/NAME", or the name of an old data set.
    config: of a data set, or None.
    revision: a branch, tag or commit; None: the main branch.
  """

  repo: str
  config: str | None
  revision: str | None

  def __str__(self) -> str:
    config = f":{self.config}" if self.config else ""
    return f"{PREFIX}{self.repo}{config}" + (
      f"@{self.revision}" if self.revision else ""
    )


def parse(text: str) -> Address:
  """Parses `hub:ORG/NAME[:config][@revision]`.

  Raises:
    ValueError: another form.
  """
  match = re.fullmatch(
    r"hub:([\w.-]+(?:/[\w.-]+)?)(?::([^@:]+))?(?:@([\w./-]+))?", text
  )
  if match is None:
    raise ValueError(
      f"{text!r} is no repository; write {PREFIX}ORG/NAME, "
      f"{PREFIX}ORG/NAME@revision or, of a data set, {PREFIX}ORG/NAME:config@revision"
    )
  return Address(*match.groups())


def model(text: str) -> Path:
  """Finds the directory of a model, or of an adapter in PEFT's format: its configs,
  tokenizer and safetensors.

  Args:
    text: `hub:ORG/NAME[@revision]`.

  Returns:
    The snapshot in the cache; downloaded if it is not there. One for the whole process:
    a branch that moves meanwhile does not mix two revisions.

  Raises:
    ValueError: no such repository or revision, a gated one, no network; and no model
      in it.
  """
  return _model(text, str(huggingface_hub.constants.HF_HUB_CACHE))


@functools.cache
def _model(text: str, cache: str) -> Path:
  del cache
  address = parse(text)
  if address.config is not None:
    raise ValueError(f"{text}: a model has no config; write {PREFIX}{address.repo}")
  folder = _snapshot(address, "model", _MODEL_FILES, ignore=["*/*"])
  if not any((folder / name).exists() for name in ("config.json", _ADAPTER)):
    raise ValueError(
      f"{address} is no model of transformers, and no adapter of PEFT: it has neither "
      f"config.json nor {_ADAPTER}"
    )
  return folder


def read(text: str, split: str, reading: Reading = Reading()) -> Loaded:
  """Reads a split of a data set.

  Args:
    text: `hub:NAME[:config][@revision]`.
    split: of it, as `splits.find` takes it.
    reading: how rows are read.

  Raises:
    ValueError: as `model`; an unknown config or split; no files of rows.
  """
  address = parse(text)
  listed = _names(address)
  split, names = _files(address, split, listed, _card(address, listed))
  folder = _snapshot(address, "dataset", names)
  config = f":{address.config}" if address.config else ""
  files = [folder / name for name in names]
  return tables.read_files(files, f"{address.repo}{config}/{split}", reading)


def _files(
  address: Address, split: str, names: Sequence[str], card: Sequence[Any]
) -> tuple[str, list[str]]:
  """A split and its files: by the card of the data set, else by their names."""
  rows = sorted(name for name in names if name.endswith(tables.SUFFIXES))
  patterns = _declared(address, card)
  if patterns:
    by_split = {
      name: [row for row in rows if any(fnmatch.fnmatch(row, each) for each in globs)]
      for name, globs in patterns.items()
    }
  else:
    if address.config is not None:
      rows = [name for name in rows if address.config in name.split("/")[:-1]]
    by_split = {
      name: [row for row in rows if name in re.split(r"[/._-]", row)]
      for name in dict.fromkeys((*split.split("|"), *_SPLITS))
    }
  known = [name for name, files in by_split.items() if files]
  if known:
    split = splits.find(split, known, str(address))
    return split, by_split[split]
  scripts = [name for name in names if name.endswith(".py")]
  why = f", and its script {scripts[0]} is not run" if scripts else ""
  raise ValueError(
    f"{address} has no files of rows ({', '.join(tables.SUFFIXES)}){why}; the hub's "
    f"own conversion may: {PREFIX}{address.repo}@refs/convert/parquet"
  )


def _declared(address: Address, card: Sequence[Any]) -> dict[str, list[str]]:
  """Patterns of files by split, as a card's `configs` name them; {} without."""
  configs = {str(one.get("config_name")): one for one in card if "data_files" in one}
  if not configs:
    return {}
  name = address.config
  if name is None:
    defaults = [key for key, one in configs.items() if one.get("default")]
    name = next(iter(defaults or ["default"] * ("default" in configs)), None)
    if name is None and len(configs) > 1:
      raise ValueError(
        f"{address} has the configs {', '.join(configs)}; name one, as in "
        f"{PREFIX}{address.repo}:{next(iter(configs))}"
      )
    name = name or next(iter(configs))
  if name not in configs:
    raise ValueError(
      f"{address} has no config {name!r}; it has {', '.join(sorted(configs))}"
    )
  files = configs[name]["data_files"]
  if isinstance(files, dict):
    files = [{"split": split, "path": path} for split, path in files.items()]
  if isinstance(files, str) or (files and isinstance(files[0], str)):
    files = [{"split": "train", "path": files}]
  return {
    str(one.get("split", "train")): (
      [one["path"]] if isinstance(one["path"], str) else one["path"]
    )
    for one in files
  }


def _card(address: Address, names: Sequence[str]) -> list[Any]:
  """The configs that the card of a data set declares."""
  if _CARD not in names:
    return []
  text = (_snapshot(address, "dataset", [_CARD]) / _CARD).read_text(encoding="utf-8")
  match = re.match(r"---\n(.*?)\n---", text, re.S)
  try:
    content = yaml.safe_load(match[1]) if match else {}
  except yaml.YAMLError:
    content = {}
  configs = content.get("configs") if isinstance(content, dict) else None
  return [one for one in configs or [] if isinstance(one, dict)]


def _names(address: Address) -> list[str]:
  """The files of a data set; without a network those of the cache."""
  api = huggingface_hub.HfApi(token=_token())
  try:
    about = api.dataset_info(address.repo, revision=address.revision)
    return [file.rfilename for file in about.siblings or []]
  except errors.HfHubHTTPError as error:  # the hub's answer
    raise _refusal(address, "dataset", error) from error
  except Exception:  # no network: of many types, by version
    folder = _snapshot(address, "dataset", None, local=True)
    files = (file for file in folder.rglob("*") if file.is_file())
    names = [str(file.relative_to(folder)) for file in files]
  _refuse_gaps(address, names)
  return names


def _refuse_gaps(address: Address, names: Sequence[str]) -> None:
  """Refuses numbered files of which the cache has only some.

  Raises:
    ValueError: names a file that is missing.
  """
  for name in names:
    if numbers := _SHARD.search(name):
      digits, count = len(numbers[2]), int(numbers[2])
      start, end = name[: numbers.start(1)], name[numbers.end(1) :]
      for number in range(count):
        other = f"{start}{number:0{digits}d}{end}"
        if other not in names:
          raise ValueError(
            f"{address}: the cache has {name} and not {other}, and the hub cannot be "
            "reached; read it once with a network"
          )


def _snapshot(
  address: Address,
  kind: str,
  allow: Sequence[str] | None,
  *,
  ignore: Sequence[str] | None = None,
  local: bool = False,
) -> Path:
  """The folder of a repository in the cache, with the files that patterns allow."""
  try:
    folder = huggingface_hub.snapshot_download(
      address.repo,
      repo_type=kind,
      revision=address.revision,
      allow_patterns=None if allow is None else list(allow),
      ignore_patterns=None if ignore is None else list(ignore),
      local_files_only=local,
      token=_token(),
    )
  except Exception as error:  # of many types, by version
    raise _refusal(address, kind, error) from error
  return Path(folder)


def _token() -> str | bool:
  """The token of the environment; False: none, not even one of a file."""
  return os.environ.get("HF_TOKEN") or False


def _refusal(address: Address, kind: str, error: Exception) -> ValueError:
  """Why a repository cannot be read, and the fix, in one line."""
  page = f"https://huggingface.co/{'datasets/' * (kind == 'dataset')}{address.repo}"
  if isinstance(error, errors.GatedRepoError):
    return ValueError(
      f"{address} is gated: accept its terms at {page}, and set HF_TOKEN to a token of "
      "your account"
    )
  if isinstance(error, errors.RevisionNotFoundError):
    return ValueError(f"{address}: {address.repo} has no such revision; see {page}")
  if isinstance(error, errors.RepositoryNotFoundError):
    return ValueError(
      f"{address}: no such {kind} on the hub, or a private one; look at {page}, and "
      "set HF_TOKEN if it is yours"
    )
  if huggingface_hub.constants.HF_HUB_OFFLINE:
    return ValueError(
      f"{address} is not in the cache ({huggingface_hub.constants.HF_HUB_CACHE}), and "
      "HF_HUB_OFFLINE is set; unset it to download"
    )
  if isinstance(error, errors.HFValidationError):
    return ValueError(f"{address} is no name of a repository: {_line(error)}")
  return ValueError(
    f"{address} is not in the cache ({huggingface_hub.constants.HF_HUB_CACHE}) and "
    f"cannot be downloaded: {_line(error)}"
  )


def _line(error: Exception) -> str:
  return " ".join(f"{type(error).__name__}: {error}".split())[:200]
