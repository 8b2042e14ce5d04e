"""The survey's table: complete, and consistent with the objectives."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpo_jax import objectives, scored
from xpo_jax.ops import token_stats
from xpo_jax.survey import table, taxonomy
from xpo_jax.survey.taxonomy import (
  FeedbackType,
  Length,
  Level,
  Reference,
  SamplingPolicy,
  Sft,
  Sign,
  Size,
)
from xpo_jax.testing import toy
from xpo_jax.types import Layout, Objective, Scored

PER_SEQUENCE = {token_stats.LOGP, token_stats.REF_LOGP, token_stats.REWARD_HEAD}


@functools.cache
def objective(name: str) -> Objective:
  return objectives.build(name)


def _policy_rows() -> list:
  """(paper, objective) where the objective trains a policy on the paper's feedback."""
  return [
    pytest.param(paper, name, id=f"{paper.name}: {name}")
    for paper in table.PAPERS
    for name in paper.objectives
    if name in objectives.NAMES  # another test reports missing names
    if token_stats.LOGP in objective(name).stats
    and objective(name).layout is not Layout.DEMO
  ]


ROWS = _policy_rows()


def values(paper: taxonomy.Paper, code: str) -> frozenset:
  return paper.cells[code].values


@functools.cache
def _loss(name: str):
  o = objective(name)

  @jax.jit
  def loss(s: Scored):
    out = scored.evaluate(o, s, o.init(), jax.random.key(0))
    return out.loss, out.terms

  return loss


@functools.cache
def record(name: str) -> Scored:
  return toy.scored_for(objective(name), B=8)


@functools.cache
def terms(name: str) -> set[str]:
  return set(jax.eval_shape(_loss(name), record(name))[1])


def test_the_survey_has_24_systems_and_every_group():
  sections = [paper.section for paper in table.PAPERS]
  assert sum(s.count(".") == 2 for s in sections) == 24
  for group in ("3.9", "3.10", "3.11", "3.12"):
    assert group in sections
  assert len(taxonomy.DIRECTIONS) == 13
  names = [paper.name for paper in table.PAPERS]
  assert len(names) == len(set(names))


def test_every_objective_has_a_row_and_every_row_an_objective():
  named = {name for paper in table.PAPERS for name in paper.objectives}
  assert named - set(objectives.NAMES) == set(), "no such objective"
  assert set(objectives.NAMES) - named == set(), "give each a row in survey/table.py"
  for paper in table.PAPERS:
    assert paper.objectives
    assert set(paper.cells) == set(taxonomy.DIRECTIONS)


def test_rows_and_pages_name_the_same_paper():
  for paper in table.PAPERS:
    pages = [objectives.docstring(name) for name in paper.objectives]
    assert paper.recipe or any(f"arXiv:{paper.arxiv}" in page for page in pages), (
      f"{paper.name}: no page of {paper.objectives} cites {paper.arxiv}"
    )


def test_reading_the_table_imports_no_jax():
  code = "import sys; from xpo_jax.survey import table; assert 'jax' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_bad_row_is_refused():
  row = "E* P R +-  Pf Pw H  Ref no rKL On  Once Sep"
  taxonomy.paper("fine", "", "", row, "dpo")
  with pytest.raises(ValueError, match="12 cells"):
    taxonomy.paper("short", "", "", row.removesuffix(" Sep"), "dpo")
  with pytest.raises(ValueError, match="Pw is no value of RM1"):
    taxonomy.paper("moved", "", "", row.replace("E*", "Pw"), "dpo")


@pytest.mark.parametrize(("paper", "name"), ROWS)
def test_reference_is_used_where_the_table_says_so(paper, name):
  reads = any(
    role.startswith("ref") for stat in objective(name).stats for role in stat.roles
  )
  allowed = values(paper, "RL1")
  assert (Reference.BASED if reads else Reference.FREE) in allowed


@pytest.mark.parametrize(("paper", "name"), ROWS)
def test_layout_is_the_feedback_of_the_table(paper, name):
  layout = objective(name).layout
  if layout is Layout.PAIR:
    assert Size.PAIR in values(paper, "F2")
    assert FeedbackType.PREFERENCE in values(paper, "F1")
  elif layout is Layout.RANKED:
    assert Size.LIST in values(paper, "F2") or paper.cells["F2"].note
  elif layout is Layout.SAMPLED:
    assert SamplingPolicy.ON_POLICY in values(paper, "RL4")
  else:
    assert FeedbackType.BINARY in values(paper, "F1")


@pytest.mark.parametrize(("paper", "name"), ROWS)
def test_token_level_methods_read_tokens(paper, name):
  if Level.TOKEN not in values(paper, "RM3"):
    return
  o = objective(name)
  assert o.reads_tokens or o.stats - PER_SEQUENCE


@pytest.mark.parametrize(("paper", "name"), ROWS)
def test_length_matters_where_the_table_says_so(paper, name):
  s = record(name)
  factor_K = 2.0 * jnp.arange(1, s.length_BK.shape[1] + 1)
  longer = s.replace(length_BK=s.length_BK * factor_K[None])
  before, after = _loss(name)(s)[0], _loss(name)(longer)[0]
  matters = not np.allclose(before, after, rtol=1e-5)
  if Length.CONTROLLED in values(paper, "RL2"):
    assert matters or objective(name).reads_tokens
  elif matters:
    assert "length" in paper.cells["RL2"].note or "token" in paper.cells["RL2"].note


@pytest.mark.parametrize(("paper", "name"), ROWS)
def test_sft_is_a_term_where_the_table_says_so(paper, name):
  if paper.recipe:
    return
  merged = bool({"sft", "nll"} & terms(name))
  expected = Sft.MERGED if merged else Sft.SEPARATE
  assert expected in values(paper, "O2") or paper.cells["O2"].note


@pytest.mark.parametrize(("paper", "name"), ROWS)
def test_negative_only_methods_ignore_desirable_completions(paper, name):
  s = record(name)
  if objective(name).layout is not Layout.RATED:
    return

  def loss(logp_BKT):
    return _loss(name)(s.replace(logp_BKT=logp_BKT))[0]

  grad = np.abs(jax.grad(loss)(s.logp_BKT)).sum((1, 2))
  desirable = np.asarray(s.desirable_BK)[:, 0] > 0
  assert (values(paper, "RM4") == {Sign.NEGATIVE}) == (grad[desirable].sum() == 0)
