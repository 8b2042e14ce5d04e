"""Rollouts: what a policy wrote in one iteration, and what was recorded at birth.

A rollout is a function of the run's key, the iteration and the row, never of how
sampling was cut into batches. Rollouts are written as JSON lines, one a completion,
and read back bit for bit: a run that dies after its feedback does not ask again.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from xpo_jax.data.tokenise import Example
from xpo_jax.models import sample
from xpo_jax.models.transformer import Model
from xpo_jax.train import evaluate
from xpo_jax.train.online_experiment import Sampling
from xpo_jax.types import Array, Layout, Params


class PromptSet(NamedTuple):
  """Prompts to sample from.

  Attributes:
    uids: names of their records.
    texts: as a judge reads them.
    ids: as the model reads them, int32, BOS first.
    width: of the array that sampling pads them to, tokens of the longest.
  """

  uids: tuple[str, ...]
  texts: tuple[str, ...]
  ids: tuple[np.ndarray, ...]
  width: int


@dataclasses.dataclass(frozen=True, eq=False)
class Rollouts:
  """B prompts with K completions each.

  Attributes:
    iteration: of the run, from 0; -1 for held-out prompts.
    row_B: number of each prompt in the prompt set.
    prompts: their texts.
    texts_BK: the completions' texts, special tokens left out.
    examples: prompts and completions in tokens, layout SAMPLED, without fields.
    logp: for each prompt and completion, float32 log-probs of its tokens under the
      policy that drew it, at the sampling temperature, before any truncation.
    ended_BK: False where a completion was cut at the limit.
    reward_BK: as feedback gave it, NaN where it abstained; None before feedback.
    opponents_BJ: texts that the completions are judged against, or none at all.
  """

  iteration: int
  row_B: np.ndarray
  prompts: tuple[str, ...]
  texts_BK: tuple[tuple[str, ...], ...]
  examples: tuple[Example, ...]
  logp: tuple[tuple[np.ndarray, ...], ...]
  ended_BK: np.ndarray
  reward_BK: np.ndarray | None = None
  opponents_BJ: tuple[tuple[str, ...], ...] = ()

  @property
  def length_BK(self) -> np.ndarray:
    """Tokens of each completion, EOS included where it ended."""
    return np.array([[len(y) for y in e.completions] for e in self.examples])


def draw(
  model: Model,
  params: Params,
  prompts: PromptSet,
  row_B: np.ndarray,
  sampling: Sampling,
  tokenizer: Any,
  *,
  iteration: int,
  key: Array,
  ref_params: Params | None = None,
  average: Params | None = None,
) -> Rollouts:
  """Samples completions.

  Args:
    model: of policy and reference.
    params: of the policy that samples, the "lm" part.
    prompts: the prompt set.
    row_B: which of them; a number may come twice, its completions then differ.
    sampling: how.
    tokenizer: decodes; its EOS ends a completion.
    iteration: names the rollouts.
    key: of these rollouts; slot b draws from it and b alone.
    ref_params: of the reference, where column 0 is its sample or an opponent speaks.
    average: of the averaged policy, where an opponent is made of it.

  Returns:
    Rollouts without rewards.
  """
  several, alone, against = jax.random.split(key, 3)
  one, rest = _columns(sampling)
  parts = []
  if one is not None:
    greedy = sampling.first == "greedy"
    source = params if greedy else ref_params
    drawn = _sampled(model, source, prompts, row_B, one, tokenizer, alone, greedy)
    parts.append(drawn)
  parts.append(_sampled(model, params, prompts, row_B, rest, tokenizer, several))
  tokens_BKT, length_BK, ended_BK, logp_BKT = (
    np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True)
  )
  completions = _cut(tokens_BKT, length_BK)
  ids = [prompts.ids[row] for row in row_B]
  opponents_BJ = ()
  if sampling.opponent is not None:
    mixed = params if sampling.opponent.of == "sampler" else average
    rival = sample.Mixture(model, ref_params, sampling.opponent.share)
    those = dataclasses.replace(rest, completions=sampling.opponent.completions)
    tokens_BJT, length_BJ, *_ = _sampled(
      model, mixed, prompts, row_B, those, tokenizer, against, mixture=rival
    )
    opponents_BJ = _texts(tokenizer, ids, _cut(tokens_BJT, length_BJ))
  return Rollouts(
    iteration=iteration,
    row_B=np.asarray(row_B),
    prompts=tuple(prompts.texts[row] for row in row_B),
    texts_BK=_texts(tokenizer, ids, completions),
    examples=tuple(
      Example(prompts.uids[row], x, ys, Layout.SAMPLED)
      for row, x, ys in zip(row_B, ids, completions, strict=True)
    ),
    logp=tuple(
      tuple(p[:n] for p, n in zip(ps, ns, strict=True))
      for ps, ns in zip(logp_BKT, length_BK, strict=True)
    ),
    ended_BK=ended_BK,
    opponents_BJ=opponents_BJ,
  )


def _cut(tokens_BKT: np.ndarray, length_BK: np.ndarray) -> list[tuple[np.ndarray, ...]]:
  """Completions without their padding."""
  return [
    tuple(y[:n].astype(np.int32) for y, n in zip(ys, ns, strict=True))
    for ys, ns in zip(tokens_BKT, length_BK, strict=True)
  ]


def _columns(sampling: Sampling) -> tuple[Sampling | None, Sampling]:
  """How column 0 is drawn where it is apart, and how the others are."""
  if sampling.first == "sample":
    return None, sampling
  rest = dataclasses.replace(
    sampling, completions=sampling.completions - 1, first="sample"
  )
  one = dataclasses.replace(rest, completions=1)
  if sampling.first == "greedy":
    one = dataclasses.replace(one, top_k=None, top_p=None)
  return one, rest


def _sampled(
  model, params, prompts, row_B, sampling, tokenizer, key, greedy=False, mixture=None
) -> tuple[np.ndarray, ...]:
  """Tokens, lengths, ends and log-probs of B x K completions."""
  prompt_BP, length_B = sample.pad([prompts.ids[row] for row in row_B], prompts.width)
  at_once = sampling.prompts_at_once or len(row_B)
  parts = []
  for start in range(0, len(row_B), at_once):
    # The last batch is filled with its last prompt: one shape, one compile.
    slots = np.minimum(np.arange(start, start + at_once), len(row_B) - 1)
    drawn = sample.sample(
      model,
      params,
      prompt_BP[slots],
      length_B[slots],
      completions=sampling.completions,
      max_tokens=sampling.max_tokens,
      key=key,
      row_B=slots,
      stop_ids=(tokenizer.eos_token_id,),
      temperature=sampling.temperature,
      top_k=sampling.top_k,
      top_p=sampling.top_p,
      greedy=greedy,
      mixture=mixture,
    )
    arrays = (drawn.tokens_BKT, drawn.length_BK, drawn.ended_BK, drawn.logp_BKT)
    parts.append([x[: len(row_B) - start] for x in jax.device_get(arrays)])
  return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def _texts(tokenizer, ids, completions) -> tuple[tuple[str, ...], ...]:
  texts = []
  for x, ys in zip(ids, completions, strict=True):
    head = evaluate.decode(tokenizer, x)
    # Decoded together: a tokenizer may read a completion's first token otherwise alone.
    whole = [evaluate.decode(tokenizer, [*x, *y]) for y in ys]
    texts.append(tuple(text.removeprefix(head) for text in whole))
  return tuple(texts)


def write(path: Path, rollouts: Rollouts) -> None:
  """Writes rollouts, one line a completion; whole or not at all."""
  lines = []
  for b, example in enumerate(rollouts.examples):
    for k, tokens in enumerate(example.completions):
      reward = None if rollouts.reward_BK is None else float(rollouts.reward_BK[b, k])
      line = {
        "iteration": rollouts.iteration,
        "row": int(rollouts.row_B[b]),
        "column": k,
        "uid": example.uid,
        "prompt": rollouts.prompts[b],
        "completion": rollouts.texts_BK[b][k],
        "reward": None if reward is None or np.isnan(reward) else reward,
        "ended": bool(rollouts.ended_BK[b, k]),
        "tokens": tokens.tolist(),
        "logp": rollouts.logp[b][k].tolist(),
      }
      if k == 0:  # once a prompt
        line |= {"prompt_tokens": example.prompt.tolist()}
        if rollouts.opponents_BJ:
          line |= {"opponents": list(rollouts.opponents_BJ[b])}
      lines.append(json.dumps(line, ensure_ascii=False) + "\n")
  path.parent.mkdir(parents=True, exist_ok=True)
  beside = path.with_suffix(".tmp")
  beside.write_text("".join(lines), encoding="utf-8")
  beside.replace(path)


def read(path: Path) -> Rollouts:
  """Rollouts as they were written; a reward that is null is NaN."""
  # Not splitlines: it also splits at characters that JSON leaves as they are.
  texts = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
  lines = [json.loads(text) for text in texts]
  groups: list[list[dict]] = []
  for line in lines:
    if line["column"] == 0:
      groups.append([])
    groups[-1].append(line)

  def of(name: str, dtype: Any = None) -> list[list]:
    cast = (lambda x: x) if dtype is None else (lambda x: np.array(x, dtype))
    return [[cast(line[name]) for line in group] for group in groups]

  return Rollouts(
    iteration=lines[0]["iteration"],
    row_B=np.array([group[0]["row"] for group in groups]),
    prompts=tuple(group[0]["prompt"] for group in groups),
    texts_BK=tuple(map(tuple, of("completion"))),
    examples=tuple(
      Example(
        group[0]["uid"],
        np.array(group[0]["prompt_tokens"], np.int32),
        tuple(ys),
        Layout.SAMPLED,
      )
      for group, ys in zip(groups, of("tokens", np.int32), strict=True)
    ),
    logp=tuple(map(tuple, of("logp", np.float32))),
    ended_BK=np.array(of("ended"), bool),
    reward_BK=np.array(of("reward"), np.float32),  # None becomes NaN
    opponents_BJ=tuple(
      tuple(group[0]["opponents"]) for group in groups if "opponents" in group[0]
    ),
  )


def order(prompts: int, seed: int, start: int, count: int) -> np.ndarray:
  """Numbers of `count` prompts from position `start` of an endless line, in which
  shuffled passes over all prompts follow one another."""
  rows = []
  for position in range(start, start + count):
    epoch, within = divmod(position, prompts)
    if within == 0 or not rows:
      pass_ = np.random.default_rng((seed, epoch)).permutation(prompts)
    rows.append(int(pass_[within]))
  return np.array(rows)


def flat(arrays: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
  """Arrays per completion end to end, in the order of `data.store`."""
  return np.concatenate([one for group in arrays for one in group])
