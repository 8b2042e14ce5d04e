"""Self-play sets each text against a sample of its prompt."""

from tests.studies.tiny_task import TINY
from xpo_jax.config.data import Data
from xpo_jax.data import records
from xpo_jax.studies.multistage import samples, self_play
from xpo_jax.train import loading

TEXTS = Data(TINY.path, portion="train")


def test_texts_are_chosen_and_samples_rejected(tiny_policy):
  pairs = self_play.pairs(
    tiny_policy, TEXTS, max_completion_tokens=6, num_texts=8, seed=1
  )
  rows = loading.load(TEXTS, TEXTS, {}).records[:8]
  prompts = [row.prompt for row in rows]
  sampled = samples.sample(
    tiny_policy, prompts, completions=1, max_completion_tokens=6, seed=1
  )
  expected = {
    (row.prompt, records.completions(row)[0], own)
    for row, (own,) in zip(rows, sampled.texts_BK, strict=True)
    if own.strip()
  }
  assert {(pair.prompt, pair.chosen, pair.rejected) for pair in pairs} == expected
  assert len(pairs) > 4
