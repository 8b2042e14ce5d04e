"""Divides a rater's points by their standard deviation on a policy's samples.

The KL penalty of a method then means the same for a rater of any scale and for a reward
model, whose rewards have deviation 1 on the samples of its start.
"""

from collections.abc import Sequence

from xpo_jax.config.data import Prompts
from xpo_jax.feedback.protocol import Scorer, Scores
from xpo_jax.studies.multistage import samples
from xpo_jax.train import export


def unit_deviation(
  rater: Scorer,
  policy: str,
  prompts: Prompts,
  *,
  max_completion_tokens: int,
  temperature: float = 1.0,
  num_prompts: int = export.REFERENCE_SAMPLES,
  seed: int = 0,
) -> Scorer:
  """The rater with ratings of standard deviation 1 on samples of a policy.

  Args:
    rater: gives points.
    policy: directory of the policy that is sampled, a completion of each prompt.
    prompts: what for.
    max_completion_tokens: longest completion.
    temperature: of the samples.
    num_prompts: the first so many prompts.
    seed: of the samples.

  Raises:
    ValueError: the rater gives all samples the same points.
  """
  sampled = samples.sample(
    policy,
    samples.texts_of(prompts, 0, num_prompts),
    completions=1,
    max_completion_tokens=max_completion_tokens,
    seed=seed,
    temperature=temperature,
  )
  rating_BK = samples.rewards(rater, sampled)
  deviation = float(rating_BK.std())
  if not deviation > 0:
    raise ValueError(
      f"the rater gives {rating_BK.size} samples of {policy} a deviation of "
      f"{deviation}; it must tell some of them apart and abstain on none"
    )

  def rate(prompts: Sequence[str], completions: Sequence[str]) -> Scores:
    scores = rater(prompts, completions)
    return scores._replace(value_N=scores.value_N / deviation)

  return rate
