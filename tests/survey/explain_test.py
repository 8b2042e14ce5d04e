"""The page of an objective."""

import pytest

from xpo_jax import objectives
from xpo_jax.survey import explain


def test_page_has_equation_source_survey_row_and_charts():
  page = explain.page("dpo", ("a_recipe", "another"))
  assert page.startswith("dpo(beta=0.1, label_smoothing=0.0)")
  assert "log sigma(m)" in page
  assert "DPO (arXiv:2305.18290, survey 3.3.3)" in page
  assert "RL1  reference*" in page
  assert "layout: PAIR   scores: logp_BKT, ref_logp_BKT" in page
  assert "recipes that use it: a_recipe, another; any other: " in page
  assert page.count("as the first completion rises") == 2


def test_page_draws_both_kinds_of_label():
  page = explain.page("kto")
  assert "desirable completion: loss" in page
  assert "undesirable completion: gradient" in page


def test_unknown_name_is_refused():
  with pytest.raises(ValueError, match="did you mean 'dpo'"):
    explain.page("dp0")


@pytest.mark.parametrize("name", objectives.NAMES)
def test_every_objective_can_be_drawn(name):
  assert "gradient as the first" in explain.page(name)
