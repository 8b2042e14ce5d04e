"""A scripted judge of two principles: few harsh words, and a kind text.

It stands in for a language model that reads a constitution (`feedback.judge.preference`
with the prompt "principle").
"""

from collections.abc import Sequence

from xpo_jax.feedback import constitution, noisy_judge, rules
from xpo_jax.feedback.protocol import Preference, Scorer, Scores


def preference(
  *, error: float = 0.1, temperature: float = 0.5, seed: int = 0
) -> Preference:
  """For each pair one of the two principles, drawn; the judge errs at a stated rate.

  Args:
    error: fraction of pairs judged wrong.
    temperature: difference that is one logit: in harsh words for one principle, in
      VADER's compound for the other.
    seed: of principles and errors.
  """
  judges = [
    noisy_judge.preference(truth, error=error, temperature=temperature, seed=seed)
    for truth in (gentleness(), rules.sentiment())
  ]
  return constitution.random_judge(judges, seed)


def gentleness() -> Scorer:
  """Minus the number of words that VADER holds to be negative."""
  harshness = noisy_judge.negative_word_count()

  def score(prompts: Sequence[str], completions: Sequence[str]) -> Scores:
    return Scores(-harshness(prompts, completions).value_N)

  return score
