"""Staged recipes with AI feedback in miniature: who labels, judges, and is judged."""

import dataclasses
import json
import math

import pytest

from tests.studies.multistage import staged_test
from xpo_jax import objectives
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.feedback import local, noisy_judge, reward_model
from xpo_jax.studies import find_recipe
from xpo_jax.studies.multistage import staged

stages = staged_test.stages
SMALLER = {
  "rlaif": {"iterations": 1, "position": 0.0},
  "constitutional_ai": {"iterations": 1},
  "self_rewarding": {"seed_answers": 4, "seed_ratings": 30},
}


def _run(name, run_dir):
  recipe = find_recipe.load(name)
  small = dataclasses.replace(
    recipe.experiment, world=staged_test.TINY, **SMALLER[name]
  )
  assert recipe.run(small, run_dir) == 0
  rows = json.loads((run_dir / staged.RESULTS).read_text())
  assert all(math.isfinite(row["reward"]["mean"]) for row in rows)
  return {row["label"]: row for row in rows}


def _factory(make):
  return f"{make.__module__}:{make.__name__}"


def test_rlaif_learns_from_clean_soft_and_no_labels(stages, tmp_path):
  rows = _run("rlaif", tmp_path / "run")
  assert set(rows) == {"SFT", "RLHF", "RLAIF, distilled", "RLAIF, direct"}
  assert all(0 <= rows[label]["ranks"]["mean"] <= 1 for label in set(rows) - {"SFT"})
  (_, hard, clean, _), one, (_, soft, labelled, _), two, three = stages
  assert (hard, soft) == (
    ObjectiveConfig("bradley_terry"),
    ObjectiveConfig(objectives.soft_bradley_terry),
  )
  staged_test._assert_better_is_chosen(clean)
  assert {row.probability for row in clean} == {None}
  assert {row.prompt for row in labelled} <= {row.prompt for row in clean}
  assert all(0.5 < row.probability < 1 for row in labelled)
  for stage in (one, two, three):
    assert stage[1].name == "reinforce"
    assert stage[3]["sampling"].completions == 1
  sources = [stage[3]["feedback"].source for stage in (one, two, three)]
  model, rater = _factory(reward_model.scorer), _factory(noisy_judge.scorer)
  assert [source.name for source in sources] == [model, model, rater]
  assert "reward-rlaif" in sources[1].hparams["directory"]
  # A deviation of the rating, in points, is worth the same beta.
  beta = [stage[1].hparams["beta"] for stage in (one, two, three)]
  assert beta[0] == beta[1] == pytest.approx(beta[2] / three[3]["feedback"].missing_eos)


def test_constitutional_ai_imitates_revisions_then_clamps_sure_labels(stages, tmp_path):
  rows = _run("constitutional_ai", tmp_path / "run")
  arms = ["RL-CAI", "RL-CAI, reasoning", "the same, unclamped"]
  assert set(rows) == {"SFT", "SL-CAI", *arms}
  assert all(row["harsh"]["mean"] >= 0 for row in rows.values())
  (name, sft, revisions, _), *rest = stages
  assert (name, sft) == ("sl-cai-0", ObjectiveConfig("sft"))
  prompts = {row.prompt for row in revisions}
  assert len(revisions) == 4 * len(prompts)  # every round of every prompt
  rewards, policies = rest[::2], rest[1::2]
  assert len(rewards) == len(policies) == 3
  for reward, policy in zip(rewards, policies, strict=True):
    assert reward[1] == ObjectiveConfig(objectives.soft_bradley_terry)
    assert (policy[1].name, policy[3]["start"]) == ("ppo", "sl-cai-0")
    assert policy[3]["feedback"].source.hparams["directory"].endswith(reward[0])
  soft, clamped, sure = ([row.probability for row in one[2]] for one in rewards)
  assert max(clamped) == pytest.approx(0.6) and len(clamped) == len(sure)
  assert max(soft) < max(sure)


def test_self_rewarding_rounds_start_where_the_one_before_ended(stages, tmp_path):
  rows = _run("self_rewarding", tmp_path / "run")
  by = [f"M{n}, {who} judge" for who in ("own", "scripted") for n in (2, 3)]
  assert set(rows) == {"M0", "M1", *by}
  assert all(0 <= row["judging"]["mean"] <= 1 for row in rows.values())
  (_, sft, seed_rows, _), *rounds = stages
  ratings = [row for row in seed_rows if row.completion.strip().isdigit()]
  assert sft == ObjectiveConfig("sft") and len(seed_rows) - len(ratings) == 4
  assert all(row.prompt.endswith("Rating from 1 to 5:") for row in ratings)
  assert [stage[3]["start"] for stage in rounds] == [
    "M1-0",
    "M2-own-0",
    "M1-0",
    "M2-scripted-0",
  ]
  assert [stage[1] for stage in rounds] == 4 * [ObjectiveConfig("dpo", beta=0.1)]
  judges = [stage[3]["feedback"].source.name for stage in rounds]
  own, other = _factory(local.self_rating), _factory(noisy_judge.scorer)
  assert judges == [own, own, other, other]
