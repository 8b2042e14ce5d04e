"""Seed data of a policy that is to write and to rate: texts, and ratings of texts.

Self-Rewarding Language Models, Yuan et al. 2024, arXiv:2401.10020: instruction
fine-tuning and evaluation fine-tuning data.
"""

import numpy as np

from xpo_jax.config.data import Data
from xpo_jax.data import records
from xpo_jax.feedback import labelling
from xpo_jax.feedback.protocol import Scorer
from xpo_jax.train import loading


def texts_and_ratings(
  texts: Data,
  rater: Scorer,
  *,
  num_texts: int,
  num_ratings: int,
  prompt: str = "brief",
  levels: int = 5,
) -> list[records.Demonstration]:
  """Texts as they are, and a rater's ratings of the texts after them.

  Args:
    texts: demonstrations.
    rater: gives whole points, 0 to levels - 1; the rating is one more.
    num_texts: the first so many are demonstrations of writing.
    num_ratings: the next so many are rated, before each rating is made as frequent as
      the rarest.
    prompt: a prompt file, see `feedback.judge.rating`.
    levels: of a rating.

  Raises:
    ValueError: points that are no rating.
  """
  rows = loading.load(texts, texts, {}).records[: num_texts + num_ratings]
  rated = rows[num_texts:]
  prompts = [row.prompt for row in rated]
  completions = [row.completion for row in rated]
  point_N = rater(prompts, completions).value_N
  if not np.isin(point_N, np.arange(levels)).all():
    raise ValueError(
      f"the rater gives points from {point_N.min()} to {point_N.max()}; seed ratings "
      f"are whole points from 0 to levels - 1 = {levels - 1}"
    )
  level_N = (1 + point_N.astype(int)).tolist()
  ratings = labelling.rating_demonstrations(
    prompts, completions, level_N, prompt=prompt, levels=levels
  )
  return [*rows[:num_texts], *ratings]
