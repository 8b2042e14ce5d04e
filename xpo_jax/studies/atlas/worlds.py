"""The worlds that claims are tested in: exact ones, and a pretrained chat model's.

`xpo reproduce --world` takes "synthetic", the exact worlds, or the directory of a chat
model; "smollm2" is the one that `experiments/fetch_smollm2.py` makes.
"""

from typing import Literal

World = Literal["synthetic", "chat model"]
EXACT: World = "synthetic"
CHAT_MODEL: World = "chat model"
SMOLLM2 = "smollm2"
# Of tables, in `experiments/`.
FOLDERS: dict[World, str] = {EXACT: "papers", CHAT_MODEL: "papers/chat_model"}
# That choose a world, after `xpo reproduce NAME`.
FLAGS: dict[World, str] = {EXACT: "", CHAT_MODEL: f" --world {SMOLLM2}"}


def of(name: str) -> World:
  """The world of a name that `--world` takes."""
  return EXACT if name == EXACT else CHAT_MODEL
