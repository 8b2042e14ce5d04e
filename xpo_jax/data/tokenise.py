"""Tokenises records: one template, one boundary check, one truncation rule.

Prompt and completion are tokenised together, and the prompt's own tokens must be a
prefix of the result; a record where tokens merge across the boundary is a bad record.
The sequence starts with one BOS, where the tokenizer has one, and every completion ends
with EOS, unless it was truncated.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from xpo_jax.data import records
from xpo_jax.data.records import BadRecord, Turn, UnusableRecord
from xpo_jax.types import Layout


@dataclasses.dataclass(frozen=True)
class Example:
  """One tokenised prompt group: a prompt and its K completions.

  Attributes:
    uid: of the record (file and line, or its own id).
    prompt: int32 [P], BOS included where the tokenizer has one.
    completions: K arrays int32 [T_k], EOS included unless truncated.
    layout: the role of each completion.
    masks: K boolean arrays [T_k], True on tokens with loss; None: all tokens.
    fields: data columns, each float32 [K]: "reward", "desirable".
    token_fields: data columns with a value per token, each K arrays float32 [T_k].
  """

  uid: str
  prompt: np.ndarray
  completions: tuple[np.ndarray, ...]
  layout: Layout
  masks: tuple[np.ndarray, ...] | None = None
  fields: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  token_fields: Mapping[str, tuple[np.ndarray, ...]] = dataclasses.field(
    default_factory=dict
  )

  @property
  def tokens(self) -> int:
    """Tokens of the group in a packed row: the prompt once, each completion once."""
    return len(self.prompt) + sum(map(len, self.completions))


@dataclasses.dataclass(frozen=True)
class Template:
  """How a record is rendered as text.

  Conversations are rendered by the tokenizer's chat template. Plain text is
  `before + prompt + between + completion`, by default without separators.

  Attributes:
    before: prefix of a plain prompt.
    between: separator of a plain prompt and its completion; part of the prompt.
  """

  before: str = ""
  between: str = ""


@dataclasses.dataclass(frozen=True)
class Limits:
  """Maximum lengths of a prompt and a completion, in tokens; None: unlimited.

  Too long a completion is cut at its end and loses its EOS. Too long a prompt makes a
  bad record, or with `long_prompt="truncate"` is cut at its start, after its BOS. Both
  are counted.

  Attributes:
    prompt: maximum number of prompt tokens, BOS included.
    completion: maximum number of completion tokens, EOS included.
    long_prompt: "error" or "truncate".
  """

  prompt: int | None = None
  completion: int | None = None
  long_prompt: Literal["error", "truncate"] = "error"

  def __post_init__(self):
    if self.long_prompt not in ("error", "truncate"):
      raise ValueError(
        f"long_prompt: {self.long_prompt!r} is none of ['error', 'truncate']"
      )
    for name, least in (("prompt", 2), ("completion", 1)):
      limit = {"prompt": self.prompt, "completion": self.completion}[name]
      if limit is not None and limit < least:
        raise ValueError(
          f"limits.{name}: {limit} tokens; it must be at least {least}, or None"
        )


@dataclasses.dataclass(frozen=True)
class Tokenised:
  """The examples of the valid records, and the records that are not.

  Attributes:
    examples: one per valid record, in order.
    bad: the problems of the other records.
    dropped: the other records.
    truncated_prompts: number of prompts that were truncated.
    truncated_completions: number of completions that were truncated.
  """

  examples: tuple[Example, ...]
  bad: tuple[BadRecord, ...]
  dropped: tuple[records.Record, ...]
  truncated_prompts: int
  truncated_completions: int


def tokenise(
  data: Sequence[records.Record],
  tokenizer: PreTrainedTokenizerBase,
  template: Template = Template(),
  *,
  limits: Limits = Limits(),
) -> list[Example]:
  """Tokenises records, all of which must be valid.

  Args:
    data: records with completions (for bare prompts see `tokenise_prompts`).
    tokenizer: a Hugging Face tokenizer; must have an EOS.
    template: how a record is rendered as text.
    limits: maximum lengths.

  Returns:
    An example per record, in order.

  Raises:
    BadRecords: a record is empty, has equal completions, is too long, or its prompt's
      tokens are not a prefix of those of prompt and completion.
    ValueError: the tokenizer has no EOS, or no chat template where one is needed.
  """
  tokenised = tokenise_valid(data, tokenizer, template, limits=limits)
  if tokenised.bad:
    raise records.BadRecords(tokenised.bad)
  return list(tokenised.examples)


def tokenise_valid(
  data: Sequence[records.Record],
  tokenizer: PreTrainedTokenizerBase,
  template: Template = Template(),
  *,
  limits: Limits = Limits(),
) -> Tokenised:
  """Tokenises the valid records and returns the others with their problems."""
  if tokenizer.eos_token_id is None:
    raise ValueError(
      "tokenizer: it has no EOS token to end completions with; set tokenizer.eos_token"
    )
  bad = []
  dropped = []
  valid = []
  prefixes = []
  for record in data:
    problem = records.find_problem(record)
    if problem is None and isinstance(record, records.Prompt):
      problem = BadRecord(
        record.uid, "no completion", "a bare prompt has nothing to train on"
      )
    if problem is not None:
      bad.append(dataclasses.replace(problem, row=records.as_dict(record)))
      dropped.append(record)
      continue
    valid.append(record)
    if isinstance(record, records.Stepped):
      prefixes.append(_render_steps(record, tokenizer, template))
      continue
    prefixes += [
      _render(record.prompt, completion, tokenizer, template)
      for completion in records.completions(record)
    ]
  ids = iter(_encode([text for each in prefixes for text in each.texts], tokenizer))
  encoded = iter([(each, [next(ids) for _ in each.texts]) for each in prefixes])
  examples = []
  truncated = np.zeros(2, np.int64)
  for record in valid:
    completions = [next(encoded) for _ in records.completions(record)]
    try:
      example, truncated_here = _example(record, completions, tokenizer, limits)
    except UnusableRecord as error:
      bad.append(_bad_record(record, error))
      dropped.append(record)
      continue
    examples.append(example)
    truncated += truncated_here
  truncated_prompts, truncated_completions = truncated.tolist()
  return Tokenised(
    tuple(examples),
    tuple(bad),
    tuple(dropped),
    truncated_prompts=truncated_prompts,
    truncated_completions=truncated_completions,
  )


def tokenise_prompts(
  data: Sequence[records.Record],
  tokenizer: PreTrainedTokenizerBase,
  template: Template = Template(),
  *,
  limits: Limits = Limits(),
) -> list[np.ndarray]:
  """Tokenises the prompt of each record, to sample from: int32, BOS first.

  Raises:
    BadRecords: a prompt has no tokens, or too many.
  """
  texts = [_prompt_text(record.prompt, tokenizer, template) for record in data]
  prompts = []
  bad = []
  for record, ids in zip(data, _encode(texts, tokenizer), strict=True):
    try:
      prompts.append(_limit_prompt(ids, tokenizer, limits)[0])
    except UnusableRecord as error:
      bad.append(_bad_record(record, error))
  if bad:
    raise records.BadRecords(bad)
  return prompts


def _bad_record(record: records.Record, error: UnusableRecord) -> BadRecord:
  return BadRecord(record.uid, error.problem, error.detail, records.as_dict(record))


@dataclasses.dataclass(frozen=True)
class _Prefixes:
  """Prefixes of one rendered text; the first is the prompt, the last the whole text.

  `texts[1:-1]` come in pairs, which end where a turn with loss starts and ends.
  """

  texts: tuple[str, ...]


def _render(prompt, completion, tokenizer, template: Template) -> _Prefixes:
  start = _prompt_text(prompt, tokenizer, template)
  if isinstance(completion, str):
    return _Prefixes((start, start + completion))
  texts = [start]
  for number, turn in enumerate(completion):
    if turn.loss:
      before = (*prompt, *completion[:number])
      texts.append(_chat(before, tokenizer, generate=True))
      texts.append(_chat((*before, turn), tokenizer).rstrip())
  last = max(number for number, turn in enumerate(completion) if turn.loss)
  whole = _chat((*prompt, *completion[: last + 1]), tokenizer).rstrip()
  return _Prefixes((*texts, whole))


def _render_steps(record: records.Stepped, tokenizer, template: Template) -> _Prefixes:
  """Returns the prompt, then a prefix that ends with each step."""
  start = _prompt_text(record.prompt, tokenizer, template)
  ends = range(1, len(record.steps) + 1)
  return _Prefixes((start, *(start + "\n".join(record.steps[:n]) for n in ends)))


def _prompt_text(prompt, tokenizer, template: Template) -> str:
  if isinstance(prompt, str):
    return template.before + prompt + template.between
  return _chat(prompt, tokenizer, generate=True)


def _chat(turns: Sequence[Turn], tokenizer, generate: bool = False) -> str:
  if tokenizer.chat_template is None:
    raise ValueError(
      "tokenizer: the data contain messages, but it has no chat template; set "
      "tokenizer.chat_template, or give plain text"
    )
  messages = [{"role": turn.role, "content": turn.content} for turn in turns]
  return tokenizer.apply_chat_template(
    messages, tokenize=False, add_generation_prompt=generate
  )


def _encode(texts: Sequence[str], tokenizer) -> list[np.ndarray]:
  """Encodes texts with one leading BOS, which a template may already have added."""
  if not texts:
    return []
  bos = tokenizer.bos_token_id
  unique = list(dict.fromkeys(texts))  # a prompt is repeated for each completion
  encoded = tokenizer(unique, add_special_tokens=False, return_attention_mask=False)
  ids_of = {
    text: np.array(ids if bos is None or ids[:1] == [bos] else [bos, *ids], np.int32)
    for text, ids in zip(unique, encoded["input_ids"], strict=True)
  }
  return [ids_of[text] for text in texts]


def _example(record, encoded, tokenizer, limits: Limits) -> tuple[Example, np.ndarray]:
  """Builds an example; also returns how many prompts and completions it truncated."""
  prompt = encoded[0][1][0]
  stepped = isinstance(record, records.Stepped)
  completions = []
  masks = []
  truncated_completions = 0
  for prefixes, ids in encoded:
    whole = ids[-1]
    for text, part in zip(prefixes.texts[:-1], ids[:-1], strict=True):
      _check_prefix(text, part, prefixes.texts[-1], whole, tokenizer)
    loss = _loss_mask([ids[0], whole] if stepped else ids)
    if whole[-1] != tokenizer.eos_token_id:
      whole = np.append(whole, np.int32(tokenizer.eos_token_id))
      loss = np.append(loss, True)
    completion, mask = whole[len(prompt) :], loss[len(prompt) :]
    if limits.completion is not None and len(completion) > limits.completion:
      completion, mask = completion[: limits.completion], mask[: limits.completion]
      truncated_completions += 1
    if not mask.any():
      raise UnusableRecord(
        "empty completion",
        f"the first {limits.completion} completion tokens have no loss; raise "
        "limits.completion",
      )
    completions.append(completion)
    masks.append(mask)
  prompt, truncated_prompt = _limit_prompt(prompt, tokenizer, limits)
  token_fields = {}
  if stepped:
    token_fields = _step_labels(record, encoded[0][1], completions[0])
  example = Example(
    uid=record.uid,
    prompt=prompt,
    completions=tuple(completions),
    layout=_LAYOUTS[type(record)],
    masks=None if all(mask.all() for mask in masks) else tuple(masks),
    fields=_fields(record),
    token_fields=token_fields,
  )
  return example, np.array([truncated_prompt, truncated_completions])


def _step_labels(record: records.Stepped, ids, completion) -> dict:
  """Puts each step's label on the token after it, a line break or EOS; 0 elsewhere."""
  label_T = np.zeros(len(completion), np.float32)
  for part, label in zip(ids[1:], record.labels, strict=True):
    if len(part) - len(ids[0]) < len(completion):  # else it was truncated
      label_T[len(part) - len(ids[0])] = label
  return {"reward": (label_T,)}


def _check_prefix(text: str, part, whole_text: str, whole, tokenizer) -> None:
  if np.array_equal(part, whole[: len(part)]):
    return
  if not whole_text.startswith(text):
    raise UnusableRecord(
      "template rewrites the prompt",
      f"the prompt ends with {text[-30:]!r}, but with a completion the template gives "
      f"{whole_text[: len(text)][-30:]!r} instead; use a template that keeps it",
    )
  joined = whole[: len(part)]
  first = int((part[: len(joined)] != joined).argmax()) if len(joined) else 0
  raise UnusableRecord(
    "boundary",
    f"tokens merge across the end of the prompt: {text[-20:]!r} + "
    f"{whole_text[len(text) :][:20]!r} becomes "
    f"{tokenizer.decode(whole[first : first + 3])!r}; end the prompt without a space "
    "and start the completion with one, or set a separator (template.between)",
  )


def _loss_mask(ids: Sequence[np.ndarray]) -> np.ndarray:
  """Masks everything after the prompt, or the turns between pairs of prefixes."""
  loss = np.zeros(len(ids[-1]), bool)
  ends = [len(part) for part in ids[1:-1]]
  if not ends:
    loss[len(ids[0]) :] = True
  for start, end in zip(ends[::2], ends[1::2], strict=True):
    loss[start:end] = True
  return loss


def _limit_prompt(prompt, tokenizer, limits: Limits) -> tuple[np.ndarray, bool]:
  if not len(prompt):
    raise UnusableRecord(
      "empty prompt", "it has no tokens, and the tokenizer has no BOS; set bos_token"
    )
  if limits.prompt is None or len(prompt) <= limits.prompt:
    return prompt, False
  if limits.long_prompt == "error":
    raise UnusableRecord(
      "over-long prompt",
      f"{len(prompt)} tokens, the limit is {limits.prompt}; raise limits.prompt, or "
      'set long_prompt="truncate" to keep its end',
    )
  if prompt[0] == tokenizer.bos_token_id:
    return np.append(prompt[:1], prompt[1 - limits.prompt :]), True
  return prompt[-limits.prompt :], True


_LAYOUTS = {
  records.Demonstration: Layout.DEMO,
  records.Pair: Layout.PAIR,
  records.Rated: Layout.RATED,
  records.Stepped: Layout.RATED,
  records.Ranked: Layout.RANKED,
}


def _fields(record: records.Record) -> dict[str, np.ndarray]:
  match record:
    case records.Ranked():
      return {"reward": np.array(record.rewards, np.float32)}
    case records.Pair() if record.probability is not None:
      p = record.probability
      return {"reward": np.array([p, 1 - p], np.float32)}
    case records.Rated():
      columns = {"desirable": record.desirable, "reward": record.reward}
      return {
        name: np.array([value], np.float32)
        for name, value in columns.items()
        if value is not None
      }
  return {}


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
  """Decodes token ids to text, without special tokens."""
  return tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)
