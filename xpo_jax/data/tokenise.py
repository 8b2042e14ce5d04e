"""Tokenises records: one template, one boundary check, one truncation rule.

Prompt and completion are tokenised together, and the prompt's own tokens must be a
prefix of the result; a record where tokens merge across the boundary is a bad record.
A plain text starts with BOS where the tokenizer by itself adds one, a conversation
where the chat template writes it; every completion ends with EOS, unless it was
truncated.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from xpo_jax.data import records
from xpo_jax.data.records import BadRecord, Record, UnusableRecord
from xpo_jax.data.render import Prefixes, Renderer, Template, Unmarked
from xpo_jax.types import Layout


@dataclasses.dataclass(frozen=True)
class Example:
  """One tokenised prompt group: a prompt and its K completions.

  Attributes:
    uid: of the record (file and line, or its own id).
    prompt: int32 [P], BOS included where the tokenizer or the template adds one.
    completions: K arrays int32 [T_k], EOS included unless truncated.
    layout: the role of each completion.
    masks: K boolean arrays [T_k], True on tokens with loss; None: all tokens.
    fields: data columns, each float32 [K]: "reward", "desirable", "margin".
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
class Counts:
  """Numbers of records that lost or changed something on the way to tokens.

  Attributes:
    truncated_prompts: prompts cut at their start.
    truncated_completions: completions cut at their end.
    trailing_turns: records with turns after the last that carries loss; these turns are
      left out.
    control_tokens: records whose text spells a special token of the tokenizer; see
      `render.Template.control_tokens`.
    unread: keys of messages and arguments of the template that the template does not
      use: without them the text is the same.
  """

  truncated_prompts: int = 0
  truncated_completions: int = 0
  trailing_turns: int = 0
  control_tokens: int = 0
  unread: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def __add__(self, other: "Counts") -> "Counts":
    """The counts over the records of both."""
    return Counts(
      self.truncated_prompts + other.truncated_prompts,
      self.truncated_completions + other.truncated_completions,
      self.trailing_turns + other.trailing_turns,
      self.control_tokens + other.control_tokens,
      dict(sorted((Counter(self.unread) + Counter(other.unread)).items())),
    )


@dataclasses.dataclass(frozen=True)
class Lengths:
  """Numbers of prompts and of completions by their length in tokens.

  Attributes:
    prompt: length -> number of prompts, one of each record.
    completion: length -> number of completions.
  """

  prompt: Counter[int]
  completion: Counter[int]


@dataclasses.dataclass(frozen=True)
class Tokenised:
  """The examples of the valid records, and the records that are not.

  Attributes:
    examples: one per valid record, in order.
    bad: the problems of the other records.
    dropped: the other records.
    counts: over the valid records.
    lengths: of all records that were encoded, before the limits.
  """

  examples: tuple[Example, ...]
  bad: tuple[BadRecord, ...]
  dropped: tuple[Record, ...]
  counts: Counts
  lengths: Lengths


@dataclasses.dataclass(frozen=True)
class TokenisedPrompts:
  """The prompts of valid records, and the records that are not.

  Attributes:
    ids: int32, one per valid record, in order.
    records: the valid records.
    bad: the problems of the other records.
    counts: over the valid records.
    lengths: of all records that were encoded, before the limit.
  """

  ids: tuple[np.ndarray, ...]
  records: tuple[Record, ...]
  bad: tuple[BadRecord, ...]
  counts: Counts
  lengths: Lengths


def tokenise(
  data: Sequence[Record],
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
  data: Sequence[Record],
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
  renderer = Renderer(tokenizer, template)
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
    rendered = []
    if problem is None:
      try:
        rendered = _render(record, renderer)
      except UnusableRecord as error:
        problem = BadRecord(record.uid, error.problem, error.detail)
    if problem is not None:
      bad.append(dataclasses.replace(problem, row=records.as_dict(record)))
      dropped.append(record)
      continue
    valid.append(record)
    prefixes.append(rendered)
  texts = [(x, one.chat) for each in prefixes for one in each for x in one.texts]
  ids = iter(_encode(texts, renderer))
  encoded = [[[next(ids) for _ in one.texts] for one in each] for each in prefixes]
  lengths = _lengths(encoded, tokenizer.eos_token_id)
  examples, kept = [], []
  truncated = np.zeros(2, np.int64)
  for record, each, ids_of in zip(valid, prefixes, encoded, strict=True):
    completions = list(zip(each, ids_of, strict=True))
    try:
      example, truncated_here = _example(record, completions, renderer, limits)
    except UnusableRecord as error:
      bad.append(_bad_record(record, error))
      dropped.append(record)
      continue
    examples.append(example)
    kept.append(record)
    truncated += truncated_here
  truncated_prompts, truncated_completions = truncated.tolist()
  counts = dataclasses.replace(
    _counts(kept, renderer),
    truncated_prompts=truncated_prompts,
    truncated_completions=truncated_completions,
  )
  return Tokenised(tuple(examples), tuple(bad), tuple(dropped), counts, lengths)


def _lengths(encoded: Sequence[Sequence[Sequence[np.ndarray]]], eos: int) -> Lengths:
  """Lengths of encoded records, with the EOS that a completion gets."""
  ends = [(len(ids[0]), ids[-1]) for each in encoded for ids in each]
  return Lengths(
    Counter(len(each[0][0]) for each in encoded),
    Counter(len(whole) - start + int(whole[-1] != eos) for start, whole in ends),
  )


def _render(record: Record, renderer: Renderer) -> list[Prefixes]:
  if isinstance(record, records.Stepped):
    return [renderer.steps(record)]
  return [renderer.completion(record, text) for text in records.completions(record)]


def _counts(data: Sequence[Record], renderer: Renderer) -> Counts:
  unread = Counter(name for record in data for name in renderer.unread(record))
  return Counts(
    trailing_turns=sum(map(_has_trailing_turns, data)),
    control_tokens=sum(map(renderer.spells_control_token, data)),
    unread=dict(sorted(unread.items())),
  )


def _has_trailing_turns(record: Record) -> bool:
  """Whether a completion has turns after the last that carries loss."""
  return any(
    not isinstance(text, str) and not text[-1].loss
    for text in records.completions(record)
  )


def tokenise_prompts(
  data: Sequence[Record],
  tokenizer: PreTrainedTokenizerBase,
  template: Template = Template(),
  *,
  limits: Limits = Limits(),
) -> list[np.ndarray]:
  """Tokenises the prompt of each record, to sample from: int32.

  Raises:
    BadRecords: a prompt that the template refuses, has no tokens, or too many.
  """
  tokenised = tokenise_valid_prompts(data, tokenizer, template, limits=limits)
  if tokenised.bad:
    raise records.BadRecords(tokenised.bad)
  return list(tokenised.ids)


def tokenise_valid_prompts(
  data: Sequence[Record],
  tokenizer: PreTrainedTokenizerBase,
  template: Template = Template(),
  *,
  limits: Limits = Limits(),
) -> TokenisedPrompts:
  """Tokenises the prompts of valid records, and returns the others' problems."""
  renderer = Renderer(tokenizer, template)
  valid, rendered, bad = _for_each(data, renderer.prompt)
  texts = [(one.texts[-1], one.chat) for one in rendered]
  encoded_texts = _encode(texts, renderer)
  ids, kept, truncated_prompts = [], [], 0
  for record, encoded in zip(valid, encoded_texts, strict=True):
    try:
      prompt, truncated = _limit_prompt(encoded, tokenizer, limits)
    except UnusableRecord as error:
      bad.append(_bad_record(record, error))
      continue
    ids.append(prompt)
    kept.append(record)
    truncated_prompts += truncated
  counts = _counts(
    [
      records.Prompt(r.uid, r.prompt, template_arguments=r.template_arguments)
      for r in kept
    ],
    renderer,
  )
  counts = dataclasses.replace(counts, truncated_prompts=truncated_prompts)
  lengths = Lengths(Counter(map(len, encoded_texts)), Counter())
  return TokenisedPrompts(tuple(ids), tuple(kept), tuple(bad), counts, lengths)


def encode_answers(
  data: Sequence[records.Demonstration],
  tokenizer: PreTrainedTokenizerBase,
  template: Template = Template(),
) -> list[np.ndarray]:
  """Encodes prompts with their completions, as `tokenise` does but for a final EOS; an
  empty completion and one whose tokens merge with the prompt's are accepted.

  What the chat template writes after a message that was cut (`records.Cut`) is left
  out.

  Raises:
    BadRecords: the chat template refuses one.
  """
  renderer = Renderer(tokenizer, template)
  return _encode_each(data, renderer, lambda x: renderer.completion(x, x.completion))


def encode_conversations(
  data: Sequence[records.Demonstration], tokenizer: PreTrainedTokenizerBase
) -> list[np.ndarray]:
  """Encodes messages as transformers' `apply_chat_template` does: all that the template
  writes, and no EOS beside its own. A message that was cut ends as in `encode_answers`.

  Raises:
    BadRecords: the chat template refuses one.
  """
  renderer = Renderer(tokenizer, Template())
  return _encode_each(data, renderer, renderer.whole)


def _encode_each(
  data: Sequence[records.Demonstration],
  renderer: Renderer,
  render: Callable[[records.Demonstration], Prefixes],
) -> list[np.ndarray]:
  _, rendered, bad = _for_each(data, render)
  if bad:
    raise records.BadRecords(bad)
  texts = [
    (_without_end(one.texts, answer.completion), one.chat)
    for one, answer in zip(rendered, data, strict=True)
  ]
  return _encode(texts, renderer)


def _without_end(texts: Sequence[str], completion: records.Text) -> str:
  """A rendered text up to the end of its last message, where that was cut; of
  `Prefixes.texts`."""
  prompt, whole = texts[0], texts[-1]
  if isinstance(completion, str) or not records.is_cut(completion):
    return whole
  content = (completion[-1].content or "").strip()  # templates strip it
  if not content and len(completion) == 1:
    return prompt
  start = whole.rfind(content)
  return whole if start < 0 else whole[: start + len(content)]


def _for_each(
  data: Sequence[Any], render: Callable[[Any], Prefixes]
) -> tuple[list[Any], list[Prefixes], list[BadRecord]]:
  """Renders records: those that can be, their texts, and the others' problems."""
  valid, rendered, bad = [], [], []
  for record in data:
    try:
      rendered.append(render(record))
      valid.append(record)
    except UnusableRecord as error:
      bad.append(_bad_record(record, error))
  return valid, rendered, bad


def _bad_record(record: records.Record, error: UnusableRecord) -> BadRecord:
  return BadRecord(record.uid, error.problem, error.detail, records.as_dict(record))


def _encode(texts: Sequence[tuple[str, bool]], renderer: Renderer) -> list[np.ndarray]:
  """Encodes rendered texts, each with whether the chat template rendered it.

  A plain text starts with BOS where the tokenizer adds one by itself; a conversation
  where its template writes it.
  """
  if not texts:
    return []
  tokenizer = renderer.tokenizer
  bos = tokenizer.bos_token_id if adds_bos(tokenizer) else None
  unique = list(dict.fromkeys(texts))  # a prompt is repeated for each completion
  unmarked = [renderer.unmarked(text) for text, _ in unique]
  encoded = tokenizer(
    [one.text for one in unmarked],
    add_special_tokens=False,
    return_attention_mask=False,
  )["input_ids"]
  ids_of = {}
  for key, one, ids in zip(unique, unmarked, encoded, strict=True):
    if one.spelled:
      ids, _ = _encode_with_offsets(one, tokenizer)
    if bos is not None and not key[1] and ids[:1] != [bos]:
      ids = [bos, *ids]
    ids_of[key] = np.array(ids, np.int32)
  return [ids_of[text] for text in texts]


def adds_bos(tokenizer: Any) -> bool:
  """Whether the tokenizer by itself puts BOS before a text."""
  bos = tokenizer.bos_token_id
  return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def _encode_with_offsets(
  one: Unmarked, tokenizer: Any
) -> tuple[list[int], list[tuple[int, int]]]:
  """Encodes a text, the special tokens that the data spell as other text; returns the
  tokens, and where each starts and ends."""
  encoded = tokenizer(one.text, add_special_tokens=False, return_offsets_mapping=True)
  starts = {start for start, _ in one.spelled}
  special = set(tokenizer.all_special_ids) | {
    index for index, token in tokenizer.added_tokens_decoder.items() if token.special
  }
  ids: list[int] = []
  offsets: list[tuple[int, int]] = []
  for index, (start, end) in zip(
    encoded["input_ids"], encoded["offset_mapping"], strict=True
  ):
    # A special token that also takes the spaces beside it starts earlier.
    if index in special and starts.intersection(range(start, end)):
      text = one.text[start:end]
      ids += tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
        "input_ids"
      ]
    else:
      ids.append(index)
    offsets += [(start, end)] * (len(ids) - len(offsets))
  return ids, offsets


def _example(
  record: Record,
  encoded: Sequence[tuple[Prefixes, list[np.ndarray]]],
  renderer: Renderer,
  limits: Limits,
) -> tuple[Example, np.ndarray]:
  """Builds an example; also returns how many prompts and completions it truncated."""
  tokenizer = renderer.tokenizer
  prompt = encoded[0][1][0]
  stepped = isinstance(record, records.Stepped)
  completions = []
  masks = []
  truncated_completions = 0
  for prefixes, ids in encoded:
    whole = ids[-1]
    *starts, whole_text = (renderer.unmarked(text).text for text in prefixes.texts)
    for text, part in zip(starts, ids[:-1], strict=True):
      _check_prefix(text, part, whole_text, whole, tokenizer)
    loss = _loss_mask([ids[0], whole] if stepped else ids)
    if prefixes.blocks is not None:
      loss &= _in_blocks(prefixes, renderer)
    if whole[-1] != tokenizer.eos_token_id:
      whole = np.append(whole, np.int32(tokenizer.eos_token_id))
      loss = np.append(loss, True)
    completion, mask = whole[len(prompt) :], loss[len(prompt) :]
    if limits.completion is not None and len(completion) > limits.completion:
      completion, mask = completion[: limits.completion], mask[: limits.completion]
      truncated_completions += 1
    if not mask.any():
      first = "" if limits.completion is None else f"the first {limits.completion} "
      marked = (
        ""
        if prefixes.blocks is None
        else (
          ", or mark what the model writes by {% generation %} in the chat template"
        )
      )
      raise UnusableRecord(
        "empty completion",
        f"{first}completion tokens have no loss; raise limits.completion{marked}",
      )
    completions.append(completion)
    masks.append(mask)
  _check_different(record, completions, truncated_completions)
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


def _check_different(
  record: Record, completions: Sequence[np.ndarray], truncated: int
) -> None:
  """Refuses completions that are equal as tokens, where the labels say otherwise."""
  cut = " within limits.completion; raise it" if truncated else ""
  if isinstance(record, records.Pair) and np.array_equal(*completions):
    raise UnusableRecord(
      "identical chosen and rejected",
      f"both are the same {len(completions[0])} tokens{cut}: no preference is left",
    )
  if not isinstance(record, records.Ranked):
    return
  reward_of: dict[bytes, float] = {}
  for tokens, reward in zip(completions, record.rewards, strict=True):
    first = reward_of.setdefault(tokens.tobytes(), reward)
    if first != reward:
      raise UnusableRecord(
        "equal completions, different rewards",
        f"two completions are the same {len(tokens)} tokens{cut}, with rewards "
        f"{first:g} and {reward:g}",
      )


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
      f"{whole_text[: len(text)][-30:]!r} instead; use a template that keeps it "
      "(Template.chat_template)",
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


def _in_blocks(prefixes: Prefixes, renderer: Renderer) -> np.ndarray:
  """Masks the tokens of a whole text that overlap a block of the chat template."""
  marked = prefixes.texts[-1]
  _, offsets = _encode_with_offsets(renderer.unmarked(marked), renderer.tokenizer)
  start_N, end_N = np.array(offsets).reshape(-1, 2).T
  mask = np.zeros(len(start_N), bool)
  for block in prefixes.blocks:
    start, end = (len(renderer.unmarked(marked[:at]).text) for at in block)
    mask |= (start_N < end) & (end_N > start)
  return mask


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
    case records.Pair(probability=p, margin=m):
      columns = {
        "reward": None if p is None else (p, 1 - p),
        "margin": None if m is None else (m, 0),
      }
      return {
        name: np.array(pair, np.float32)
        for name, pair in columns.items()
        if pair is not None
      }
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
