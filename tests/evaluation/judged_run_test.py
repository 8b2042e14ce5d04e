"""What is done with a finished online run, on one that is over in a moment."""

import dataclasses
import functools
import json
import math
import zlib

import numpy as np
import pytest

from xpo_jax.config.experiment import (
  AuxLossConfig,
  Data,
  Evaluation,
  MeshShape,
  ObjectiveConfig,
  Scratch,
)
from xpo_jax.config.on_policy import (
  Configured,
  Feedback,
  OnlineExperiment,
  Prompts,
  Sampling,
)
from xpo_jax.evaluation import evaluate_run, judged_run, measure_policy
from xpo_jax.feedback import rules
from xpo_jax.feedback.protocol import Scores, SelfFeedback
from xpo_jax.models import hf_checkpoint
from xpo_jax.models.config import Config
from xpo_jax.report import run_page
from xpo_jax.train import metrics, online, preflight, rollouts

MODEL = Config(
  vocab=320,
  width=8,
  layers=1,
  heads=2,
  kv_heads=2,
  head_dim=4,
  mlp_width=16,
  tied=True,
  remat=False,
)
RUN = OnlineExperiment(
  ObjectiveConfig("rloo"),
  Prompts("world:40"),
  Scratch(MODEL),
  Feedback(Configured(rules.matches, pattern="[aeiou]")),
  Sampling(completions=2, max_completion_tokens=4),
  iterations=2,
  prompts_per_iteration=4,
  evaluation=Evaluation(share=0.3, limit=4),
  mesh=MeshShape(data=1),
)
HOW = {
  "prompts": 4,
  "completions": 2,
  "max_completion_tokens": 4,
  "seed": 0,
  "batch": 4,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  run_dir = tmp_path_factory.mktemp("runs") / "run"
  result = online.train(RUN, run_dir, say=lambda text: None)
  assert result.finished
  return run_dir


def test_held_out_samples_of_the_start_and_the_end_are_kept(run):
  kept = sorted((run / online.HELD_OUT).iterdir())
  assert [path.name for path in kept] == ["000000.jsonl", "000002.jsonl"]
  first, last = map(rollouts.read, kept)
  assert first.prompts == last.prompts and len(first.prompts) == 4
  line = metrics.read(run)[-1]
  assert line["eval/reward"] == pytest.approx(last.reward_BK.mean())


def test_evaluation_is_by_the_runs_own_feedback(run):
  found = evaluate_run.evaluate_run(run, prompts=4, completions=2, batch=4)
  texts = [text for texts in found.policy.texts for text in texts]
  right = [any(letter in text for letter in "aeiou") for text in texts]
  assert found.measures["reward"].mean == pytest.approx(np.mean(right))
  content = json.loads((run / evaluate_run.FILE).read_text())
  assert "matches" in content["about"]["judge"]
  assert content["about"]["longest"] == RUN.sampling.max_completion_tokens
  judge, rates = judged_run.kept_win_rates(run)
  assert "matches" in judge and list(rates) == [0, 2]
  text = run_page.write(run).read_text()
  assert "Checkpoints against each other" in text and ">Evaluation</h2>" in text


def test_a_true_reward_judges_instead(run):
  def shortness(texts):
    return -np.array([len(text) for text in texts], np.float64)

  found = evaluate_run.evaluate_run(
    run, reward=shortness, prompts=4, completions=2, batch=4
  )
  assert found.policy.reward_PK.max() < 0
  judge, rates = judged_run.kept_win_rates(run)
  assert "shortness" in judge
  samples = [rollouts.read(run / online.HELD_OUT / f"00000{n}.jsonl") for n in (0, 2)]
  lengths = [np.array([[len(t) for t in x] for x in s.texts_BK]) for s in samples]
  want = measure_policy.win_rate(-lengths[1], -lengths[0]).mean()
  assert rates[2][0].mean == pytest.approx(want)


def share_of(letter, texts):
  return np.array([text.count(letter) for text in texts], np.float64)


class Count:
  """A reward that is an object."""

  def __call__(self, texts):
    return share_of("e", texts)


@pytest.mark.parametrize(
  ("reward", "name"),
  [
    (functools.partial(functools.partial(share_of), "e"), ":share_of"),
    (Count(), ":Count"),
    (Count().__call__, ":Count.__call__"),
  ],
)
def test_a_reward_of_any_kind_has_a_name(run, reward, name):
  by = judged_run.judge(RUN, hf_checkpoint.load(evaluate_run.policy_dir(run)), reward)
  assert by.name == __name__ + name
  np.testing.assert_array_equal(by.scorer(["be"], ["e"]).value_N, [2])


@pytest.mark.parametrize(
  "name", ["prompts", "completions", "max_completion_tokens", "batch"]
)
def test_sizes_below_1_are_refused_by_name(run, name):
  with pytest.raises(ValueError, match=rf"{name} is -3; .*at least 1"):
    evaluate_run.evaluate_run(run, **{name: -3})


def test_policies_are_judged_at_the_temperature_of_the_run(run):
  """Near 0 all samples of a prompt are the same; at 1 they are not."""
  cold = dataclasses.replace(
    RUN, sampling=dataclasses.replace(RUN.sampling, temperature=1e-4)
  )
  policy = hf_checkpoint.load(evaluate_run.policy_dir(run))
  by = judged_run.judge(RUN, policy, None)
  for experiment, same in ((RUN, False), (cold, True)):
    found = judged_run.policy_report(experiment, run, policy, by, datasets={}, **HOW)
    assert all(len(set(row)) == 1 for row in found.policy.tokens) == same
    assert all(len(set(row)) == 1 for row in found.reference.tokens) == same


def test_a_preference_gives_win_rates_against_the_start(run):
  def greater(prompts, first, second):  # by a number that texts seldom share
    del prompts
    found = ([zlib.crc32(text.encode()) for text in texts] for texts in (first, second))
    a_N, b_N = map(np.array, found)
    return Scores(((1 + np.sign(a_N - b_N)) / 2).astype(np.float32))

  by = judged_run.Judge("greater", preference=greater)
  policy = hf_checkpoint.load(evaluate_run.policy_dir(run))
  found = judged_run.policy_report(RUN, run, policy, by, datasets={}, **HOW)
  rival = [texts[0] for texts in found.reference.texts]
  wins = [
    greater(ours, ours, [theirs] * len(ours)).value_N
    for ours, theirs in zip(found.policy.texts, rival, strict=True)
  ]
  rate = found.measures["win_rate_vs_reference"].mean
  assert rate == pytest.approx(np.mean(wins)) and rate != 0.5
  assert "reward" not in found.measures
  rates = judged_run.checkpoint_win_rates(run, by)
  # So short a run leaves its first samples as they were: all of them draws.
  assert rates[0][2].mean == rates[2][0].mean == 0.5


def test_a_liking_for_what_is_shown_first_wins_nothing(run):
  def first_wins(prompts, first, second):
    return Scores(np.ones(len(prompts), np.float32))

  by = judged_run.Judge("first", preference=first_wins)
  policy = hf_checkpoint.load(evaluate_run.policy_dir(run))
  found = judged_run.policy_report(RUN, run, policy, by, datasets={}, **HOW)
  assert found.measures["win_rate_vs_reference"].mean == 0.5


def its_own_judge() -> SelfFeedback:
  """Scores by the sum of the policy's embedding: which policy judged can be told."""

  def make(model, params, tokenizer):
    del model, tokenizer
    total = float(np.sum(params["embedding"]))
    return lambda prompts, completions: Scores(np.full(len(prompts), total, np.float32))

  return SelfFeedback(make)


def test_the_finished_policy_judges_where_it_was_its_own_judge(run):
  alone = dataclasses.replace(RUN, feedback=Feedback(Configured(its_own_judge)))
  policy = hf_checkpoint.load(evaluate_run.policy_dir(run))
  scores = judged_run.judge(alone, policy, None).scorer(["x"], ["y"])
  want = np.sum(policy.params["lm"]["embedding"])
  np.testing.assert_allclose(scores.value_N, [want], rtol=1e-5)


def test_a_judge_that_abstains_is_refused(run):
  def silent(prompts, completions):
    return Scores(np.full(len(prompts), math.nan, np.float32))

  by = judged_run.Judge("silent", scorer=silent)
  policy = hf_checkpoint.load(evaluate_run.policy_dir(run))
  with pytest.raises(ValueError, match=r"abstains on 8 of 8 completions.*--reward"):
    judged_run.policy_report(RUN, run, policy, by, datasets={}, **HOW)


def test_run_without_held_out_prompts_is_refused(run):
  bare = dataclasses.replace(RUN, evaluation=Evaluation())
  policy = hf_checkpoint.load(evaluate_run.policy_dir(run))
  by = judged_run.judge(bare, policy, None)
  with pytest.raises(ValueError, match="holds no prompts out"):
    judged_run.policy_report(bare, run, policy, by, datasets={}, **HOW)


def test_policy_writes_in_the_runs_template(run):
  texts = evaluate_run.generate(
    run, ["the film"], completions=2, max_completion_tokens=4
  )
  assert len(texts) == 1 and len(texts[0]) == 2


def test_check_shows_the_budget_of_a_loop_and_samples_nothing(run, monkeypatch):
  monkeypatch.setattr(rollouts, "draw", None)
  (budget,) = preflight.check(RUN)
  assert budget.sizes["completions in all"] == 2 * 4 * 2
  assert budget.sizes["tokens sampled, at most"] == 2 * 4 * 2 * 4
  text = "\n".join(preflight.lines(budget))
  assert "rloo(beta=0.03)" in text and "held out 4" in text
  kept = json.loads((run / "data.json").read_text())
  assert f"prompts {kept['prompts']:,}" in text
  weights = 4 * budget.sizes["parameters"]  # and Adam's two moments in the arguments
  assert 3 * weights < budget.bytes["arguments"] < 4 * weights
  assert budget.bytes["between updates"] == weights  # the reference


def test_check_counts_parts_samplers_and_a_renewed_reference():
  data = Data("world:40", row_length=64, rows_per_step=16, bad_rows="drop")
  more = dataclasses.replace(
    RUN,
    objective=ObjectiveConfig("ppo"),
    sampling=dataclasses.replace(RUN.sampling, staleness=2),
    ref_update_every=1,
    evaluation=Evaluation(),
  )
  with_part = dataclasses.replace(
    more, parts=(AuxLossConfig(1.0, ObjectiveConfig("sft"), data),)
  )
  (budget,), (larger,) = map(preflight.check, (more, with_part))
  part = larger.bytes["arguments"] - budget.bytes["arguments"]
  assert part > 4 * 16 * 64  # the tokens of its batch
  weights = 4 * budget.sizes["parameters"]
  trained = 4 * budget.sizes["parameters trained"]  # with the value head
  assert budget.bytes["between updates"] == 2 * weights + 2 * trained


def test_check_makes_the_judge(run):
  missing = Configured(rules.matches, pattern="[")
  broken = dataclasses.replace(RUN, feedback=Feedback(missing))
  with pytest.raises(ValueError, match="pattern"):
    preflight.check(broken)
