"""Pairs of next steps after the same steps: Step-DPO's, with words for steps."""

import re

from xpo_jax.config.data import Prompts
from xpo_jax.data import records
from xpo_jax.feedback.protocol import Scorer
from xpo_jax.studies.multistage import samples

_WORD = re.compile(r"\s*\S+")


def best_and_worst(
  policy: str,
  prompts: Prompts,
  reward: Scorer,
  *,
  max_completion_tokens: int,
  words: int = 2,
  candidates: int = 4,
  num_prompts: int = 800,
  seed: int = 0,
) -> list[records.Pair]:
  """The best next step against the worst, after a sampled first step.

  A step is a number of words. The first is sampled and belongs to the prompt of the
  pair; candidates for the second are sampled after it and rewarded with what stands
  before them. Candidates of one reward make no pair, nor does a first step that ends
  the text.

  Args:
    policy: directory of the policy that writes.
    prompts: what for.
    reward: rates the text so far, `Scorer`.
    max_completion_tokens: longest sample, of which a step is the beginning.
    words: of a step.
    candidates: next steps that are compared.
    num_prompts: the first so many prompts.
    seed: of the samples.
  """
  texts = samples.texts_of(prompts, 0, num_prompts)
  limits = {"max_completion_tokens": max_completion_tokens, "seed": seed}
  first = samples.sample(policy, texts, completions=1, **limits)
  contexts = [
    prompt + step(text, words)
    for prompt, (text,) in zip(texts, first.texts_BK, strict=True)
    if len(_WORD.findall(text)) > words
  ]
  following = samples.sample(policy, contexts, completions=candidates, **limits)
  steps = samples.Sampled(
    following.prompts,
    tuple(tuple(step(x, words) for x in row) for row in following.texts_BK),
  )
  reward_BK = samples.rewards(reward, steps)
  best_B1, worst_B1 = (
    x_B[:, None] for x_B in (reward_BK.argmax(1), reward_BK.argmin(1))
  )
  return samples.to_pairs(steps, reward_BK, best_B1, worst_B1, best_B1 != worst_B1)


def step(text: str, words: int) -> str:
  """The first words of a text, with the spaces before them."""
  return "".join(_WORD.findall(text)[:words])
