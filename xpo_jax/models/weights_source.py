"""Finds the directory of weights that a name stands for.

| name | weights |
|---|---|
| a directory | it |
| `hub:ORG/NAME[@revision]` | a snapshot in the hub's cache (`data.formats.hub`) |
| FILE.gguf | a directory made of it, in the cache of this package (`gguf_file`) |
"""

import re
from pathlib import Path

from xpo_jax.data.formats import hub
from xpo_jax.models import gguf_file


def directory(name: str | Path) -> Path:
  """Finds or makes the Hugging Face directory of a name.

  Raises:
    ValueError: a repository that cannot be read; a GGUF file that cannot be; a name of
      the hub's form without its prefix, and no such directory.
  """
  text = str(name)
  if text.startswith(hub.PREFIX):
    return hub.model(text)
  if text.endswith(gguf_file.SUFFIX):
    return gguf_file.cached(Path(text))
  if not Path(text).exists() and re.fullmatch(r"[\w-]+/[\w.-]+", text):
    raise ValueError(
      f"{text}: no such directory; a repository of the hub is {hub.PREFIX}{text}"
    )
  return Path(text)
