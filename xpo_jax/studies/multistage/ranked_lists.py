"""Lists of a policy's samples, ranked by a noisy labeller."""

import numpy as np

from xpo_jax.config.data import Prompts
from xpo_jax.data import records
from xpo_jax.feedback.protocol import Scorer
from xpo_jax.studies.multistage import samples


def noisy(
  policy: str,
  prompts: Prompts,
  reward: Scorer,
  *,
  completions: int,
  max_completion_tokens: int,
  num_prompts: int,
  noise: float,
  seed: int = 0,
) -> list[records.Ranked]:
  """Lists of samples in the order of a Plackett-Luce labeller of the reward.

  Standard Gumbel noise on logits: every pair of a list is Bradley-Terry.

  Args:
    policy: directory of the policy that writes.
    prompts: what for.
    reward: the labeller's, `Scorer`.
    completions: of each prompt; of equal texts one stays.
    max_completion_tokens: longest completion.
    num_prompts: the first so many prompts.
    noise: reward that is one logit of the labeller; > 0.
    seed: of samples and noise.
  """
  sampled = samples.sample(
    policy,
    samples.texts_of(prompts, 0, num_prompts),
    completions=completions,
    max_completion_tokens=max_completion_tokens,
    seed=seed,
  )
  reward_BK = samples.rewards(reward, sampled)
  noise_BK = np.random.default_rng((seed, 7)).gumbel(size=reward_BK.shape)
  score_BK = reward_BK / noise + noise_BK
  rows = []
  for b, (prompt, texts) in enumerate(
    zip(sampled.prompts, sampled.texts_BK, strict=True)
  ):
    # Two equal texts have two places in the order: what remains of them is noise.
    scores = dict(zip(texts, score_BK[b].tolist(), strict=True))
    scores = {text: score for text, score in scores.items() if text.strip()}
    if len(scores) > 1:
      uid = f"prompt {b}"
      rows.append(records.Ranked(uid, prompt, tuple(scores), tuple(scores.values())))
  return rows
