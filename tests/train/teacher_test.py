"""Runs that learn from a teacher: on records and on rollouts, resumed, refused."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.quiet import quiet
from tests.train import compare
from tests.train.tiny_runs import MODEL
from xpo_jax.config import experiment as experiments
from xpo_jax.config.data import Data, Evaluation, Prompts
from xpo_jax.config.experiment import (
  AuxLossConfig,
  Experiment,
  Loop,
  MeshShape,
  Pretrained,
  Rollouts,
  Scratch,
  Stage,
)
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.data import synthetic_reviews
from xpo_jax.feedback import rules
from xpo_jax.models import hf_checkpoint, transformer
from xpo_jax.models.lora import Adapter
from xpo_jax.ops import token_stats
from xpo_jax.train import (
  loop,
  metrics,
  minibatches,
  preflight,
  records_program,
  rollouts,
  rollouts_program,
  run_directory,
)
from xpo_jax.train.loading import Inputs

LARGER = dataclasses.replace(MODEL, width=16, head_dim=8, layers=2)
PADDED = dataclasses.replace(LARGER, vocab=MODEL.vocab + 2)


def _save(place, config, tokenizer, seed):
  params = transformer.model(config).init(jax.random.key(seed))
  params = jax.tree.map(lambda x: 2 * x, params)
  hf_checkpoint.save(place, config, {"lm": params}, tokenizer=tokenizer)
  return Pretrained(str(place), remat="none")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A student, a larger teacher, one of another vocabulary, one of other tokens."""
  root = tmp_path_factory.mktemp("saved")
  texts = [prompt + text for prompt, text in synthetic_reviews.generate(30, seed=0)]
  tokenizer, other = (synthetic_reviews.train_bpe(texts, size) for size in (320, 310))
  return {
    "student": _save(root / "student", MODEL, tokenizer, 0),
    "teacher": _save(root / "teacher", LARGER, tokenizer, 1),
    "padded": _save(root / "padded", PADDED, tokenizer, 1),
    "other": _save(root / "other", LARGER, other, 1),
  }


def on_records(saved, objective="kd", **changes):
  run = Experiment(
    ObjectiveConfig(objective),
    Data("demos", rows_per_step=4, microbatches=2, row_length=192, epochs=9, steps=6),
    saved["student"],
    Optimizer(learning_rate=2e-2),
    Loop(log_every=1, eval_every=3, checkpoint_every=2),
    MeshShape(data=1),
    evaluation=Evaluation(share=0.2),
    teacher=saved["teacher"],
  )
  return experiments.replace(run, **changes)


def on_rollouts(saved, objective, teacher_share=0.0, **changes):
  """With all that a resume can get wrong."""
  run = Experiment(
    ObjectiveConfig(objective),
    Rollouts(
      prompts=Prompts("synthetic:30"),
      feedback=Feedback(Configured(rules.matches, pattern="[aeiou]")),
      sampling=Sampling(
        completions=2,
        max_completion_tokens=6,
        temperature=0.8,
        teacher_share=teacher_share,
      ),
      iterations=4,
      prompts_per_iteration=8,
      minibatches=2,
      ppo_epochs=2,
      microbatches=2,
    ),
    saved["student"],
    Optimizer(learning_rate=1e-2),
    Loop(log_every=1),
    MeshShape(data=1),
    evaluation=Evaluation(share=0.2, limit=4),
    teacher=saved["teacher"],
  )
  return experiments.replace(run, **changes)


def _stopped_and_resumed(experiment, run_dir, after, datasets):
  """Runs it, stopped by a signal after some steps, then to its end."""

  def say(text):
    if text.startswith((f"step {after}/", f"iteration {after}/")):
      os.kill(os.getpid(), signal.SIGTERM)

  assert not loop.train(experiment, run_dir, datasets=datasets, say=say).finished
  assert loop.resume(run_dir, datasets=datasets, say=quiet).finished


def test_student_comes_nearer_to_its_teacher_and_resumes_exactly(
  saved, datasets, tmp_path
):
  run = on_records(saved)
  result = loop.train(run, tmp_path / "whole", datasets=datasets, say=quiet)
  lines = metrics.read(tmp_path / "whole")
  assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
  assert lines[-1]["eval/seq_divergence"] < lines[2]["eval/seq_divergence"]
  assert result.finished
  _stopped_and_resumed(run, tmp_path / "run", 3, datasets)
  assert not compare.differences(tmp_path / "run", tmp_path / "whole")
  counts = json.loads((tmp_path / "whole" / "data.json").read_text())
  assert len(counts["teacher_sha256"]) == 64


def test_teacher_equal_to_the_student_has_nothing_to_teach(saved, datasets, tmp_path):
  run = on_records(saved, teacher=saved["student"], steps=1, epochs=1)
  loop.train(run, tmp_path / "run", datasets=datasets, say=quiet)
  (line,) = metrics.read(tmp_path / "run")
  assert line["loss"] == pytest.approx(0, abs=1e-6)
  assert line["grad_norm"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("changes", ["adapter", "mesh"])
def test_adapters_and_a_mesh_learn_from_the_same_teacher(
  changes, saved, datasets, tmp_path
):
  change = {
    "adapter": {"adapter": Adapter(rank=2, alpha=4.0, targets="query|value|up")},
    "mesh": {"mesh": MeshShape(data=2, fsdp=2, tensor=2), "rows_per_step": 8},
  }[changes]
  first = []
  for name, run in (
    ("changed", on_records(saved, **change)),
    ("plain", on_records(saved, rows_per_step=run_rows(change))),
  ):
    place = tmp_path / name
    place.mkdir()
    program = records_program.prepare(run, place, Inputs(), datasets, quiet)
    _, numbers = program.advance(program.state, 0)
    first.append(float(numbers["loss"]))
  assert first[0] == pytest.approx(first[1], rel=1e-5) and first[0] > 0.05


def run_rows(change):
  return change.get("rows_per_step", 4)


@pytest.mark.parametrize(
  ("objective", "share"),
  [("gkd", 0.0), ("on_policy_distillation", 0.0), ("minillm", 0.2)],
)
def test_run_on_rollouts_learns_from_the_teacher_and_resumes_exactly(
  objective, share, saved, datasets, tmp_path
):
  kd = AuxLossConfig(
    0.5, ObjectiveConfig("kd"), Data("demos", row_length=192, rows_per_step=4), "given"
  )
  run = on_rollouts(saved, objective, share, aux_losses=(kd,) * (objective == "gkd"))
  loop.train(run, tmp_path / "whole", datasets=datasets, say=quiet)
  lines = metrics.read(tmp_path / "whole")
  assert len(lines) == 4 and all(line["grad_norm"] > 0 for line in lines)
  assert ("loss/given/kd" in lines[0]) == (objective == "gkd")
  _stopped_and_resumed(run, tmp_path / "run", 2, datasets)
  assert not compare.differences(tmp_path / "run", tmp_path / "whole")


def test_recorded_teacher_is_at_the_temperature_and_of_the_teachers_weights(
  saved, tmp_path
):
  run = on_rollouts(saved, "on_policy_distillation")
  parts, first = rollouts_program.assemble(run, tmp_path, Inputs(), {}, quiet)
  # Recorded once an iteration: the step holds no teacher.
  assert not set(rollouts_program.frozen_roles(parts, parts.ref))
  (tmp_path / "live").mkdir()
  gkd = on_rollouts(saved, "gkd")
  live, _ = rollouts_program.assemble(gkd, tmp_path / "live", Inputs(), {}, quiet)
  assert set(rollouts_program.frozen_roles(live, live.ref)) == {"teacher"}
  drawn = rollouts.draw(
    parts.model,
    rollouts.SamplerParams(first.train.params["lm"]),
    parts.prompts,
    np.arange(3),
    run.data.sampling,
    parts.tokenizer,
    iteration=0,
    key=jax.random.key(1),
  )
  roles = {
    "policy": first.train.params,
    "ref": parts.ref,
    "teacher": parts.teacher.params,
  }
  values = minibatches.record(drawn, parts.record, roles, parts.sizes, parts.place)
  example = drawn.examples[1]
  tokens = np.concatenate([example.prompt, example.completions[1]])[None]
  rows = transformer.Rows.plain(tokens, np.ones(tokens.shape))
  teacher, lm = transformer.model(LARGER), parts.teacher.params["lm"]
  logits = teacher.hidden(lm, rows)[0] @ teacher.head(lm).T / 0.8
  logp = token_stats.logp(logits[:-1], jnp.asarray(tokens[0, 1:]))
  expected = logp[len(example.prompt) - 1 :]
  actual = values["teacher_logp_BKT"][1][1]
  np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_mixed_samples_have_the_weights_that_the_objective_computes(saved, tmp_path):
  """minillm's denominator is the log-prob of the distribution that was drawn from."""
  run = on_rollouts(saved, "minillm", 0.2)
  parts, first = rollouts_program.assemble(run, tmp_path, Inputs(), {}, quiet)

  def drawn(share):
    sampling = dataclasses.replace(run.data.sampling, teacher_share=share)
    return rollouts.draw(
      parts.model,
      rollouts.SamplerParams(first.train.params["lm"], teacher=parts.teacher),
      parts.prompts,
      np.arange(8),
      sampling,
      parts.tokenizer,
      iteration=0,
      key=jax.random.key(1),
    )

  mixed, own = drawn(0.7), drawn(0.0)
  assert any(
    a.tolist() != b.tolist()
    for x, y in zip(mixed.examples, own.examples, strict=True)
    for a, b in zip(x.completions, y.completions, strict=True)
  )
  # Recorded under the policy, whoever's token it is.
  roles = {"policy": first.train.params, "ref": first.train.params}
  roles["teacher"] = parts.teacher.params
  values = minibatches.record(mixed, parts.record, roles, parts.sizes, parts.place)
  for old, ref in zip(values["old_logp_BKT"], values["ref_logp_BKT"], strict=True):
    np.testing.assert_allclose(np.concatenate(old), np.concatenate(ref), atol=1e-4)


def test_stage_is_trained_as_a_teacher_and_named_in_the_digest(tmp_path, datasets):
  data = Data("demos", rows_per_step=4, row_length=192, steps=1)
  sft = Experiment(ObjectiveConfig("sft"), data, Scratch(MODEL), mesh=MeshShape(data=1))
  larger = dataclasses.replace(sft, start=Scratch(LARGER))
  run = dataclasses.replace(
    sft, objective=ObjectiveConfig("kd"), start=Stage(sft), teacher=Stage(larger)
  )
  result = loop.train(run, tmp_path / "run", datasets=datasets, say=quiet)
  assert result.finished
  assert len(list((tmp_path / "run" / run_directory.STAGES).iterdir())) == 2
  names = [budget.name for budget in preflight.check(run, datasets=datasets)]
  assert names == ["sft()", "sft()", "kd(interpolation=0.0)"]


def test_budget_counts_the_teacher_of_a_run_on_rollouts(saved):
  (held,) = preflight.check(on_rollouts(saved, "on_policy_distillation"))
  (plain,) = preflight.check(on_rollouts(saved, "grpo", teacher=None))
  teacher = hf_checkpoint.load(saved["teacher"].directory).params["lm"]
  size = sum(x.nbytes for x in jax.tree.leaves(teacher))
  assert held.bytes["between updates"] - plain.bytes["between updates"] == size


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    ({"teacher": None}, "kd learns from a teacher, and Experiment.teacher is None"),
    ({"objective": "sft"}, "teacher is set, and nothing of sft"),
    ({"teacher": "padded"}, "teacher has a vocabulary of 322, the start of 320"),
    ({"teacher": "other"}, "teacher .*other is of another tokenizer than the start's"),
    ({"objective": "gkd"}, "data are DEMO, the objective needs SAMPL"),
  ],
)
def test_teacher_that_cannot_teach_is_refused_before_a_step(
  changes, match, saved, datasets, tmp_path
):
  if isinstance(changes.get("teacher"), str):
    changes = {"teacher": saved[changes["teacher"]]}
  with pytest.raises(ValueError, match=match):
    run = on_records(saved, **changes)
    loop.train(run, tmp_path / "run", datasets=datasets, say=quiet)


@pytest.mark.parametrize(
  ("objective", "share", "match"),
  [
    ("minillm", 0.0, r"teacher_share is 0.0, and minillm corrects for 0.2; give both"),
    ("gkd", 0.2, r"teacher_share is 0.2, and gkd corrects for 0.0"),
    ("grpo", 0.2, r"teacher_share is 0.2, and grpo corrects for 0.0"),
  ],
)
def test_share_of_the_teacher_is_the_objectives(objective, share, match, saved):
  with pytest.raises(ValueError, match=match):
    rollouts_program.check(on_rollouts(saved, objective, share), {})


def test_one_completion_is_enough_for_a_teacher_and_not_for_a_group(saved):
  sampling = Sampling(completions=1)
  rollouts_program.check(on_rollouts(saved, "gkd", sampling=sampling), {})
  group = on_rollouts(saved, "grpo", sampling=sampling, teacher=None)
  with pytest.raises(ValueError, match="learns nothing from the rewards"):
    rollouts_program.check(group, {})
