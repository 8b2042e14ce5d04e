"""Distillation on a task, made small: recipes, the table, the KL to a teacher."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.quiet import quiet
from tests.studies import hash_reward
from tests.studies.tiny_task import TINY
from xpo_jax.config import yaml_file
from xpo_jax.config.experiment import Experiment, Pretrained, Stage
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.models import hf_checkpoint, transformer
from xpo_jax.studies import distillation, find_recipe
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import arms, samples
from xpo_jax.studies.task import Task
from xpo_jax.train import loop, metrics, records_program, run_directory

TASK = dataclasses.replace(TINY, reward=Configured(hash_reward.scorer))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  """A larger policy of the same texts, so of the same tokenizer."""
  run_dir = tmp_path_factory.mktemp("runs") / "teacher"
  loop.train(tasks.sft(dataclasses.replace(TASK, width=24)), run_dir, say=quiet)
  return str(run_dir / run_directory.POLICY)


def _table(task):
  settings = find_recipe.load("agarwal2023_distillation").experiment
  return dataclasses.replace(settings, task=task)


def test_table_trains_every_student_and_measures_it_by_the_teacher(teacher, tmp_path):
  recipe = find_recipe.load("agarwal2023_distillation", [f"teacher={teacher}"])
  settings = dataclasses.replace(
    recipe.experiment, interpolations=(0.5,), updates=2, task=TASK
  )
  assert recipe.run(settings, tmp_path / "study") == 0
  rows = json.loads((tmp_path / "study" / arms.RESULTS).read_text(encoding="utf-8"))
  labels = [row["label"] for row in rows]
  assert labels == [
    "teacher",
    "start",
    "teacher's completions, JSD(0.5)",
    "student's completions, JSD(0.5)",
    "both, lambda 0.5",
    "on-policy distillation",
    "MiniLLM",
  ]
  assert rows[0]["kl"]["mean"] == pytest.approx(0, abs=1e-5)  # to itself
  for row in rows[1:]:
    assert row["to_teacher"]["mean"] > 0 and row["from_teacher"]["mean"] > 0
  lines = metrics.read(
    arms.train(
      arms.open_study(settings, tmp_path / "study", quiet),
      recipe.arms(settings)["both, lambda 0.5, seed 0"],
    )
  )
  assert {"loss/gkd", "loss/given/kd"} <= set(lines[0])


def test_kl_of_sequences_is_that_of_the_evaluation(teacher, tmp_path):
  study = arms.open_study(_table(TASK), tmp_path / "study", quiet)
  of = hf_checkpoint.load(teacher, remat="none")
  other = of._replace(params=jax.tree.map(lambda x: 1.5 * x, of.params))
  hf_checkpoint.save(
    tmp_path / "other", other.config, other.params, tokenizer=of.tokenizer
  )
  draws = arms.judge(study, of.params, 0, reference=tmp_path / "other")
  kl_PK = distillation.sequence_kl(of, other, draws)
  np.testing.assert_allclose(kl_PK, draws.kl_PK, rtol=1e-4, atol=1e-5)
  assert kl_PK.mean() > 0.01
  np.testing.assert_allclose(distillation.sequence_kl(of, of, draws), 0, atol=1e-5)


def test_kl_of_sequences_between_two_sizes_is_that_of_their_logits(teacher, tmp_path):
  of = hf_checkpoint.load(teacher, remat="none")
  model = transformer.model(tasks.small_model(of.config.vocab, 16, 1))
  params = {"lm": model.init(jax.random.key(4))}
  other = of._replace(config=model.config, params=params)
  study = arms.open_study(_table(TASK), tmp_path / "study", quiet)
  draws = arms.judge(study, of.params, 0, reference=teacher)
  tokens, ended = list(draws.tokens[1][0]), draws.ended_PK[1, 0]
  tokens += [of.tokenizer.eos_token_id] * bool(ended)
  (prompt,) = samples.encode(of.tokenizer, draws.prompts[1:2])
  whole = np.array([[*prompt, *tokens]])
  rows = transformer.Rows.plain(whole, np.ones(whole.shape))

  def logp(decoder, lm):
    lm = jax.device_put(lm)
    logits = decoder.hidden(lm, rows)[0] @ decoder.head(lm).T
    return np.float64(jax.nn.log_softmax(logits))[len(prompt) - 1 : -1]

  p, q = logp(transformer.model(of.config), of.params["lm"]), logp(model, params["lm"])
  kl_PK = distillation.sequence_kl(of, other, draws)
  expected = (np.exp(p) * (p - q)).sum()
  assert kl_PK[1, 0] == pytest.approx(expected, rel=1e-4) and expected > 0.01


def test_teacher_starts_larger_or_as_the_policy_that_is_given():
  made = distillation.teacher(Task())
  assert made.experiment.objective.name == "grpo"
  assert made.experiment.start.experiment.start.model.width == distillation.WIDTH
  given = distillation.teacher(Task("mine.jsonl", policy="gpt2"))
  assert given.experiment.start == Pretrained("gpt2", remat="none")
  assert distillation.teacher(Task(), "mine") == Pretrained("mine", remat="none")


def test_recipe_of_given_completions_samples_the_teacher():
  experiment = find_recipe.load("kd").experiment
  assert isinstance(experiment, Experiment) and isinstance(experiment.teacher, Stage)
  assert experiment.data.path.arguments["policy"] == experiment.teacher
  records_program.check(experiment, {})
  plain = json.loads(json.dumps(yaml_file.to_dict(experiment)))
  assert yaml_file.from_dict(Experiment, plain) == experiment
  mine = find_recipe.load("kd", ["policy=gpt2", "teacher=gpt2-xl"]).experiment
  assert mine.start == Pretrained("gpt2", remat="none")
  assert mine.data.path.arguments["policy"] == "gpt2-xl"


def test_fraction_of_own_completions_weighs_the_fixed_ones():
  def losses(*arguments):
    return find_recipe.load("gkd", list(arguments)).experiment.aux_losses

  assert losses() == ()
  (given,) = losses("fraction=0.25")
  assert given.weight == 3 and given.objective == ObjectiveConfig(
    "kd", interpolation=0.5
  )
  for bad in ("0", "1.5", "nan", "half"):
    with pytest.raises(ValueError, match="fraction"):
      losses(f"fraction={bad}")
