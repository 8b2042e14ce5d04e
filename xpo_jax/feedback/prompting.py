"""Loads prompt templates of judges and fills them, safe from prompt injection.

A template file has named parts under lines `[name]`; text before the first part is a
comment and is not sent. `{prompt}`, `{first}` and the like are placeholders. A text is
inserted between two lines with a fence, a string derived from the texts and contained
in none of them, so that no text can close its fence and continue the judge's prompt.
Filled prompts are sequences of pieces, trusted or not: a local judge tokenises an
untrusted piece without control tokens, for a remote one they are escaped.
"""

import functools
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_PROMPTS = Path(__file__).parent / "prompts"
_PART = re.compile(r"^\[([a-z]+)\]$", re.M)
_PLACEHOLDER = re.compile(r"\{([a-z]+)\}")
# Control tokens of chat models; a server may parse them in any text.
_CONTROL = re.compile(
  r"<[|｜][^<>\s]{1,60}[|｜]>|\[[|｜][^\[\]\s]{1,60}[|｜]\]|</?s>|<</?SYS>>"
  r"|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk|sep|cls)>"
  r"|</?(?:think|tools?|tool_call|tool_response)>"
  r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]",
  re.IGNORECASE,
)


class Piece(NamedTuple):
  """Part of a prompt.

  Attributes:
    text: the text.
    trusted: whether it comes from a template, not from a candidate or a model.
  """

  text: str
  trusted: bool = True


class ChatTurn(NamedTuple):
  """One message of a conversation.

  Attributes:
    role: "user" or "assistant".
    pieces: concatenated without separators.
  """

  role: str
  pieces: tuple[Piece, ...]


Conversation = tuple[ChatTurn, ...]


class PromptTemplate(NamedTuple):
  """A prompt file.

  Attributes:
    name: of the file.
    parts: name -> text, stripped.
  """

  name: str
  parts: Mapping[str, str]


def load_template(
  name: str, parts: Collection[str], fields: Collection[str]
) -> PromptTemplate:
  """Reads a prompt file and checks its parts and placeholders.

  Args:
    name: a prompt of the package ("pairwise"), or the path of a .txt file.
    parts: required parts; others are allowed.
    fields: the fields that will be filled; the file must use each of them, and no
      other.

  Raises:
    ValueError: no such file; a missing or duplicate part; an unknown or unused field.
  """
  sections = _PART.split(_read(name))[1:]
  names = sections[::2]
  texts = [text.strip() for text in sections[1::2]]
  if len(set(names)) < len(names):
    raise ValueError(f"prompt {name}: duplicate part; its parts: {names}")
  by_name = dict(zip(names, texts, strict=True))
  missing = sorted(set(parts) - set(by_name))
  if missing:
    raise ValueError(
      f"prompt {name} has no part [{missing[0]}]; its parts: {', '.join(names)}"
    )
  used = {field for text in by_name.values() for field in _PLACEHOLDER.findall(text)}
  if used != set(fields):
    wrong = sorted(used ^ set(fields))[0]
    problem = "unknown" if wrong in used else "missing"
    raise ValueError(
      f"prompt {name}: the placeholder {{{wrong}}} is {problem}; required are exactly: "
      f"{', '.join(sorted(fields))}"
    )
  return PromptTemplate(name, by_name)


def load_principles(name: str) -> tuple[str, ...]:
  """Reads a file of principles, one per paragraph; lines with # are comments.

  Raises:
    ValueError: no such file, or no principle in it.
  """
  lines = [line for line in _read(name).splitlines() if not line.startswith("#")]
  blocks = re.split(r"\n\s*\n", "\n".join(lines))
  principles = tuple(" ".join(block.split()) for block in blocks if block.strip())
  if not principles:
    raise ValueError(f"{name} has no principle; write one per paragraph")
  return principles


def _read(name: str) -> str:
  path = Path(name) if name.endswith(".txt") else _PROMPTS / f"{name}.txt"
  if not path.is_file():
    known = ", ".join(sorted(file.stem for file in _PROMPTS.glob("*.txt")))
    raise ValueError(
      f"no prompt {name!r}; allowed: {known}, or the path of a .txt file"
    )
  return path.read_text(encoding="utf-8")


def fill(
  template: PromptTemplate,
  parts: Sequence[str],
  texts: Mapping[str, str],
  *,
  trusted: Mapping[str, str] | None = None,
  note: bool = True,
) -> tuple[Piece, ...]:
  """Concatenates parts of a template and fills their placeholders.

  Args:
    template: of `load_template`.
    parts: names of the parts, in order; empty parts are left out.
    texts: field -> untrusted text; inserted within fences.
    trusted: field -> trusted text (a principle); inserted without fences.
    note: start with an explanation of the fences.
  """
  fence = make_fence(texts.values())
  chosen = [_note() if note else "", *(template.parts[part] for part in parts)]
  whole = "\n\n".join(part for part in chosen if part)
  unfenced = dict(trusted or {}) | {"fence": fence}
  pieces: list[Piece] = []
  for index, chunk in enumerate(_PLACEHOLDER.split(whole)):
    if index % 2 == 0:
      pieces.append(Piece(chunk))
    elif chunk in unfenced:
      pieces.append(Piece(unfenced[chunk]))
    else:
      pieces.append(Piece(f"<<<{fence}\n"))
      pieces.append(Piece(texts[chunk], trusted=False))
      pieces.append(Piece(f"\n{fence}>>>"))
  return _merge_trusted(pieces)


@functools.cache
def _note() -> str:
  return load_template("fence", ("note",), ("fence",)).parts["note"]


def make_fence(texts: Collection[str]) -> str:
  """Returns a hexadecimal string that occurs in none of the texts; deterministic."""
  whole = "\0".join(texts)
  number = 0
  while True:
    hashed = hashlib.blake2b(f"{number}\0{whole}".encode("utf-8", "replace"))
    fence = hashed.hexdigest()[:12]
    if not any(fence in text.lower() for text in texts):
      return fence
    number += 1


def _merge_trusted(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
  """Merges adjacent trusted pieces."""
  merged: list[Piece] = []
  for piece in pieces:
    if merged and merged[-1].trusted and piece.trusted:
      merged[-1] = Piece(merged[-1].text + piece.text)
    elif piece.text:
      merged.append(piece)
  return tuple(merged)


def to_messages(conversation: Conversation) -> list[dict[str, str]]:
  """Converts a conversation to chat messages; escapes control tokens in texts."""
  return [
    {
      "role": turn.role,
      "content": "".join(
        p.text if p.trusted else escape_control_tokens(p.text) for p in turn.pieces
      ),
    }
    for turn in conversation
  ]


def escape_control_tokens(text: str) -> str:
  """Inserts a space into the control tokens of common chat models.

  Control tokens of other models are unknown here; `local.encode` escapes those of its
  tokenizer.
  """
  text = text.encode("utf-8", "replace").decode("utf-8")  # unpaired surrogates
  return _CONTROL.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)


def hash_uniform(seed: int, *texts: str) -> float:
  """Returns a uniform variate in [0, 1), a hash of the seed and the texts."""
  hashed = hashlib.blake2b(repr((seed, *texts)).encode("utf-8", "replace"))
  return int.from_bytes(hashed.digest()[:7], "big") / (1 << 56)
