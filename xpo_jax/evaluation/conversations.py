"""Answers the conversations of a file: JSON lines in, JSON lines out.

A line has `messages`, or a `prompt` of messages or of one text, which is a message of
the user; `tools`, `documents` and `chat_template_kwargs` reach the chat template, as in
training data. What is written is the same line with the reply at the end of `messages`:
it can be gone on with, and trained on.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xpo_jax.data import records, sources
from xpo_jax.data.records import Prompt
from xpo_jax.data.sources import Reading
from xpo_jax.evaluation.evaluate_run import Sampler
from xpo_jax.models.generation_config import GenerationConfig

_BATCH = 32  # conversations decoded at once
_FOR_TEMPLATE = ("tools", "documents", "chat_template_kwargs")


class Conversation(NamedTuple):
  """A conversation to answer.

  Attributes:
    line: of the file, with `messages` in place of `prompt`.
    prompt: its messages.
  """

  line: dict[str, Any]
  prompt: Prompt


def read(path: str | Path) -> list[Conversation]:
  """Reads the conversations of a file.

  Raises:
    BadRecords: a line without messages, or whose last message is the assistant's.
    ValueError: an empty file.
  """
  rows = sources.json_lines(Path(path))
  if not rows:
    raise ValueError(f"{path}: the file is empty; it needs a conversation per line")
  conversations, bad = [], []
  for uid, row in rows:
    try:
      conversations.append(_conversation(uid, row))
    except records.UnusableRecord as error:
      bad.append(records.BadRecord(uid, error.problem, error.detail, row))
  if bad:
    raise records.BadRecords(bad)
  return conversations


def _conversation(uid: str, row: Any) -> Conversation:
  if isinstance(row, records.BadRecord):
    raise records.UnusableRecord(row.problem, row.detail)
  if not isinstance(row, dict):
    raise records.UnusableRecord("not a JSON object", f"got a {type(row).__name__}")
  line = dict(row)
  messages = line.pop("prompt", None) if "messages" not in line else line["messages"]
  if isinstance(messages, str):
    messages = [{"role": "user", "content": messages}]
  line["messages"] = messages
  columns = {name: row[name] for name in _FOR_TEMPLATE if name in row}
  loaded = sources.from_dicts(
    [{"id": uid, "prompt": messages} | columns], uid, Reading(kind="prompt")
  )
  for bad in loaded.bad:
    raise records.UnusableRecord(bad.problem, bad.detail)
  (prompt,) = loaded.records
  if prompt.prompt and prompt.prompt[-1].role == "assistant":
    raise records.UnusableRecord(
      "answered already",
      "the last message is the assistant's; end with one that is to be answered",
    )
  return Conversation(line, prompt)


def answer(
  sample: Sampler,
  conversations: Sequence[Conversation],
  config: GenerationConfig,
  seed: int,
) -> list[str]:
  """Samples replies.

  Args:
    sample: of `evaluate_run.sampler`.
    conversations: see `read`.
    config: how replies are drawn; of several to a conversation, each makes a line.
    seed: of the draws.

  Returns:
    The lines with replies, as JSON.
  """
  lines = []
  for start in range(0, len(conversations), _BATCH):
    part = conversations[start : start + _BATCH]
    drawn = sample([one.prompt for one in part], config, seed + start)
    for one, texts in zip(part, drawn, strict=True):
      for text in texts:
        reply = {"role": "assistant", "content": str(text)}
        line = one.line | {"messages": [*one.line["messages"], reply]}
        lines.append(json.dumps(line, ensure_ascii=False))
  return lines
