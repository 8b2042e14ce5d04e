"""Recipes with AI feedback, trained small: who labels, who judges, what is learned."""

import dataclasses
import functools
import json
import math
import types
import zlib

import numpy as np
import pytest
import yaml
from scipy import special

from tests.studies.tiny_task import TINY
from xpo_jax import objectives
from xpo_jax.config import experiment as experiments
from xpo_jax.config import yaml_file
from xpo_jax.config.experiment import Experiment, Scratch, Stage
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.data import record_file
from xpo_jax.data.records import Demonstration, Pair
from xpo_jax.feedback import local, noisy_judge, protocol, reward_model
from xpo_jax.feedback.constitution import Revision
from xpo_jax.feedback.protocol import Scores, SelfFeedback
from xpo_jax.studies import find_recipe
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import (
  ai_labels_data,
  arms,
  feedback_accuracy,
  principles,
  revisions,
  samples,
  scaled_ratings,
  seed_data,
)
from xpo_jax.studies.multistage.samples import Sampled
from xpo_jax.train import loading, stages

_HERE = "tests.studies.multistage.ai_feedback_test"
REWARD = f"{_HERE}:hashed_reward"


def hashed_reward():
  """Tells any two texts apart: the tiny policy writes no word of a lexicon."""

  def score(prompts, completions):
    return Scores(np.array(list(map(_hash, prompts, completions)), np.float32))

  return score


def lengthening_critic():
  """Replaces a completion by "!", then adds one in every round."""

  def criticise(prompts, completions, draw):
    texts = ["!" if draw == 0 else text + "!" for text in completions]
    blank = ("",) * len(prompts)
    return Revision(blank, tuple(texts), blank)

  return criticise


def _hash(prompt: str, completion: str) -> float:
  return zlib.crc32((prompt + completion).encode()) % 997 / 997


def _task(**changes):
  return dataclasses.replace(TINY, reward=Configured(REWARD), **changes)


def _judge(**arguments) -> Configured:
  return Configured(noisy_judge.preference, truth=Configured(REWARD), **arguments)


def _rater(**arguments) -> Configured:
  return Configured(
    noisy_judge.scorer, truth=Configured(REWARD), least=0.0, most=1.0, **arguments
  )


@functools.cache
def _recipe(name):
  """A recipe's functions and its settings, small."""
  recipe = find_recipe.load(name)
  small = {
    "rlaif": lambda: {
      "judge": _judge(error=0.3, temperature=0.25),
      "rater": _rater(error=0.1),
      "iterations": 1,
      "prompts_per_iteration": 4,
      "epochs": 1,
      "task": _task(),
    },
    "constitutional_ai": lambda: {
      "critic": Configured(f"{_HERE}:lengthening_critic"),
      "judge": _judge(error=0.0, temperature=0.5),
      "reasoning_judge": _judge(error=0.0, temperature=0.05),
      "iterations": 1,
      "reward_epochs": 1,
      "task": _task(),
    },
    "self_rewarding": lambda: {
      "rater": _rater(error=0.1, levels=4),
      "seed_texts": 4,
      "seed_ratings": 40,
      "completions": 2,
      "prompts_per_round": 4,
      "prompts_per_step": 2,
      "epochs": 1,
      "task": _task(row_length=340),
    },
  }
  settings = dataclasses.replace(recipe.experiment, **small[name]())
  return types.SimpleNamespace(**recipe.run.__globals__), settings


def _run(name, run_dir):
  """Runs a small recipe; its functions, settings and rows by label."""
  recipe, settings = _recipe(name)
  assert recipe.run(settings, run_dir) == 0
  rows = json.loads((run_dir / arms.RESULTS).read_text())
  for row in rows:
    assert math.isfinite(row["reward"]["mean"]) and row["kl"]["mean"] > -1e-5
  return recipe, settings, {row["label"]: row for row in rows}


def _trained_on(run_dir, experiment):
  """The records that a finished run of a study was trained on."""
  return record_file.read(
    stages.directory(experiment, run_dir / "stages", {}) / loading.RECORDS
  )


def _every_arm():
  rlaif, settings = _recipe("rlaif")
  for label, reward in rlaif.ARMS.items():
    yield label, functools.partial(rlaif.arm, settings, reward)
  cai, settings = _recipe("constitutional_ai")
  yield "SL-CAI", functools.partial(cai.sl_cai, settings)
  for label, judge in cai.ARMS.items():
    yield label, functools.partial(cai.rl_cai, settings, judge)
  own, settings = _recipe("self_rewarding")
  yield "M1", functools.partial(own.m1, settings)
  for label, judge in own.ARMS.items():
    yield f"M3, {label}", functools.partial(own.dpo_round, settings, judge, 2)


ARMS = dict(_every_arm())


@pytest.mark.parametrize("label", ARMS)
def test_experiment_of_every_arm_survives_yaml(label):
  experiment = ARMS[label](0)
  text = yaml.safe_dump(yaml_file.to_dict(experiment))
  assert yaml_file.from_dict(Experiment, yaml.safe_load(text)) == experiment


def _seeds(value):
  """Every seed in an experiment but those of the shared start and of readers."""
  if isinstance(value, Stage) and isinstance(value.experiment.start, Scratch):
    return
  for name, item in experiments.children(value):
    if name == "seed":
      yield item
    elif name not in ("prompts", "texts"):
      yield from _seeds(item)


@pytest.mark.parametrize("label", ARMS)
def test_every_sample_label_and_step_of_an_arm_has_its_seed(label):
  assert set(_seeds(ARMS[label](7))) == {7}


def test_own_judge_and_texts_take_the_places_of_the_scripted_ones():
  recipe = find_recipe.load("rlaif", [f"judge={REWARD}", "source=t.jsonl", "policy=p"])
  settings = recipe.experiment
  assert settings.judge == Configured(REWARD)
  assert settings.rater.name.endswith("noisy_judge:scorer")
  labels = recipe.run.__globals__["true_labels"](settings, 0).arguments
  assert (labels["policy"], labels["prompts"].path) == ("p", "t.jsonl")
  assert labels["num_prompts"] == 4800


def test_rlaif_learns_from_true_labels_soft_labels_and_ratings(tmp_path):
  run_dir = tmp_path / "run"
  rlaif, settings, rows = _run("rlaif", run_dir)
  assert list(rows) == ["SFT", "RLHF", "RLAIF, distilled", "RLAIF, direct"]
  assert all(0 <= rows[label]["ranks"]["mean"] <= 1 for label in rlaif.ARMS)

  clean, distilled = (
    f(settings, 0) for f in (rlaif.clean_model, rlaif.distilled_model)
  )
  assert clean.objective == ObjectiveConfig("bradley_terry")
  assert distilled.objective == ObjectiveConfig(objectives.soft_bradley_terry)
  pairs, labelled = _trained_on(run_dir, clean), _trained_on(run_dir, distilled)
  for pair in pairs:
    assert _hash(pair.prompt, pair.chosen) > _hash(pair.prompt, pair.rejected)
    assert pair.probability is None
  true = {pair.uid: {pair.chosen, pair.rejected} for pair in pairs}
  for pair in labelled:
    assert true[pair.uid] == {pair.chosen, pair.rejected}
    gap = _hash(pair.prompt, pair.chosen) - _hash(pair.prompt, pair.rejected)
    assert pair.probability == pytest.approx(special.expit(abs(gap) / 0.25), abs=1e-4)
  kept, correct = ai_labels_data.label_accuracy(pairs, labelled)
  right = [_hash(p.prompt, p.chosen) > _hash(p.prompt, p.rejected) for p in labelled]
  assert (kept, correct) == (len(labelled) / len(pairs), np.mean(right))

  sources = {}
  for label, reward in rlaif.ARMS.items():
    experiment = rlaif.arm(settings, reward, 0)
    assert experiment.objective == ObjectiveConfig("reinforce", beta=settings.beta)
    assert experiment.data.sampling.completions == 1
    assert experiment.data.feedback.missing_eos == 1.0  # a deviation of the reward
    sources[label] = experiment.data.feedback.source
  assert sources["RLHF"] == Configured(reward_model.scorer, directory=Stage(clean))
  assert sources["RLAIF, distilled"].arguments["directory"] == Stage(distilled)
  assert sources["RLAIF, direct"].arguments["rater"] == _rater(error=0.1, seed=0)

  # Run again, the study trains nothing.
  count = len(list((run_dir / "stages").iterdir()))
  assert count == 1 + 2 + 3
  assert rlaif.run(settings, run_dir) == 0
  assert len(list((run_dir / "stages").iterdir())) == count


def _samples(monkeypatch, texts_BK):
  prompts = tuple(f"prompt {b}" for b in range(len(texts_BK)))
  monkeypatch.setattr(samples, "texts_of", lambda *given: prompts)
  monkeypatch.setattr(
    samples, "sample", lambda *given, **how: Sampled(prompts, texts_BK)
  )
  return prompts


def test_ratings_have_deviation_1_on_samples_of_the_policy(monkeypatch):
  prompts = _samples(monkeypatch, tuple((f" {n}",) for n in range(50)))
  points = noisy_judge.scorer(hashed_reward(), error=0.0, least=0.0, most=1.0)
  rate = scaled_ratings.unit_deviation(points, "", None, max_completion_tokens=1)
  texts = [f" {n}" for n in range(50)]
  assert rate(prompts, texts).value_N.std() == pytest.approx(1)
  np.testing.assert_allclose(  # no other change than the scale
    np.argsort(rate(prompts, texts).value_N, kind="stable"),
    np.argsort(points(prompts, texts).value_N, kind="stable"),
  )

  def indifferent(prompts, completions):
    return Scores(np.zeros(len(prompts), np.float32))

  with pytest.raises(ValueError, match="tell some of them apart"):
    scaled_ratings.unit_deviation(indifferent, "", None, max_completion_tokens=1)


def test_pairs_of_one_text_or_none_are_left_out(monkeypatch):
  texts_BK = ((" a", " b"), (" a", " a"), (" a", " "), (" c", " d"))
  _samples(monkeypatch, texts_BK)
  pairs = ai_labels_data.two_samples("", None, max_completion_tokens=1)
  assert [(p.chosen, p.rejected) for p in pairs] == [(" a", " b"), (" c", " d")]
  true = ai_labels_data.better_of_two(
    "", None, hashed_reward(), max_completion_tokens=1
  )
  assert [{p.chosen, p.rejected} for p in true] == [{" a", " b"}, {" c", " d"}]


def test_a_judge_that_decides_by_position_labels_nothing_in_both_orders():
  pairs = [Pair(str(n), "p", f" {n}", f" {-n}") for n in range(1, 9)]
  biased = noisy_judge.preference(hashed_reward(), position=1.0)
  assert len(ai_labels_data.judged(pairs, biased)) == len(pairs)
  assert ai_labels_data.judged(pairs, protocol.both_orders(biased)) == []


def test_constitutional_ai_imitates_revisions_then_learns_by_each_judge(tmp_path):
  run_dir = tmp_path / "run"
  cai, settings, rows = _run("constitutional_ai", run_dir)
  assert list(rows) == ["SFT", "SL-CAI", *cai.ARMS]
  assert all(row["harsh"]["mean"] >= 0 for row in rows.values())

  first = cai.sl_cai(settings, 0)
  assert first.objective == ObjectiveConfig("sft")
  assert first.start == tasks.start(settings.task)
  revised = _trained_on(run_dir, first)
  assert len({row.prompt for row in revised}) == settings.task.num_prompts
  for number in range(settings.rounds):  # each of what the one before left
    texts = {row.completion for row in revised if row.uid.endswith(f" {number}")}
    assert texts == {"!" * (1 + number)}
  assert len(revised) == settings.rounds * settings.task.num_prompts

  probabilities = {}
  for label, judge in cai.ARMS.items():
    model = cai.preference_model(settings, judge, 0)
    assert model.objective == ObjectiveConfig(objectives.soft_bradley_terry)
    policy = cai.rl_cai(settings, judge, 0)
    assert policy.objective.name == "ppo"
    assert policy.start == model.start == Stage(first)
    source = policy.data.feedback.source
    assert source == Configured(reward_model.scorer, directory=Stage(model))
    pairs = model.data.path.arguments["pairs"]
    assert pairs.arguments["policy"] == Stage(first)
    labelled = _trained_on(run_dir, model)
    probabilities[label] = {pair.uid: pair.probability for pair in labelled}
  soft, clamped, sure = probabilities.values()
  assert soft.keys() == clamped.keys() == sure.keys()
  for uid in soft:
    assert 0.5 < soft[uid] < sure[uid]
    assert clamped[uid] == pytest.approx(min(sure[uid], 0.6))


def test_rounds_without_a_revision_make_no_demonstration(monkeypatch):
  _samples(monkeypatch, ((" a",), (" b",), (" c",)))

  def critic(prompts, completions, draw):
    return Revision(("",) * 3, (None, " ", f" {draw}"), ("",) * 3)

  rows = revisions.demonstrations("", None, critic, max_completion_tokens=1, rounds=2)
  assert [(row.prompt, row.completion) for row in rows] == [
    ("prompt 2", " 0"),
    ("prompt 2", " 1"),
  ]


def test_score_by_round_is_a_mean_over_prompts():
  def words(prompts, completions):
    return Scores(np.array([len(text.split()) for text in completions], np.float32))

  rows = [
    Demonstration("prompt 0 revision 0", "p", " b c"),
    Demonstration("prompt 1 revision 0", "q", " e"),
    Demonstration("prompt 0 revision 1", "p", " d"),
  ]
  sampled = Sampled(("p", "q"), ((" b c d",), (" e f g",)))
  assert revisions.score_by_round(words, sampled, rows) == [3.0, 1.5, 0.5]


def test_each_pair_is_judged_by_one_of_two_principles():
  gentle, kind = " it runs for an hour", " a bad but great, wonderful, excellent film"
  harsh = " an awful, terrible, horrible film"
  prompts = [f"prompt {n}" for n in range(40)]

  def verdicts(first, second, **arguments):
    judge = principles.preference(temperature=0.01, **arguments)
    return judge(prompts, [first] * 40, [second] * 40).value_N.round()

  assert (verdicts(gentle, harsh, error=0.0) == 1).all()
  assert (verdicts(gentle, harsh, error=1.0) == 0).all()
  # Where the principles disagree, the drawn one decides.
  assert set(verdicts(gentle, kind, error=0.0)) == {0, 1}


def test_self_rewarding_rounds_start_where_the_one_before_ended(tmp_path):
  run_dir = tmp_path / "run"
  own, settings, rows = _run("self_rewarding", run_dir)
  by = [f"M{n}, {judge}" for judge in own.ARMS for n in (2, 3)]
  assert list(rows) == ["M0", "M1", *by]
  assert all(0 <= row["judging"]["mean"] <= 1 for row in rows.values())

  first = own.m1(settings, 0)
  assert first.objective == ObjectiveConfig("sft")
  texts, ratings = [], []
  for row in _trained_on(run_dir, first):
    (ratings if "Rating from" in row.prompt else texts).append(row)
  data = tasks.sft(settings.task).data
  corpus = loading.load(data, data, {}).records
  assert texts == list(corpus[: settings.seed_texts])
  assert all(row.prompt.endswith("Rating from 1 to 5:") for row in ratings)
  counts = {}
  for row in ratings:
    counts[row.completion] = counts.get(row.completion, 0) + 1
  assert (
    set(counts) <= {f" {n}" for n in range(1, 6)} and len(set(counts.values())) == 1
  )

  sources = {
    "own judge": Configured(local.self_rating, prompt="brief", levels=5),
    "scripted judge": _rater(error=0.1, levels=4, seed=0),
  }
  for label, judge in own.ARMS.items():
    one, two = (own.dpo_round(settings, judge, number, 0) for number in (1, 2))
    assert one.start == Stage(first) and two.start == Stage(one)
    for experiment in (one, two):
      assert experiment.objective == ObjectiveConfig("dpo", beta=0.1)
      assert experiment.reference is None  # the start
      assert experiment.data.feedback.source == sources[label]
  assert isinstance(sources["own judge"].build(), SelfFeedback)


def test_self_rewarding_refuses_rounds_that_steps_do_not_divide():
  _, settings = _recipe("self_rewarding")
  with pytest.raises(ValueError, match="prompts_per_step is 3"):
    dataclasses.replace(settings, prompts_per_step=3)


def test_points_beyond_the_levels_are_no_seed_ratings():
  data = tasks.sft(_task()).data
  rater = noisy_judge.scorer(hashed_reward(), least=0.0, most=1.0, levels=5)
  with pytest.raises(ValueError, match="from 0 to levels - 1 = 2"):
    seed_data.texts_and_ratings(data, rater, num_texts=4, num_ratings=40, levels=3)


def test_accuracy_pools_the_pairs_of_all_seeds():
  questions = {
    seed: feedback_accuracy.Questions(
      ("p", "p", "q"), (" a", " b", " c"), (" x", " y", " z"), np.array([0, 0, 1])
    )
    for seed in (0, 1)
  }

  def knows(prompts, completions):
    return Scores(np.array([text in " a b c" for text in completions], np.float32))

  def errs(prompts, completions):
    return Scores(-knows(prompts, completions).value_N)

  assert feedback_accuracy.accuracy({0: knows, 1: knows}, questions).mean == 1
  assert feedback_accuracy.accuracy({0: knows, 1: errs}, questions).mean == 0.5
