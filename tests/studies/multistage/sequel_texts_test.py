"""Text of another grammar, of which some prompts are held out."""

from tests.studies.tiny_task import TINY
from xpo_jax.data.records import Demonstration
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import sequel_texts
from xpo_jax.train import loading


def test_prompts_that_are_held_out_are_never_learned():
  learned, held_out = sequel_texts.learned(500), sequel_texts.held_out()
  assert len(learned) == 500
  assert len({row.prompt for row in held_out}) == len(held_out) > 0
  assert not {row.prompt for row in learned} & {row.prompt for row in held_out}
  # All that is to be known of the text can be learned: each completion is there.
  completions = [{row.completion for row in rows} for rows in (learned, held_out)]
  assert completions[1] <= completions[0]


def test_fewer_texts_are_the_first_of_more():
  assert sequel_texts.learned(50)[:5] == sequel_texts.learned(5)


def test_reviews_and_the_other_text_take_turns():
  reviews = tasks.prompts(TINY)
  rows = sequel_texts.with_reviews(reviews, 4)
  assert rows[1::2] == sequel_texts.learned(4)
  assert rows[::2] == list(loading.load(reviews, reviews, {}).records[:4])
  assert all(isinstance(row, Demonstration) for row in rows)
