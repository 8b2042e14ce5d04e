"""A finished run on rollouts, tiny: evaluated, judged along its way, budgeted."""

import dataclasses
import functools
import json
import math
import shutil
import zlib

import numpy as np
import pytest

from xpo_jax.config import experiment as experiments
from xpo_jax.config import yaml_file
from xpo_jax.config.data import Data, Evaluation, Prompts
from xpo_jax.config.experiment import (
  AuxLossConfig,
  Experiment,
  MeshShape,
  Rollouts,
  Scratch,
)
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.data.render import Template
from xpo_jax.evaluation import checkpoint_win_rates, evaluate_run, measure_policy
from xpo_jax.feedback import rules
from xpo_jax.feedback.protocol import Scores, SelfFeedback
from xpo_jax.models import hf_checkpoint
from xpo_jax.models.config import Config
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.report import run_page
from xpo_jax.train import loop, metrics, preflight, rollouts, run_directory

MODEL = Config(
  vocab=320,
  width=8,
  layers=1,
  heads=2,
  kv_heads=2,
  head_dim=4,
  mlp_width=16,
  tied=True,
  remat="none",
)
RUN = Experiment(
  objective=ObjectiveConfig("rloo"),
  data=Rollouts(
    prompts=Prompts("synthetic:40"),
    feedback=Feedback(Configured(rules.matches, pattern="[aeiou]")),
    sampling=Sampling(completions=2, max_completion_tokens=4),
    iterations=2,
    prompts_per_iteration=4,
  ),
  start=Scratch(MODEL),
  evaluation=Evaluation(share=0.3, limit=4),
  mesh=MeshShape(data=1),
)
HOW = {"prompts": 4, "completions": 2, "seed": 0, "batch": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  run_dir = tmp_path_factory.mktemp("runs") / "run"
  result = loop.train(RUN, run_dir, say=lambda text: None)
  assert result.finished
  return run_dir


def _copy(run, tmp_path, **changes):
  """The run as if its experiment had been another."""
  run_dir = tmp_path / f"run {len(list(tmp_path.iterdir()))}"
  shutil.copytree(run, run_dir)
  yaml_file.write(run_dir, experiments.replace(RUN, **changes))
  return run_dir


def _policy(run):
  return hf_checkpoint.load(evaluate_run.policy_dir(run))


def test_held_out_samples_of_the_start_and_the_end_are_kept(run):
  files = sorted((run / run_directory.HELD_OUT).iterdir())
  assert [path.name for path in files] == ["000000.jsonl", "000002.jsonl"]
  first, last = map(rollouts.read, files)
  assert first.prompts == last.prompts and len(first.prompts) == 4
  line = metrics.read(run)[-1]
  assert line["eval/reward"] == pytest.approx(last.reward_BK.mean())


def test_evaluation_is_by_the_runs_own_feedback(run):
  report = evaluate_run.evaluate_run(run, **HOW)
  texts = [text for texts in report.policy.texts for text in texts]
  right = [any(letter in text for letter in "aeiou") for text in texts]
  assert report.measures["reward"].mean == pytest.approx(np.mean(right))
  content = json.loads((run / evaluate_run.FILE).read_text())
  assert "matches" in content["about"]["judge"]
  assert content["about"]["longest"] == RUN.data.sampling.max_completion_tokens
  judge, rates = checkpoint_win_rates.read(run)
  assert "matches" in judge and list(rates) == [0, 2]
  text = run_page.write(run).read_text()
  assert "Checkpoints against each other" in text and ">Evaluation</h2>" in text


def test_a_true_reward_judges_instead(run):
  def shortness(texts):
    return -np.array([len(text) for text in texts], np.float64)

  report = evaluate_run.evaluate_run(run, reward=shortness, **HOW)
  assert report.policy.reward_PK.max() < 0
  judge, rates = checkpoint_win_rates.read(run)
  assert "shortness" in judge
  directory = run / run_directory.HELD_OUT
  samples = [rollouts.read(directory / f"00000{n}.jsonl") for n in (0, 2)]
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
  judge = checkpoint_win_rates.judge(RUN.data.feedback, _policy(run), reward)
  assert judge.name == __name__ + name
  np.testing.assert_array_equal(judge.scorer(["be"], ["e"]).value_N, [2])


@pytest.mark.parametrize(
  "name", ["prompts", "completions", "max_completion_tokens", "batch"]
)
def test_sizes_below_1_are_refused_by_name(run, name):
  with pytest.raises(ValueError, match=rf"{name} is -3; .*at least 1"):
    evaluate_run.evaluate_run(run, **{name: -3})


def test_policies_are_judged_at_the_temperature_of_the_run(run, tmp_path):
  """Near 0 all samples of a prompt are the same; at 1 they are not."""
  sampling = dataclasses.replace(RUN.data.sampling, temperature=1e-4)
  for run_dir, same in ((run, False), (_copy(run, tmp_path, sampling=sampling), True)):
    report = evaluate_run.evaluate_run(run_dir, **HOW)
    assert all(len(set(row)) == 1 for row in report.policy.tokens) == same
    assert all(len(set(row)) == 1 for row in report.reference.tokens) == same


def greater():
  """Prefers by a number that texts seldom share."""

  def preference(prompts, first, second):
    del prompts
    a_N, b_N = (
      np.array([zlib.crc32(text.encode()) for text in texts])
      for texts in (first, second)
    )
    return Scores(((1 + np.sign(a_N - b_N)) / 2).astype(np.float32))

  return preference


def shown_first():
  """Prefers what is shown first."""
  return lambda prompts, *sides: Scores(np.ones(len(prompts), np.float32))


def silent():
  """Abstains always."""
  return lambda prompts, texts: Scores(np.full(len(prompts), math.nan, np.float32))


def _by(function, kind="win_rates"):
  return Feedback(Configured(function), kind=kind)


def test_a_preference_gives_win_rates_against_the_start(run, tmp_path):
  run_dir = _copy(run, tmp_path, feedback=_by(greater))
  report = evaluate_run.evaluate_run(run_dir, **HOW)
  opponents = [texts[0] for texts in report.reference.texts]
  wins = [
    greater()(ours, ours, [theirs] * len(ours)).value_N
    for ours, theirs in zip(report.policy.texts, opponents, strict=True)
  ]
  rate = report.measures["win_rate_vs_reference"].mean
  assert rate == pytest.approx(np.mean(wins)) and rate != 0.5
  assert "reward" not in report.measures
  judge, rates = checkpoint_win_rates.read(run_dir)
  assert judge.endswith(":greater")
  # So short a run leaves its first samples as they were: all of them draws.
  assert rates[0][2].mean == rates[2][0].mean == 0.5


def test_a_preference_for_what_is_shown_first_wins_nothing(run, tmp_path):
  run_dir = _copy(run, tmp_path, feedback=_by(shown_first))
  report = evaluate_run.evaluate_run(run_dir, **HOW)
  assert report.measures["win_rate_vs_reference"].mean == 0.5


def its_own_judge() -> SelfFeedback:
  """Scores by the sum of the policy's embedding: which policy judged can be told."""

  def make(model, params, tokenizer):
    del model, tokenizer
    total = float(np.sum(params["embedding"]))
    return lambda prompts, completions: Scores(np.full(len(prompts), total, np.float32))

  return SelfFeedback(make)


def test_the_finished_policy_judges_where_it_was_its_own_judge(run):
  policy = _policy(run)
  judge = checkpoint_win_rates.judge(_by(its_own_judge, "scores"), policy, None)
  want = np.sum(policy.params["lm"]["embedding"])
  np.testing.assert_allclose(judge.scorer(["x"], ["y"]).value_N, [want], rtol=1e-5)


def test_where_nobody_judges_there_is_no_judge(run):
  assert checkpoint_win_rates.judge(None, _policy(run), None) is None


def test_a_judge_that_abstains_is_refused(run, tmp_path):
  run_dir = _copy(run, tmp_path, feedback=_by(silent, "scores"))
  with pytest.raises(ValueError, match=r"abstains on 8 of 8 completions.*--reward"):
    evaluate_run.evaluate_run(run_dir, **HOW)


def test_run_without_held_out_prompts_is_refused(run, tmp_path):
  run_dir = _copy(run, tmp_path, evaluation=Evaluation())
  with pytest.raises(ValueError, match="holds no prompts out"):
    evaluate_run.evaluate_run(run_dir, **HOW)


def test_policy_writes_in_the_runs_template(run, tmp_path):
  prompts = Prompts("synthetic:40", template=Template("Q: ", " A:"))
  templated = _copy(run, tmp_path, prompts=prompts)
  config = GenerationConfig(8, 4, temperature=0.1)
  texts = evaluate_run.generate(templated, ["the film"], config)
  assert len(texts) == 1 and len(texts[0]) == 4
  assert texts == evaluate_run.generate(run, ["Q: the film A:"], config)
  for ignored in ("the film", "Q: the film", "the film A:"):
    assert texts != evaluate_run.generate(run, [ignored], config)


def test_check_shows_the_budget_of_a_loop_and_samples_nothing(run, monkeypatch):
  monkeypatch.setattr(rollouts, "draw", None)
  (budget,) = preflight.check(RUN)
  assert budget.sizes["completions in all"] == 2 * 4 * 2
  assert budget.sizes["tokens sampled, at most"] == 2 * 4 * 2 * 4
  text = "\n".join(preflight.lines(budget))
  assert "rloo(beta=0.03)" in text and "held-out prompts 4" in text
  counts = json.loads((run / "data.json").read_text())
  assert f"prompts {counts['prompts']:,}" in text
  weights = 4 * budget.sizes["parameters"]  # and Adam's two moments in the arguments
  assert 3 * weights < budget.bytes["arguments"] < 4 * weights
  assert budget.bytes["between updates"] == weights  # the reference


def test_check_counts_aux_losses_samplers_and_a_reference_that_is_updated():
  data = Data("synthetic:40", row_length=64, rows_per_step=16, bad_rows="drop")
  more = experiments.replace(
    RUN,
    objective=ObjectiveConfig("ppo"),
    sampling=dataclasses.replace(RUN.data.sampling, staleness=2),
    ref_update_every=1,
    evaluation=Evaluation(),
  )
  with_aux_loss = experiments.replace(
    more, aux_losses=(AuxLossConfig(1.0, ObjectiveConfig("sft"), data),)
  )
  (budget,), (larger,) = map(preflight.check, (more, with_aux_loss))
  batches = larger.bytes["arguments"] - budget.bytes["arguments"]
  assert batches > 4 * 16 * 64  # their tokens
  weights = 4 * budget.sizes["parameters"]
  trained = 4 * budget.sizes["parameters trained"]  # with the value head
  assert budget.bytes["between updates"] == 2 * weights + 2 * trained


def test_check_makes_the_judge():
  missing = Configured(rules.matches, pattern="[")
  broken = experiments.replace(RUN, feedback=Feedback(missing))
  with pytest.raises(ValueError, match="pattern"):
    preflight.check(broken)
