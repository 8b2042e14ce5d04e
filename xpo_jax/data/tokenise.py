"""Records to tokens: one template, one boundary check, one truncation rule.

Prompt and completion are tokenised together, and the prompt's own tokens must be a
prefix of the result; a row where they are not is a bad row, never a silent merge. The
sequence starts with BOS once, where the tokenizer has one, and every completion ends
with EOS, unless it was truncated.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from xpo_jax.data import records
from xpo_jax.data.records import BadRow, Turn
from xpo_jax.types import Layout


@dataclasses.dataclass(frozen=True)
class Example:
  """One prompt group in tokens.

  Attributes:
    uid: names the record it came from (file and line, or its own id).
    prompt: int32 [P], BOS included where the tokenizer has one.
    completions: K arrays int32 [T_k], EOS included unless truncated.
    layout: what the completions mean.
    masks: K boolean arrays [T_k], True where there is loss; None: everywhere.
    fields: data columns, each float32 [K]: "reward", "desirable".
    token_fields: columns with a number for each token: K arrays float32 [T_k] each.
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
    """Tokens of the group in a row: the prompt once, each completion once."""
    return len(self.prompt) + sum(map(len, self.completions))


@dataclasses.dataclass(frozen=True)
class Template:
  """How a record becomes text.

  Conversations go through the tokenizer's chat template. Plain text is
  `before + prompt + between + completion`, by default the two as they stand.

  Attributes:
    before: put before a plain prompt.
    between: put between a plain prompt and its completion; part of the prompt.
  """

  before: str = ""
  between: str = ""


@dataclasses.dataclass(frozen=True)
class Limits:
  """How long a prompt and a completion may be, in tokens; None: any length.

  A completion that is too long keeps its start and loses its EOS. A prompt that is too
  long is a bad row, or with `long_prompt="truncate"` keeps its BOS and its end, the
  text nearest the answer. Both are counted.

  Attributes:
    prompt: most prompt tokens, BOS included.
    completion: most completion tokens, EOS included.
    long_prompt: "error" or "truncate".
  """

  prompt: int | None = None
  completion: int | None = None
  long_prompt: Literal["error", "truncate"] = "error"

  def __post_init__(self):
    if self.long_prompt not in ("error", "truncate"):
      raise ValueError(f"long_prompt: {self.long_prompt!r} is not error or truncate")
    for name, least in (("prompt", 2), ("completion", 1)):
      limit = {"prompt": self.prompt, "completion": self.completion}[name]
      if limit is not None and limit < least:
        raise ValueError(f"limits.{name}: {limit} tokens; at least {least}, or None")


@dataclasses.dataclass(frozen=True)
class Tokenised:
  """What became of the records.

  Attributes:
    examples: the good ones, in order.
    bad: what is wrong with the others.
    dropped: the others themselves.
    truncated_prompts: prompts that lost their start.
    truncated_completions: completions that lost their end.
  """

  examples: tuple[Example, ...]
  bad: tuple[BadRow, ...]
  dropped: tuple[records.Record, ...]
  truncated_prompts: int
  truncated_completions: int


def tokenise(
  rows: Sequence[records.Record],
  tokenizer: PreTrainedTokenizerBase,
  template: Template = Template(),
  limits: Limits = Limits(),
) -> list[Example]:
  """Tokenises records of which every one must be good.

  Args:
    rows: records with completions (for bare prompts see `prompts`).
    tokenizer: a Hugging Face tokenizer; must have an EOS.
    template: how a record becomes text.
    limits: how long texts may be.

  Returns:
    An example per record, in order.

  Raises:
    BadRows: any row is bad: empty, identical, over-long, or a prompt whose tokens are
      not a prefix of prompt and completion.
    ValueError: the tokenizer has no EOS, or no chat template where one is needed.
  """
  done = attempt(rows, tokenizer, template, limits)
  if done.bad:
    raise records.BadRows(done.bad)
  return list(done.examples)


def attempt(
  rows: Sequence[records.Record],
  tokenizer: PreTrainedTokenizerBase,
  template: Template = Template(),
  limits: Limits = Limits(),
) -> Tokenised:
  """As `tokenise`, but bad rows are returned, not raised."""
  if tokenizer.eos_token_id is None:
    raise ValueError("tokenizer: it has no EOS token, so no completion could end")
  bad, dropped, sound, texts = [], [], [], []
  for row in rows:
    problem = records.find_problem(row)
    if problem is None and isinstance(row, records.Prompt):
      problem = BadRow(row.uid, "no completion", "a bare prompt cannot be trained on")
    if problem is not None:
      bad.append(dataclasses.replace(problem, row=records.describe(row)))
      dropped.append(row)
      continue
    sound.append(row)
    if isinstance(row, records.Stepped):
      texts.append(_render_steps(row, tokenizer, template))
      continue
    texts += [_render(row.prompt, y, tokenizer, template) for y in records.answers(row)]
  flat = [text for cuts in texts for text in cuts.texts]
  ids = iter(_encode(flat, tokenizer))
  encoded = iter([[next(ids) for _ in cuts.texts] for cuts in texts])
  rendered = iter(texts)
  examples, truncated = [], np.zeros(2, np.int64)
  for row in sound:
    answers = [(next(rendered), next(encoded)) for _ in records.answers(row)]
    try:
      example, cut = _example(row, answers, tokenizer, limits)
    except _Unfit as unfit:
      bad.append(BadRow(row.uid, unfit.problem, unfit.detail, records.describe(row)))
      dropped.append(row)
      continue
    examples.append(example)
    truncated += cut
  return Tokenised(tuple(examples), tuple(bad), tuple(dropped), *truncated.tolist())


def prompts(
  rows: Sequence[records.Record],
  tokenizer: PreTrainedTokenizerBase,
  template: Template = Template(),
  limits: Limits = Limits(),
) -> list[np.ndarray]:
  """The prompt of each record alone, to sample from: int32, BOS first.

  Raises:
    BadRows: a prompt without tokens, or over-long.
  """
  texts = [_prompt_text(row.prompt, tokenizer, template) for row in rows]
  made, bad = [], []
  for row, ids in zip(rows, _encode(texts, tokenizer), strict=True):
    try:
      made.append(_limit_prompt(ids, tokenizer, limits)[0])
    except _Unfit as unfit:
      bad.append(BadRow(row.uid, unfit.problem, unfit.detail, records.describe(row)))
  if bad:
    raise records.BadRows(bad)
  return made


class _Unfit(Exception):
  def __init__(self, problem: str, detail: str):
    super().__init__(f"{problem}: {detail}")
    self.problem, self.detail = problem, detail


@dataclasses.dataclass(frozen=True)
class _Cuts:
  """Prefixes of one rendered text; the first is the prompt, the last the whole.

  `texts[1:-1]` come in twos: where a turn with loss starts, and where it ends.
  """

  texts: tuple[str, ...]


def _render(prompt, completion, tokenizer, template: Template) -> _Cuts:
  start = _prompt_text(prompt, tokenizer, template)
  if isinstance(completion, str):
    return _Cuts((start, start + completion))
  cuts = [start]
  for number, turn in enumerate(completion):
    if turn.loss:
      so_far = (*prompt, *completion[:number])
      cuts.append(_chat(so_far, tokenizer, generate=True))
      cuts.append(_chat((*so_far, turn), tokenizer).rstrip())
  last = max(number for number, turn in enumerate(completion) if turn.loss)
  return _Cuts((*cuts, _chat((*prompt, *completion[: last + 1]), tokenizer).rstrip()))


def _render_steps(row: records.Stepped, tokenizer, template: Template) -> _Cuts:
  """The prompt, then a cut where each step ends."""
  start = _prompt_text(row.prompt, tokenizer, template)
  ends = range(1, len(row.steps) + 1)
  return _Cuts((start, *(start + "\n".join(row.steps[:n]) for n in ends)))


def _prompt_text(prompt, tokenizer, template: Template) -> str:
  if isinstance(prompt, str):
    return template.before + prompt + template.between
  return _chat(prompt, tokenizer, generate=True)


def _chat(turns: Sequence[Turn], tokenizer, generate: bool = False) -> str:
  if tokenizer.chat_template is None:
    raise ValueError(
      "tokenizer: the data hold messages, but it has no chat template; set "
      "tokenizer.chat_template, or give plain text"
    )
  messages = [{"role": turn.role, "content": turn.content} for turn in turns]
  return tokenizer.apply_chat_template(
    messages, tokenize=False, add_generation_prompt=generate
  )


def _encode(texts: Sequence[str], tokenizer) -> list[np.ndarray]:
  """Ids with BOS first, once; a template may have written it already."""
  if not texts:
    return []
  bos = tokenizer.bos_token_id
  once = list(dict.fromkeys(texts))  # a prompt comes with each of its completions
  encoded = tokenizer(once, add_special_tokens=False, return_attention_mask=False)
  ids_of = {
    text: np.array(ids if bos is None or ids[:1] == [bos] else [bos, *ids], np.int32)
    for text, ids in zip(once, encoded["input_ids"], strict=True)
  }
  return [ids_of[text] for text in texts]


def _example(row, answers, tokenizer, limits: Limits) -> tuple[Example, np.ndarray]:
  prompt = answers[0][1][0]
  stepped = isinstance(row, records.Stepped)
  completions, masks, cut_completions = [], [], 0
  for cuts, ids in answers:
    whole = ids[-1]
    for text, part in zip(cuts.texts[:-1], ids[:-1], strict=True):
      _check_prefix(text, part, cuts.texts[-1], whole, tokenizer)
    loss = _loss_mask([ids[0], whole] if stepped else ids)
    if whole[-1] != tokenizer.eos_token_id:
      whole = np.append(whole, np.int32(tokenizer.eos_token_id))
      loss = np.append(loss, True)
    completion, mask = whole[len(prompt) :], loss[len(prompt) :]
    if limits.completion is not None and len(completion) > limits.completion:
      completion, mask = completion[: limits.completion], mask[: limits.completion]
      cut_completions += 1
    if not mask.any():
      raise _Unfit(
        "empty completion",
        f"no token with loss is left within {limits.completion} completion tokens",
      )
    completions.append(completion)
    masks.append(mask)
  prompt, cut_prompt = _limit_prompt(prompt, tokenizer, limits)
  example = Example(
    uid=row.uid,
    prompt=prompt,
    completions=tuple(completions),
    layout=_layout(row),
    masks=None if all(mask.all() for mask in masks) else tuple(masks),
    fields=_fields(row),
    token_fields=_step_labels(row, answers[0][1], completions[0]) if stepped else {},
  )
  return example, np.array([cut_prompt, cut_completions])


def _step_labels(row: records.Stepped, ids, completion) -> dict:
  """Each step's label on the token after it, a line's end or EOS; 0 elsewhere."""
  label_T = np.zeros(len(completion), np.float32)
  for part, label in zip(ids[1:], row.labels, strict=True):
    if len(part) - len(ids[0]) < len(completion):  # else it was truncated away
      label_T[len(part) - len(ids[0])] = label
  return {"reward": (label_T,)}


def _check_prefix(text: str, part, whole_text: str, whole, tokenizer) -> None:
  if np.array_equal(part, whole[: len(part)]):
    return
  if not whole_text.startswith(text):
    raise _Unfit(
      "template rewrites the prompt",
      f"the prompt ends {text[-30:]!r}, but with its completion the template writes "
      f"{whole_text[: len(text)][-30:]!r} there",
    )
  joined = whole[: len(part)]
  first = int((part[: len(joined)] != joined).argmax()) if len(joined) else 0
  raise _Unfit(
    "boundary",
    f"tokens merge across the end of the prompt: {text[-20:]!r} + "
    f"{whole_text[len(text) :][:20]!r} becomes "
    f"{tokenizer.decode(whole[first : first + 3])!r} there; end the prompt without a "
    "space and start the completion with one, or set a separator (template.between)",
  )


def _loss_mask(ids: Sequence[np.ndarray]) -> np.ndarray:
  """Everything after the prompt, or the turns that the cuts enclose."""
  loss = np.zeros(len(ids[-1]), bool)
  ends = [len(part) for part in ids[1:-1]]
  if not ends:
    loss[len(ids[0]) :] = True
  for start, end in zip(ends[::2], ends[1::2], strict=True):
    loss[start:end] = True
  return loss


def _limit_prompt(prompt, tokenizer, limits: Limits) -> tuple[np.ndarray, bool]:
  if not len(prompt):
    raise _Unfit("empty prompt", "it has no tokens, and the tokenizer has no BOS")
  if limits.prompt is None or len(prompt) <= limits.prompt:
    return prompt, False
  if limits.long_prompt == "error":
    raise _Unfit(
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


def _layout(row: records.Record) -> Layout:
  return _LAYOUTS[type(row)]


def _fields(row: records.Record) -> dict[str, np.ndarray]:
  match row:
    case records.Ranked():
      return {"reward": np.array(row.rewards, np.float32)}
    case records.Pair() if row.probability is not None:
      return {"reward": np.array([row.probability, 1 - row.probability], np.float32)}
    case records.Rated():
      columns = {"desirable": row.desirable, "reward": row.reward}
      return {
        name: np.array([value], np.float32)
        for name, value in columns.items()
        if value is not None
      }
  return {}


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
  """Text of token ids, special tokens left out."""
  return tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)
