"""Prompts of judges: files with named parts, and texts that cannot leave their place.

A file has parts under lines `[name]`; what stands before the first is a note and is not
sent. `{prompt}`, `{first}` and the like are places. A text is put into its place
between two lines that carry a mark, made from the texts themselves and found in none of
them, so that no text can close its place and speak in the judge's prompt. Judges see
pieces, so that a local one can refuse to read control tokens in a text, and a remote
one gets them broken up.
"""

import functools
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_HERE = Path(__file__).parent / "prompts"
_PART = re.compile(r"^\[([a-z]+)\]$", re.M)
_PLACE = re.compile(r"\{([a-z]+)\}")
# What chat models use to mark turns; a server may read them as such in any text.
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
    text: what it says.
    trusted: it comes from a prompt file, not from a candidate or a model.
  """

  text: str
  trusted: bool = True


class Turn(NamedTuple):
  """What one side says.

  Attributes:
    role: "user" or "assistant".
    pieces: end to end.
  """

  role: str
  pieces: tuple[Piece, ...]


Conversation = tuple[Turn, ...]


class Prompt(NamedTuple):
  """A prompt file.

  Attributes:
    name: of the file.
    parts: name -> text, stripped.
  """

  name: str
  parts: Mapping[str, str]


def load(name: str, parts: Collection[str], places: Collection[str]) -> Prompt:
  """Reads a prompt file and checks that it can be filled.

  Args:
    name: one of the package's ("pairwise"), or the path of a .txt of your own.
    parts: those it must have; others are allowed.
    places: those that will be given; it must use each of them somewhere.

  Raises:
    ValueError: no such file; a part missing or doubled; a place unknown or unused.
  """
  held = _PART.split(_read(name))[1:]
  names, texts = held[::2], [text.strip() for text in held[1::2]]
  if len(set(names)) < len(names):
    raise ValueError(f"prompt {name}: a part stands there twice; its parts: {names}")
  found = dict(zip(names, texts, strict=True))
  missing = sorted(set(parts) - set(found))
  if missing:
    raise ValueError(
      f"prompt {name} has no part [{missing[0]}]; its parts: {', '.join(names)}"
    )
  used = {place for text in found.values() for place in _PLACE.findall(text)}
  if used != set(places):
    wrong = sorted(used ^ set(places))[0]
    problem = "does not know" if wrong in used else "must say somewhere"
    raise ValueError(
      f"prompt {name}: {{{wrong}}} is a place it {problem}; places: "
      f"{', '.join(sorted(places))}"
    )
  return Prompt(name, found)


def principles(name: str) -> tuple[str, ...]:
  """A file of principles, one a paragraph; lines with # are notes.

  Raises:
    ValueError: no such file, or none in it.
  """
  lines = [line for line in _read(name).splitlines() if not line.startswith("#")]
  blocks = re.split(r"\n\s*\n", "\n".join(lines))
  found = tuple(" ".join(block.split()) for block in blocks if block.strip())
  if not found:
    raise ValueError(f"{name} holds no principle; write one a paragraph")
  return found


def _read(name: str) -> str:
  path = Path(name) if name.endswith(".txt") else _HERE / f"{name}.txt"
  if not path.is_file():
    known = ", ".join(sorted(file.stem for file in _HERE.glob("*.txt")))
    raise ValueError(f"no prompt {name!r}; known: {known}; or the path of a .txt file")
  return path.read_text(encoding="utf-8")


def fill(
  prompt: Prompt,
  parts: Sequence[str],
  texts: Mapping[str, str],
  words: Mapping[str, str] | None = None,
  note: bool = True,
) -> tuple[Piece, ...]:
  """The named parts, end to end, with texts in their places.

  Args:
    prompt: of `load`.
    parts: in order; empty ones are left out.
    texts: place -> a text of anybody's; fenced.
    words: place -> words of our own (a principle); as they stand.
    note: say first what fences are.
  """
  fence = mark(texts.values())
  whole = [_note() if note else "", *(prompt.parts[part] for part in parts)]
  template = "\n\n".join(part for part in whole if part)
  own = dict(words or {}) | {"fence": fence}
  pieces: list[Piece] = []
  for index, chunk in enumerate(_PLACE.split(template)):
    if index % 2 == 0:
      pieces.append(Piece(chunk))
    elif chunk in own:
      pieces.append(Piece(own[chunk]))
    else:
      pieces.append(Piece(f"<<<{fence}\n"))
      pieces.append(Piece(texts[chunk], trusted=False))
      pieces.append(Piece(f"\n{fence}>>>"))
  return _joined(pieces)


@functools.cache
def _note() -> str:
  return load("fence", ("note",), ("fence",)).parts["note"]


def mark(texts: Collection[str]) -> str:
  """Letters and digits that occur in none of the texts; the same for the same texts."""
  whole = "\0".join(texts)
  number = 0
  while True:
    made = hashlib.blake2b(f"{number}\0{whole}".encode("utf-8", "replace"))
    found = made.hexdigest()[:12]
    if not any(found in text.lower() for text in texts):
      return found
    number += 1


def _joined(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
  """The same text, neighbours of one kind made one piece."""
  joined: list[Piece] = []
  for piece in pieces:
    if joined and joined[-1].trusted and piece.trusted:
      joined[-1] = Piece(joined[-1].text + piece.text)
    elif piece.text:
      joined.append(piece)
  return tuple(joined)


def messages(conversation: Conversation) -> list[dict[str, str]]:
  """A conversation for a chat endpoint; control tokens in texts are broken up."""
  return [
    {
      "role": turn.role,
      "content": "".join(
        p.text if p.trusted else harmless(p.text) for p in turn.pieces
      ),
    }
    for turn in conversation
  ]


def harmless(text: str) -> str:
  """The text with a space inside what the common chat models take for a control token.

  Another server's own tokens are not known here: `encode` of a local judge breaks up
  whatever its tokenizer holds.
  """
  text = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair
  return _CONTROL.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


def draw(seed: int, *texts: str) -> float:
  """A number in [0, 1) that depends on seed and texts only: the luck of a content."""
  hashed = hashlib.blake2b(repr((seed, *texts)).encode("utf-8", "replace"))
  return int.from_bytes(hashed.digest()[:7], "big") / (1 << 56)
