"""Data, prompts and held-out data refuse bad values by field."""

import pytest

from xpo_jax.config.data import Data, Evaluation, Prompts, title_of
from xpo_jax.config.factories import Configured
from xpo_jax.data.tokenise import Limits


@pytest.mark.parametrize(
  ("make", "says"),
  [
    (lambda: Data("x", bad_rows="skip"), "Data.bad_rows is 'skip'; allowed"),
    (lambda: Data("x", rows_per_step=0), "Data.rows_per_step is 0"),
    (lambda: Data("x", rows_per_step=6, microbatches=4), "microbatches is 4.*divide"),
    (lambda: Data("x", rows_per_step=2.5), "rows_per_step is 2.5; .* whole number"),
    (lambda: Data("x", seed=-1), "Data.seed is -1; .* at least 0"),
    (lambda: Data("x", seed=0.5), "Data.seed is 0.5; .* whole number"),
    (lambda: Data("x", transform="both_orders"), "must be 'module:function'"),
    (
      lambda: Data("x", portion="half"),
      "Data.portion is 'half'; allowed: train, tune, test",
    ),
    (lambda: Prompts("x", limits=Limits(completion=8)), "max_completion_tokens"),
    (lambda: Prompts("x", seed=-1), "Prompts.seed is -1; .* at least 0"),
    (lambda: Evaluation(share=1.0), "Evaluation.share is 1.0"),
    (lambda: Evaluation(path="a", share=0.1), "not both"),
    (lambda: Evaluation("x", portion="all"), "Evaluation.portion is 'all'; allowed"),
  ],
)
def test_bad_value_is_refused_by_field(make, says):
  with pytest.raises(ValueError, match=says):
    make()


def test_records_of_a_function_are_titled_by_its_name():
  assert Data("pairs.jsonl").title == "pairs.jsonl"
  assert title_of(Configured(len, obj=())) == "builtins:len"
