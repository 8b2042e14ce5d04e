"""Renders records as text: by the tokenizer's chat template, or plain.

What a message holds beside role and content reaches the template, as do the columns
`tools`, `documents` and `chat_template_kwargs`. What the data spell stays text: a
special token of the tokenizer that occurs in them is marked while a text is rendered,
so that it is not taken for one that the template wrote.

A turn with loss is trained from where the template asks for it, after the generation
prompt, to its end. Where the template says itself what the model writes, by blocks
`{% generation %}`, what is trained of the turn is what stands in such blocks.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jinja2
from transformers.utils import chat_template_utils

from xpo_jax.data import records
from xpo_jax.data.records import Record, Text, Turn, UnusableRecord

_MARK = "\ufdd0"  # a noncharacter: no text has it
_FIRST = 0xF0000  # after a mark, the special token's number from here
_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclasses.dataclass(frozen=True)
class Template:
  """How a record is rendered as text.

  Conversations are rendered by the tokenizer's chat template. Plain text is
  `before + prompt + between + completion`, by default without separators.

  Attributes:
    before: prefix of a plain prompt.
    between: separator of a plain prompt and its completion; part of the prompt.
    arguments: of the chat template, by name, such as `enable_thinking`; those of a
      row (`chat_template_kwargs`) override them.
    control_tokens: special tokens of the tokenizer that the data spell are "text", or
      are the tokens they name ("parse"), as in data that are rendered already. Both are
      counted.
    chat_template: a chat template in place of the tokenizer's: its text, or a file of
      it, which is read when this value is made, so that a run records the text; None:
      the tokenizer's. It is exported with the tokenizer.
  """

  before: str = ""
  between: str = ""
  arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
  control_tokens: Literal["text", "parse"] = "text"
  chat_template: str | None = None

  def __post_init__(self):
    if self.chat_template is not None and "{" not in self.chat_template:
      object.__setattr__(self, "chat_template", _read(self.chat_template))
    if self.control_tokens not in ("text", "parse"):
      raise ValueError(
        f"Template.control_tokens is {self.control_tokens!r}; allowed: 'text', 'parse'"
      )


def _read(file: str) -> str:
  try:
    text = Path(file).read_text(encoding="utf-8")
  except (OSError, ValueError) as error:
    raise ValueError(
      f"Template.chat_template is {file!r}: neither a template, which has a '{{', nor "
      f"a file that can be read: {error}"
    ) from error
  if "{" not in text:
    raise ValueError(f"Template.chat_template: {file} has no '{{': it is no template")
  return text


class Prefixes(NamedTuple):
  """Prefixes of one rendered text; the first is the prompt, the last the whole text.

  Attributes:
    texts: with marks (`Renderer.unmarked`). `texts[1:-1]` come in pairs, which end
      where a turn with loss starts and ends; of steps they end with each step.
    chat: whether the chat template rendered them.
    blocks: start and end, in the whole text, of what the template marks as written by
      the model; None where it marks nothing.
  """

  texts: tuple[str, ...]
  chat: bool
  blocks: tuple[tuple[int, int], ...] | None = None


class Unmarked(NamedTuple):
  """A text without marks.

  Attributes:
    text: as the tokenizer reads it.
    spelled: start and end of each special token that the data spelled.
  """

  text: str
  spelled: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Renderer:
  """Renders records for a tokenizer.

  Attributes:
    tokenizer: of transformers.
    template: how a record is rendered as text.
  """

  tokenizer: Any
  template: Template

  def prompt(self, record: Record) -> Prefixes:
    """Renders the prompt of a record, to sample from.

    Raises:
      UnusableRecord: the chat template refuses it.
      ValueError: messages, and the tokenizer has no chat template.
    """
    if isinstance(record.prompt, str):
      before, between = self.template.before, self.template.between
      return Prefixes((before + self._marked(record.prompt) + between,), chat=False)
    text = self._chat(record.prompt, record.template_arguments, generate=True)
    return Prefixes((text,), chat=True)

  def completion(self, record: Record, completion: Text) -> Prefixes:
    """Renders a record with one of its completions; raises as `prompt`."""
    (start,), chat, _ = self.prompt(record)
    if isinstance(completion, str):
      return Prefixes((start, start + self._marked(completion)), chat)
    texts, arguments = [start], record.template_arguments
    whole, blocks = self._with_blocks(_trained(record.prompt, completion), arguments)
    whole = whole.rstrip()
    # Every turn of the assistant is trained: the blocks say all.
    if blocks is not None and all(x.loss for x in completion if x.role == "assistant"):
      return Prefixes((*texts, whole), chat, blocks)
    for number, turn in enumerate(completion):
      if turn.loss:
        before = (*record.prompt, *completion[:number])
        texts.append(self._chat(before, arguments, generate=True))
        texts.append(self._chat((*before, turn), arguments).rstrip())
    return Prefixes((*texts, whole), chat, blocks)

  def whole(self, record: records.Demonstration) -> Prefixes:
    """Renders a conversation to the end of what the chat template writes, with
    whitespace there; raises as `prompt`."""
    arguments = record.template_arguments
    start = self._chat(record.prompt, arguments, generate=True)
    turns = (*record.prompt, *record.completion)
    return Prefixes((start, self._chat(turns, arguments)), chat=True)

  def steps(self, record: records.Stepped) -> Prefixes:
    """Renders the prompt, then prefixes that end with each step; raises as `prompt`."""
    (start,), chat, _ = self.prompt(record)
    steps = list(map(self._marked, record.steps))
    ends = range(1, len(steps) + 1)
    return Prefixes((start, *(start + "\n".join(steps[:n]) for n in ends)), chat)

  def unread(self, record: Record) -> list[str]:
    """Names the keys of messages, and the template's arguments of a row, without which
    the rendered text of the record would be the same."""
    if isinstance(record.prompt, str):
      return []
    completions = records.completions(record) or ((),)
    texts = [_trained(record.prompt, completion) for completion in completions]
    arguments = record.template_arguments
    keys = {
      key for text in texts for turn in text for key, x in turn.other.items() if x
    }
    unread = [
      f"{key} of messages"
      for key in sorted(keys)
      if all(
        self._same(text, _without(text, key), arguments, arguments) for text in texts
      )
    ]
    for name in sorted(name for name, value in arguments.items() if value):
      fewer = {key: value for key, value in arguments.items() if key != name}
      if all(self._same(text, text, arguments, fewer) for text in texts):
        unread.append(name)
    return unread

  def spells_control_token(self, record: Record) -> bool:
    """Whether the text of a record spells a special token of the tokenizer."""
    texts = (record.prompt, *records.completions(record))
    return any(self._control.search(records.plain_text(text)) for text in texts)

  def unmarked(self, text: str) -> Unmarked:
    """Puts back the special tokens that the data spell."""
    if _MARK not in text:
      return Unmarked(text, ())
    parts, spelled, length = [], [], 0
    for number, part in enumerate(text.split(_MARK)):
      if number:
        token = self._special[ord(part[0]) - _FIRST]
        spelled.append((length, length + len(token)))
        part = token + part[1:]
      parts.append(part)
      length += len(part)
    return Unmarked("".join(parts), tuple(spelled))

  @functools.cached_property
  def _special(self) -> list[str]:
    """Special tokens, the longest first."""
    added = self.tokenizer.added_tokens_decoder.values()
    tokens = {token.content for token in added if token.special} - {""}
    return sorted(tokens, key=lambda token: (-len(token), token))

  @functools.cached_property
  def _control(self) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, self._special)) or r"(?!)")

  def _marked(self, value: Any) -> Any:
    """Marks the special tokens in all strings of a value."""
    if isinstance(value, str):
      if _MARK in value:
        raise UnusableRecord(
          "reserved character", "a text has U+FDD0, no character of Unicode; remove it"
        )
      if self.template.control_tokens == "parse":
        return value
      return self._control.sub(
        lambda match: _MARK + chr(_FIRST + self._special.index(match[0])), value
      )
    if isinstance(value, Mapping):
      return {key: self._marked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
      return [self._marked(item) for item in value]
    return value

  def _chat(
    self, turns: Sequence[Turn], arguments: Mapping[str, Any], generate: bool = False
  ) -> str:
    template = self._template(arguments)

    def render(messages: list[dict[str, Any]], given: Mapping[str, Any]) -> str:
      return self.tokenizer.apply_chat_template(
        messages,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=generate,
        **given,
      )

    return self._rendered(render, turns, arguments)

  def _with_blocks(
    self, turns: Sequence[Turn], arguments: Mapping[str, Any]
  ) -> tuple[str, tuple[tuple[int, int], ...] | None]:
    """A rendered conversation, and `Prefixes.blocks`."""
    template = self._template(arguments)
    if not _BLOCK.search(template):
      return self._chat(turns, arguments), None

    def render(messages: list[dict[str, Any]], given: Mapping[str, Any]) -> Any:
      # As `apply_chat_template`, which gives the blocks as a mask of tokens only.
      rendered: Any = chat_template_utils.render_jinja_template(
        [messages],
        chat_template=template,
        return_assistant_tokens_mask=True,
        **self.tokenizer.special_tokens_map | given,
      )
      (text,), (blocks,) = rendered
      return text, tuple((int(start), int(end)) for start, end in blocks)

    return self._rendered(render, turns, arguments)

  def _template(self, arguments: Mapping[str, Any]) -> str:
    """The chat template of a row; a tokenizer may have another for rows with tools.

    Raises:
      ValueError: there is none.
    """
    if self.template.chat_template is not None:
      return self.template.chat_template
    if self.tokenizer.chat_template is None:
      raise ValueError(
        "tokenizer: the data contain messages, but it has no chat template; name a "
        "file of one (Template.chat_template: --data.template.chat-template "
        "FILE.jinja), set tokenizer.chat_template, or give plain text"
      )
    return self.tokenizer.get_chat_template(tools=arguments.get("tools"))

  def _rendered(
    self,
    render: Callable[[list[dict[str, Any]], Mapping[str, Any]], Any],
    turns: Sequence[Turn],
    arguments: Mapping[str, Any],
  ) -> Any:
    """Calls a renderer with messages and the template's arguments."""
    messages = [
      {"role": turn.role}
      | ({} if turn.content is None else {"content": turn.content})
      | dict(turn.other)
      for turn in turns
    ]
    try:
      return render(
        self._marked(messages), self.template.arguments | self._marked(arguments)
      )
    except UnusableRecord:
      raise
    except ImportError:  # of Jinja
      raise
    except jinja2.TemplateSyntaxError as error:
      raise ValueError(
        f"the chat template cannot be parsed: line {error.lineno}: {error.message}; "
        "mend Template.chat_template, or the tokenizer's"
      ) from error
    except Exception as error:  # a template may fail in any way
      shown = " ".join(f"{type(error).__name__}: {error}".split())[:300]
      raise UnusableRecord(
        "refused by the chat template",
        f"{shown}; change the row's messages to what the template takes, or name "
        "another (Template.chat_template)",
      ) from error

  def _same(self, text, other, arguments, fewer) -> bool:
    """Whether two conversations are rendered alike; False where one is refused."""
    try:
      return self._chat(text, arguments) == self._chat(other, fewer)
    except UnusableRecord:
      return False


def _trained(prompt: Sequence[Turn], completion: Sequence[Turn]) -> tuple[Turn, ...]:
  """The prompt's turns, and those of a completion up to the last that carries loss."""
  last = max((n for n, turn in enumerate(completion) if turn.loss), default=-1)
  return (*prompt, *completion[: last + 1])


def _without(turns: Sequence[Turn], key: str) -> tuple[Turn, ...]:
  return tuple(
    dataclasses.replace(turn, other={k: x for k, x in turn.other.items() if k != key})
    for turn in turns
  )
