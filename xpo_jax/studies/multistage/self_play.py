"""Pairs of a demonstration and a policy's own sample: SPIN's self-play."""

from xpo_jax.config.data import Data
from xpo_jax.data import records
from xpo_jax.studies.multistage import samples
from xpo_jax.train import loading


def pairs(
  policy: str,
  texts: Data,
  *,
  max_completion_tokens: int,
  num_texts: int = 800,
  seed: int = 0,
) -> list[records.Pair]:
  """Each text as the chosen completion, a sample of its prompt as the rejected one.

  A sample without a word, or the text itself, makes no pair.

  Args:
    policy: directory of the policy that plays against the texts: the one of the
      iteration before.
    texts: the demonstrations.
    max_completion_tokens: longest sample.
    num_texts: the first so many texts.
    seed: of the samples.
  """
  rows = loading.load(texts, texts, {}).records[:num_texts]
  prompts = [records.prompt_string(row) for row in rows]
  sampled = samples.sample(
    policy,
    prompts,
    completions=1,
    max_completion_tokens=max_completion_tokens,
    seed=seed,
  )
  made = [
    records.Pair(f"text {n}", prompt, records.completions(row)[0], own)
    for n, (row, prompt, (own,)) in enumerate(
      zip(rows, prompts, sampled.texts_BK, strict=True)
    )
  ]
  return [
    pair for pair in made if pair.rejected.strip() and pair.rejected != pair.chosen
  ]
