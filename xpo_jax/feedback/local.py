"""A judge on this machine: a decoder that writes, or whose next token is read.

What candidates say is turned into tokens apart from the prompt around it, and never
into control tokens; the policy can so be its own judge.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax.feedback import judge, prompting
from xpo_jax.feedback.judge import Backend
from xpo_jax.feedback.progress import Advance, every
from xpo_jax.feedback.prompting import Conversation, Piece
from xpo_jax.feedback.protocol import OfPolicy, Preference, Scorer
from xpo_jax.models import generate, hf_checkpoint, sample, transformer
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.models.transformer import Model
from xpo_jax.types import Array, Params

_SHORTEST = 64  # tokens; widths are doubled from here, so that few programs are made


def backend(
  model: Model,
  params: Params,
  tokenizer: Any,
  *,
  name: str = "local model",
  max_completion_tokens: int = 256,
  temperature: float = 1.0,
  top_p: float | None = None,
  rows: int = 8,
  seed: int = 0,
  advance: Advance | None = None,
) -> Backend:
  """A decoder as a judge.

  Args:
    model: of `transformer.model`, or, where nothing is written, any `Model`.
    params: of the decoder (the "lm" part).
    tokenizer: of transformers. With a chat template, prompts are conversations; without
      one, plain text.
    name: for messages.
    max_completion_tokens: longest text.
    temperature: of texts; > 0.
    top_p: see `GenerationConfig`.
    rows: prompts computed at a time.
    seed: of texts; a text depends on it, on draw and conversation, on no other text.
    advance: told how many questions of a call are done, and of how many; None: a line
      every ten seconds on standard error.

  Returns:
    Backend; log-probabilities are over the whole vocabulary.
  """
  if tokenizer.eos_token_id is None:
    raise ValueError(f"judge {name}: its tokenizer has no EOS, so no text could end")
  config = GenerationConfig(max_completion_tokens, temperature=temperature, top_p=top_p)

  def write(conversations: Sequence[Conversation], draw: int) -> list[str | None]:
    prompts = [encode(each, tokenizer) for each in conversations]
    key = jax.random.fold_in(jax.random.key(seed), draw)
    texts: list[str | None] = []
    tell = advance or every(10, name)
    for start in range(0, len(prompts), rows):
      ids = prompts[start : start + rows]
      drawn = generate.generate(
        model,
        params,
        ids,
        tokenizer=tokenizer,
        config=config,
        key=key,
        row_B=[_row(each) for each in ids],
        batching=generate.Batching(rows, prompt_width=_width(ids)),
      )
      texts += [text.strip() for (text,) in drawn.texts_BK]
      tell(len(texts), len(prompts))
    return texts

  def options(
    conversations: Sequence[Conversation], names: Sequence[str], draw: int
  ) -> np.ndarray:
    del draw  # nothing is drawn
    read = [_asked(each, names, tokenizer, name) for each in conversations]
    logp_NJ, tell = [], advance or every(10, name)
    for start in range(0, len(read), rows):
      ids = [prompt for prompt, _ in read[start : start + rows]]
      ids_J = [names_J for _, names_J in read[start : start + rows]]
      missing = rows - len(ids)
      filled = [*ids, *ids[:1] * missing]
      prompt_BP, length_B = sample.pad(filled, _width(filled))
      option_BJ = np.array([*ids_J, *ids_J[:1] * missing], np.int32)
      logp_BJ = _option_logps(model, params, prompt_BP, length_B, option_BJ)
      logp_NJ.append(np.asarray(logp_BJ)[: len(ids)])
      tell(start + len(ids), len(read))
    return np.concatenate(logp_NJ)

  return Backend(name, write, options)


def load(directory: str | Path, **settings: Any) -> Backend:
  """A Hugging Face directory as a judge; `settings` are those of `backend`.

  Raises:
    ValueError: what `hf_checkpoint.load` refuses, or no tokenizer.
  """
  held = hf_checkpoint.load(directory, remat=False)
  if held.tokenizer is None:
    raise ValueError(f"{directory} has no tokenizer; save one beside the weights")
  params = jax.device_put(held.params["lm"])
  model = transformer.model(held.config)
  return backend(model, params, held.tokenizer, name=str(directory), **settings)


def preference(
  directory: str,
  *,
  prompt: str = "pairwise",
  principles: str | None = None,
  logprobs: bool = True,
  reasoning: bool = False,
  samples: int = 1,
  retries: int = 2,
  both_orders: bool = True,
  clamp: tuple[float, float] | None = None,
) -> Preference:
  """`judge.preference` of a directory's model, by plain values."""
  return judge.preference(
    load(directory),
    prompt=prompt,
    principles=principles,
    logprobs=logprobs,
    reasoning=reasoning,
    samples=samples,
    retries=retries,
    both_orders=both_orders,
    clamp=clamp,
  )


def scorer(
  directory: str,
  *,
  prompt: str = "additive",
  least: float = 0,
  most: float = 5,
  samples: int = 3,
  retries: int = 2,
) -> Scorer:
  """`judge.scorer` of a directory's model, by plain values."""
  return judge.scorer(
    load(directory),
    prompt=prompt,
    least=least,
    most=most,
    samples=samples,
    retries=retries,
  )


def own_rating(*, prompt: str = "rating", levels: int = 5, rows: int = 64) -> OfPolicy:
  """The policy as its own judge, by `judge.rating`.

  Args:
    prompt: a prompt file with `{prompt}`, `{completion}` and `{levels}`.
    levels: the highest rating.
    rows: answers judged at once.

  Raises:
    ValueError: a prompt file that does not fit, or too few levels.
  """
  return _own(lambda held: judge.rating(held, prompt=prompt, levels=levels), rows)


def own_scorer(
  *,
  prompt: str = "additive",
  least: float = 0,
  most: float = 5,
  samples: int = 3,
  rows: int = 64,
) -> OfPolicy:
  """The policy as its own judge, by `judge.scorer`: it argues, then writes a score.

  Paper: Self-Rewarding Language Models, Yuan et al. 2024, arXiv:2401.10020.

  Args:
    prompt: a prompt file with `{prompt}` and `{completion}`.
    least: the lowest score.
    most: the highest.
    samples: verdicts averaged over.
    rows: answers judged at once.

  Raises:
    ValueError: a prompt file that does not fit, or numbers out of range.
  """
  hparams = {"prompt": prompt, "least": least, "most": most, "samples": samples}
  return _own(lambda held: judge.scorer(held, **hparams), rows)


def _own(made: Callable[[Backend], Scorer], rows: int) -> OfPolicy:
  name = "the policy itself"
  nobody = Backend(name, lambda *asked: [], lambda *asked: np.zeros((0, 0)))
  made(nobody)  # a prompt file that does not fit is named now, not after sampling

  def make(model: Model, params: Params, tokenizer: Any) -> Scorer:
    return made(backend(model, params, tokenizer, name=name, rows=rows))

  return OfPolicy(make)


@functools.partial(jax.jit, static_argnames="model")
def _option_logps(
  model: Model, params: Params, prompt_BP: Array, length_B: Array, option_BJ: Array
) -> Array:
  held_BP = jnp.arange(prompt_BP.shape[1])[None] < length_B[:, None]
  hidden_BPD = model.hidden(params, transformer.Rows.plain(prompt_BP, held_BP))
  last_B11 = (length_B - 1)[:, None, None]
  hidden_BD = jnp.take_along_axis(hidden_BPD, last_B11, axis=1)[:, 0]
  logits_BV = jnp.einsum(
    "bd,vd->bv", hidden_BD, model.head(params), preferred_element_type=jnp.float32
  )
  return jnp.take_along_axis(jax.nn.log_softmax(logits_BV), option_BJ, axis=1)


def _width(prompts: Sequence[Sequence[int]]) -> int:
  longest = max(map(len, prompts))
  width = _SHORTEST
  while width < longest:
    width *= 2
  return width


def _row(ids: Sequence[int]) -> int:
  """A number for a prompt, by which its draws differ from another's."""
  return int(prompting.draw(0, str(list(ids))) * (1 << 31))


# --- Conversations to tokens


def encode(conversation: Conversation, tokenizer: Any) -> list[int]:
  """Token ids, BOS first, once, where the tokenizer has one.

  Pieces that are not trusted hold no control token, whatever they spell.
  """
  ids: list[int] = []
  for piece in _rendered(conversation, tokenizer):
    ids += _ids(piece.text, tokenizer, piece.trusted)
  bos = tokenizer.bos_token_id
  return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def _ids(text: str, tokenizer: Any, trusted: bool = True) -> list[int]:
  text = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair
  if not trusted:
    # Special tokens are split; what was added without being called special is not.
    for token in tokenizer.added_tokens_decoder.values():
      if not token.special and token.content.strip():  # runs of blanks control nothing
        text = text.replace(token.content, f"{token.content[0]} {token.content[1:]}")
  return tokenizer(text, add_special_tokens=False, split_special_tokens=not trusted)[
    "input_ids"
  ]


def _rendered(conversation: Conversation, tokenizer: Any) -> list[Piece]:
  """The conversation as one text in pieces, up to where the answer starts."""
  if tokenizer.chat_template is None:
    pieces: list[Piece] = []
    for turn in conversation:
      pieces += [Piece("\n\n"), *turn.pieces] if pieces else turn.pieces
    return pieces
  # Texts are put in after the template, whose control tokens they must not join.
  outside = [p.text for turn in conversation for p in turn.pieces if not p.trusted]
  mark = (
    f"text-{prompting.mark([p.text for turn in conversation for p in turn.pieces])}"
  )
  turns = [
    {
      "role": t.role,
      "content": "".join(p.text if p.trusted else mark for p in t.pieces),
    }
    for t in conversation
  ]
  whole = tokenizer.apply_chat_template(
    turns, tokenize=False, add_generation_prompt=True
  )
  around = whole.split(mark)
  if len(around) != len(outside) + 1:
    raise ValueError(
      f"the judge's chat template shows {len(around) - 1} of {len(outside)} texts; it "
      "must show every message once"
    )
  pieces = [Piece(around[0])]
  for text, after in zip(outside, around[1:], strict=True):
    pieces += [Piece(text, trusted=False), Piece(after)]
  return [piece for piece in pieces if piece.text]


def _asked(
  conversation: Conversation, names: Sequence[str], tokenizer: Any, judge_name: str
) -> tuple[list[int], list[int]]:
  """The prompt up to the verdict, and the token of each verdict after it.

  A chat's answer starts at once. In plain text a blank comes first, which tokenizers
  join to the word after it, or do not: both are tried.
  """
  ids = encode(conversation, tokenizer)
  tail = _rendered(conversation, tokenizer)[-1].text
  start = _ids(tail, tokenizer)
  plain, chat = (("", " "), (" ", ""), ("", "")), (("", ""),)
  for before, joint in plain if tokenizer.chat_template is None else chat:
    base = _ids(tail + before, tokenizer)
    ends = [_ids(tail + before + joint + name, tokenizer) for name in names]
    if all(end[:-1] == base for end in ends) and len({e[-1] for e in ends}) == len(
      ends
    ):
      return ids[: len(ids) - len(start)] + base, [end[-1] for end in ends]
  shown = ", ".join(f"{name!r}: {_ids(name, tokenizer)}" for name in names)
  raise ValueError(
    f"judge {judge_name}: its tokenizer does not write each verdict as one token of "
    f"its own ({shown}); choose other options, fewer levels, or logprobs=False"
  )
