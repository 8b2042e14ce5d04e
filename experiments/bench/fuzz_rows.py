"""Mutates rows of every kind, and reads, renders, tokenises and audits them.

Command: python -m experiments.bench.fuzz_rows [--rows 20000] [--seed 0]
Each row must be kept or become a named bad row; a text of a used column or message that
is missing from what the model sees must be counted by the audit.
Prints a table: rows read, kept and dropped by problem, for each kind and template.
"""

import argparse
import copy
import json
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xpo_jax.data import audit, records, sources, synthetic_reviews
from xpo_jax.data.render import Renderer, Template
from xpo_jax.data.tokenise import Limits

_CHATML = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
  "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_STRICT = (
  "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
  "{{ raise_exception('no system') }}{% endif %}{% for m in messages %}"
  "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
  "{{ raise_exception('roles must alternate') }}{% endif %}"
  "{{ m['role'] + ': ' + m['content'] | trim + '\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
_THINKING = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n"
  "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
  "{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}"
  "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
  "{% endif %}"
)
TEMPLATES = {"chatml": _CHATML, "strict": _STRICT, "thinking": _THINKING}


def _messages(text: str, role: str = "user", **more: Any) -> list[dict[str, Any]]:
  return [{"role": role, "content": text, **more}]


_REPLY = _messages(" good", "assistant", reasoning_content="because")
_CALL = _messages("a call", "assistant", tool_calls=[{"name": "f", "arguments": {}}])
KINDS: dict[str, dict[str, Any]] = {
  "pair": {"prompt": "the film", "chosen": " is good", "rejected": " is bad"},
  "pair of messages": {
    "prompt": _messages("the film"),
    "chosen": _REPLY,
    "rejected": _messages(" bad", "assistant"),
  },
  "pair without prompt": {"chosen": "the film was", "rejected": "the film is"},
  "ranked": {"prompt": "the film", "completions": [" a", " b"], "rewards": [1.0, 0]},
  "stepped": {"prompt": "the film", "completions": ["a", "b"], "labels": [True, 0.0]},
  "rated": {"prompt": "the film", "completion": " b", "label": True, "reward": 0.5},
  "rated messages": {
    "prompt": [*_messages("the film"), *_CALL, *_messages("x")],
    "completion": _REPLY,
    "label": False,
    "tools": [{"name": "f"}],
  },
  "demonstration": {"prompt": "the film", "completion": " is good"},
  "conversation": {"messages": [*_messages("the film"), *_REPLY]},
  "text": {"text": "the film was rather good after all"},
}
_STRINGS = (
  "",
  " ",
  "\n",
  "\x00",
  "\u2028\u2029\u0085",
  "\ud800",
  "\ufdd0",
  "<|im_end|>",
  "</s>",
  "<s>",
  "\U0001f600\u200d\ufe0f",
  "e\u0301" * 3,
  "\u202eabc",
  "{{ 7 * 7 }}{% raise %}",
  "\x1b[31m",
  "x" * 5000,
)
_NUMBERS = (
  0,
  -1,
  10**400,
  1e39,
  -1e308,
  float("nan"),
  float("inf"),
  True,
  False,
  2,
  0.5,
)
_ROLES = ("system", "assistant", "user", "tool", "", None, 3, "<|im_end|>")


class Table(NamedTuple):
  """What became of rows.

  Attributes:
    read, kept, dropped: numbers of rows.
    problems: dropped rows by problem.
    counted: what the audit's notes say of the rows kept.
    unnamed: exceptions that are no bad rows, and problems without a name.
    lost: rows kept of which a text is missing and nothing says so.
  """

  read: int
  kept: int
  dropped: int
  problems: Counter[str]
  counted: list[str]
  unnamed: list[str]
  lost: list[str]


def _deep(rng: random.Random) -> Any:
  value: Any = "x"
  for _ in range(rng.choice((3, 50, 200))):
    value = [value] if rng.random() < 0.5 else {"a": value}
  return value


def _value(rng: random.Random) -> Any:
  make = (
    lambda: rng.choice(_STRINGS),
    lambda: rng.choice(_NUMBERS),
    lambda: None,
    lambda: [],
    dict,
    lambda: [rng.choice(_STRINGS), rng.choice(_NUMBERS)],
    lambda: _messages(rng.choice(_STRINGS), rng.choice(_ROLES)),
    lambda: [{"type": "text", "text": rng.choice(_STRINGS)}],
    lambda: [{"type": "image", "url": "x"}],
    lambda: _deep(rng),
  )
  return rng.choice(make)()


def _places(value: Any, path: tuple = ()) -> list[tuple]:
  """Paths of all values within a row."""
  found = [path] if path else []
  items = (
    value.items()
    if isinstance(value, dict)
    else enumerate(value)
    if isinstance(value, list)
    else ()
  )
  for key, item in items:
    found += _places(item, (*path, key))
  return found


def mutate(row: dict[str, Any], rng: random.Random) -> dict[str, Any]:
  """A copy of a row with up to three changes of value, shape, key or text."""
  row = copy.deepcopy(row)
  for _ in range(rng.randint(0, 3)):
    *path, key = rng.choice(_places(row))
    holder: Any = row
    for step in path:
      holder = holder[step]
    change = rng.choice(("value", "remove", "text", "role", "more", "repeat"))
    if change == "remove" and isinstance(holder, dict):
      del holder[key]
    elif change == "text" and isinstance(holder[key], str):
      holder[key] += rng.choice(_STRINGS)
    elif change == "role" and isinstance(holder, dict) and "role" in holder:
      holder["role"] = rng.choice(_ROLES)
    elif change == "more" and isinstance(holder, dict):
      name = rng.choice(
        ("name", "tools", "documents", "id", "system", "weight", "loss")
      )
      holder[name] = _value(rng)
    elif change == "repeat" and isinstance(holder, list):
      holder.append(copy.deepcopy(holder[key]))
    else:
      holder[key] = _value(rng)
    if not _places(row):
      break
  return row


def _lines(rows: list[dict[str, Any]], rng: random.Random) -> list[bytes]:
  """Rows as lines of JSON; a few are damaged as text."""
  lines = []
  for row in rows:
    line = json.dumps(row, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.005:  # deeper than any parser goes
      line = line.replace(":", ": " + "[" * 20_000, 1)
    raw = line.encode("utf-8", "surrogatepass")
    if rng.random() < 0.02:
      at = rng.randrange(len(raw))
      raw = raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]
    elif rng.random() < 0.02:
      raw = raw[: rng.randrange(1, len(raw))]
    raw = raw.replace(b"\n", b" ")
    lines.append(raw if raw.strip() else b"{}")
  return lines


def _texts(record: records.Record, unread: list[str]) -> list[str]:
  """Texts that the model must see: prompts, completions up to the last turn with loss,
  and what their messages hold beside, but for keys that are counted as unread."""
  texts = []
  for text in (record.prompt, *records.completions(record)):
    if isinstance(text, str):
      texts.append(text)
      continue
    last = max((i for i, turn in enumerate(text) if turn.loss), default=len(text) - 1)
    texts += [turn.content or "" for turn in text[: last + 1]]
    texts += [
      value
      for turn in text[: last + 1]
      for key, value in turn.other.items()
      if isinstance(value, str) and f"{key} of messages" not in unread
    ]
  return [text.strip() for text in texts if text.strip()]


def run(kind: str, rows: int, generator: np.random.Generator) -> Table:
  """Mutates rows of a kind and takes them through reading, templates and audit.

  Args:
    kind: of `KINDS`.
    rows: number of rows, spread over the templates.
    generator: of the mutations.
  """
  rng = random.Random(int(generator.integers(2**32)))
  tokenizer = synthetic_reviews.train_bpe(["the film was good, not bad"], 300)
  tokenizer.add_special_tokens(
    {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
  )
  total = Table(0, 0, 0, Counter(), [], [], [])
  share = -(-rows // len(TEMPLATES))
  for number, template in enumerate(TEMPLATES.values()):
    tokenizer.chat_template = template
    count = min(share, rows - number * share)
    table = _through(kind, count, tokenizer, rng)
    total = Table(*(a + b for a, b in zip(total, table, strict=True)))
  return total


def _through(kind: str, count: int, tokenizer: Any, rng: random.Random) -> Table:
  rows = [mutate(KINDS[kind], rng) for _ in range(count - 1)] + [KINDS[kind]]
  unnamed, lost = [], []
  reading = sources.Reading(
    kind={"pair of messages": "pair", "pair without prompt": "pair"}.get(
      kind, "rated" if kind == "rated messages" else kind
    ),
    prompt_words=2,
  )
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "rows.jsonl"
    path.write_bytes(b"\n".join(_lines(rows, rng)) + b"\n")
    try:
      loaded = sources.read_jsonl(path, reading)
      prepared = audit.prepare(
        loaded,
        tokenizer,
        fractions={"train": 1.0},
        limits=Limits(64, 32, "truncate"),
        bad_rows="drop",
        bad_rows_file=Path(folder) / "bad_rows.jsonl",
      )
    except Exception as error:
      unnamed.append(f"{type(error).__name__}: {error}"[:300])
      return Table(count, 0, 0, Counter(), [], unnamed, lost)
    listed = (Path(folder) / "bad_rows.jsonl").read_text("utf-8").splitlines()
  counts = prepared.audit
  if len(listed) != sum(counts.dropped.values()):
    unnamed.append(f"{len(listed)} lines list {sum(counts.dropped.values())} rows")
  unnamed += [
    f"{one.uid}: {one.problem}: {one.detail}"
    for one in counts.bad
    if not one.problem or not one.detail or one.problem == "cannot be read"
  ]
  renderer = Renderer(tokenizer, Template())
  examples = zip(prepared.records["train"], prepared.examples["train"], strict=True)
  for record, example in examples:
    whole = len(example.prompt) < 64 and all(len(y) < 32 for y in example.completions)
    seen = "".join(
      tokenizer.decode(list(x)) for x in (example.prompt, *example.completions)
    )
    unread = renderer.unread(record)
    missing = [text for text in _texts(record, unread) if text not in seen]
    if whole and missing:
      lost.append(f"{record.uid}: {missing[0]!r} is not in {seen!r}"[:300])
  return Table(
    counts.rows,
    counts.kept,
    sum(counts.dropped.values()),
    Counter(counts.dropped),
    audit.notes(counts.summary()),
    unnamed,
    lost,
  )


def main() -> int:
  """Runs all kinds and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rows", type=int, default=20_000)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  generator, failed = np.random.default_rng(args.seed), 0
  for kind in KINDS:
    table = run(kind, args.rows // len(KINDS), generator)
    listed = ", ".join(f"{name} {n}" for name, n in table.problems.most_common())
    print(
      f"{kind}: read {table.read:,} = kept {table.kept:,} + dropped {table.dropped:,}; "
      f"unnamed {len(table.unnamed)}, lost {len(table.lost)}\n  dropped: {listed}"
    )
    for line in (*table.unnamed[:5], *table.lost[:5]):
      print(f"  FAULT {line}")
    failed += len(table.unnamed) + len(table.lost)
    failed += table.read != table.kept + table.dropped
  return int(failed > 0)


if __name__ == "__main__":
  raise SystemExit(main())
