"""Sampling, opponents and feedback refuse bad values by field."""

import math

import pytest

from xpo_jax.config.factories import Configured
from xpo_jax.config.sampling import Feedback, Opponent, SamplerCorrection, Sampling
from xpo_jax.feedback import rules

SOURCE = Configured(rules.synthetic_reward)


def test_reward_of_a_cut_completion_may_be_negative():
  assert Feedback(SOURCE, missing_eos=-1.0, missing_eos_rule="replace")


@pytest.mark.parametrize(
  ("make", "match"),
  [
    (lambda: Sampling(temperature=0.0), "temperature is 0.0"),
    (lambda: Sampling(temperature=math.inf), "temperature is inf; allowed: a finite"),
    (lambda: Sampling(temperature=math.nan), "temperature is nan; allowed: a finite"),
    (lambda: Sampling(top_p=1.5), "top_p is 1.5"),
    (lambda: Sampling(teacher_share=1.0), r"teacher_share is 1.0; .* share < 1"),
    (lambda: Sampling(teacher_share=-0.1), "teacher_share is -0.1"),
    (lambda: Sampling(teacher_share=math.nan), "teacher_share is nan"),
    (
      lambda: Sampling(teacher_share=0.2, top_p=0.9),
      r"teacher_share is 0.2, .*top_p 0.9; set column0_source",
    ),
    (
      lambda: Sampling(teacher_share=0.2, column0_source="greedy"),
      r"teacher_share is 0.2, with column0_source 'greedy'",
    ),
    (lambda: Sampling(staleness=-1), "staleness is -1"),
    (lambda: Sampling(staleness=0.5), "staleness is 0.5; .* whole number"),
    (lambda: Sampling(completions=0), "completions is 0"),
    (lambda: Sampling(completions=2.5), "completions is 2.5; .* whole number"),
    (lambda: Sampling(completions=1, column0_source="greedy"), "at least 2"),
    (lambda: Sampling(column0_source="likeliest"), "'greedy'"),
    (
      lambda: Sampling(exploration_temperature=0.0),
      "exploration_temperature is 0.0",
    ),
    (
      lambda: Sampling(exploration_temperature=math.inf),
      "exploration_temperature is inf; allowed: a finite",
    ),
    (
      lambda: Sampling(exploration_temperature=math.nan),
      "exploration_temperature is nan; allowed: a finite",
    ),
    (
      lambda: Sampling(exploration_temperature=2.0, column0_source="greedy"),
      "half of at least 2",
    ),
    (
      lambda: Sampling(exploration_temperature=2.0, completions=1),
      "half of at least 2",
    ),
    (lambda: Sampling(slots=0), "slots is 0"),
    (lambda: Sampling(weights_dtype="int8"), "weights_dtype is 'int8'; allowed"),
    (lambda: SamplerCorrection(cap=-1.0), "SamplerCorrection.cap is -1.0; allowed"),
    (lambda: SamplerCorrection(cap=None), "SamplerCorrection.cap and bounds are None"),
    (lambda: SamplerCorrection(bounds=(2.0, 1.0)), "SamplerCorrection.bounds is"),
    (lambda: SamplerCorrection(level="tokens"), "did you mean 'token'"),
    (lambda: Sampling(slots=8, prompts_at_once=4), "slots is 8 and prompts_at_once 4"),
    (lambda: Opponent(share=1.5), "share is 1.5"),
    (lambda: Opponent(completions=1.5), "Opponent.completions is 1.5"),
    (lambda: Feedback(SOURCE, kind="ranks"), "'win_rates'"),
    (lambda: Feedback(SOURCE, missing_eos=math.inf), "missing_eos is inf; allowed"),
    (lambda: Feedback(SOURCE, missing_eos=math.nan), "missing_eos is nan; allowed"),
    (lambda: Feedback(SOURCE, missing_eos=-1.0), 'is -1.0, .*"replace"'),
    (
      lambda: Feedback(SOURCE, overlong_buffer=0),
      "overlong_buffer is 0; .* at least 1",
    ),
    (
      lambda: Feedback(SOURCE, overlong_buffer=4, overlong_weight=-1.0),
      "overlong_weight is -1.0; allowed: a finite number > 0",
    ),
  ],
)
def test_value_out_of_range_is_refused_by_name(make, match):
  with pytest.raises(ValueError, match=match):
    make()


@pytest.mark.parametrize(
  ("sampling", "columns"),
  [
    (Sampling(completions=4), [0, 1, 2, 3]),
    (Sampling(completions=4, column0_source="greedy"), [1, 2, 3]),
    (Sampling(completions=5, exploration_temperature=2.0), [0, 1, 2]),
  ],
)
def test_own_columns_are_those_drawn_at_the_runs_temperature(sampling, columns):
  assert list(range(sampling.completions))[sampling.own] == columns
