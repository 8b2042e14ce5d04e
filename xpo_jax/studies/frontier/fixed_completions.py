"""Win rates of fixed completions against a policy: how it can be exploited."""

from collections.abc import Sequence

from xpo_jax.feedback.protocol import Preference, Scorer, Scores


def win_rate(completion: str, preference: Preference) -> Scorer:
  """Scores a policy's completions with the probability that a fixed one beats them.

  The maximum over fixed completions of its mean, less 1/2, is a lower bound of the
  policy's exploitability.

  Args:
    completion: played against every completion of the policy.
    preference: judges.
  """

  def score(prompts: Sequence[str], completions: Sequence[str]) -> Scores:
    return preference(prompts, [completion] * len(prompts), completions)

  return score
