"""Objectives that read references of their own: D2O's two, in a run on records."""

import json
import math

import jax
import pytest

from tests.quiet import quiet
from tests.train import compare
from tests.train.tiny_runs import MODEL
from xpo_jax.config import experiment as experiments
from xpo_jax.config import yaml_file
from xpo_jax.config.data import Data
from xpo_jax.config.experiment import (
  Experiment,
  Loop,
  MeshShape,
  NamedReference,
  Pretrained,
  Scratch,
  Stage,
)
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.data import synthetic_reviews
from xpo_jax.data.records import Rated
from xpo_jax.models import hf_checkpoint, transformer
from xpo_jax.studies import objective_recipe
from xpo_jax.train import loop, metrics, preflight, stages


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A start and another model of its tokenizer."""
  root = tmp_path_factory.mktemp("saved")
  texts = [prompt + text for prompt, text in synthetic_reviews.generate(30, seed=0)]
  tokenizer = synthetic_reviews.train_bpe(texts, MODEL.vocab)
  for seed, name in enumerate(("start", "other")):
    params = {"lm": transformer.model(MODEL).init(jax.random.key(seed))}
    hf_checkpoint.save(root / name, MODEL, params, tokenizer=tokenizer)
  return {name: str(root / name) for name in ("start", "other")}


@pytest.fixture(scope="module")
def rows():
  """Two samples and an undesirable completion of each prompt."""
  texts = synthetic_reviews.generate(30, seed=1)
  return [
    Rated(f"{n}/{k}", f"number {n} is", texts[3 * n + k][1], desirable=k < 2)
    for n in range(8)
    for k in range(3)
  ]


def _run(saved, ref_minus, ref_plus):
  return Experiment(
    ObjectiveConfig("d2o"),
    Data(
      "rows",
      rows_per_step=4,
      row_length=256,
      groups_per_row=1,
      conversion=Configured("xpo_jax.data.transforms.conversions:lists_by_prompt"),
      steps=2,
    ),
    Pretrained(saved["start"], remat="none"),
    Optimizer(learning_rate=1e-3),
    Loop(log_every=1, checkpoint_every=1),
    MeshShape(data=1),
    references=(
      NamedReference("ref_minus", Pretrained(saved[ref_minus], remat="none")),
      NamedReference("ref_plus", Pretrained(saved[ref_plus], remat="none")),
    ),
  )


def test_d2o_learns_against_its_two_references(saved, rows, tmp_path):
  """The first loss is log 2 where both are the start, and each of them is read."""
  datasets, losses = {"rows": rows}, {}
  for pair in (("start", "start"), ("other", "start"), ("start", "other")):
    run_dir = tmp_path / "-".join(pair)
    run = _run(saved, *pair)
    loop.train(run, run_dir, datasets=datasets, say=quiet)
    losses[pair] = metrics.read(run_dir)[0]["loss"]
  assert losses["start", "start"] == pytest.approx(math.log(2), abs=1e-6)
  assert len({round(loss, 6) for loss in losses.values()}) == 3
  counts = json.loads((run_dir / "data.json").read_text())
  assert counts["ref_minus_sha256"] != counts["ref_plus_sha256"]
  assert counts["ref_minus_sha256"] == counts["start_sha256"]


def test_run_is_the_same_again_and_has_a_budget(saved, rows, tmp_path):
  run, datasets = _run(saved, "other", "start"), {"rows": rows}
  for name in ("one", "two"):
    loop.train(run, tmp_path / name, datasets=datasets, say=quiet)
  assert compare.differences(tmp_path / "one", tmp_path / "two") == []
  assert yaml_file.read(tmp_path / "one")[0] == run
  (budget,) = preflight.check(run, datasets=datasets)
  # Policy, two moments and both references at least.
  assert budget.bytes["arguments"] > 4 * 5 * budget.sizes["parameters"]


@pytest.mark.parametrize(
  ("roles", "message"),
  [
    ((), r"reads the reference 'ref_minus', and Experiment.references has none"),
    (("ref_minus",), r"'ref_plus', .* --references ref_plus=DIR"),
    (("ref_minus", "ref_plus", "ref_x"), r"has \[.*'ref_x'\], and d2o reads"),
  ],
)
def test_roles_that_do_not_fit_are_refused(saved, rows, tmp_path, roles, message):
  weights = Pretrained(saved["start"])
  given = tuple(NamedReference(role, weights) for role in roles)
  run = experiments.replace(_run(saved, "start", "start"), references=given)
  with pytest.raises(ValueError, match=message):
    loop.train(run, tmp_path / "run", datasets={"rows": rows}, say=quiet)


def test_flags_name_the_references(saved):
  words = ["--model", saved["start"], "--data", "rows.jsonl", "--references"]
  words += [f"ref_minus={saved['other']}", f"ref_plus={saved['start']}"]
  run = objective_recipe.experiment("d2o", words, "xpo train d2o")
  found = {one.role: one.weights.directory for one in run.references}
  assert found == {"ref_minus": saved["other"], "ref_plus": saved["start"]}
  with pytest.raises(ValueError, match=r"--references DIR: write ROLE=DIR"):
    objective_recipe.experiment("d2o", [*words[:5], "DIR"], "xpo train d2o")


def test_stage_becomes_the_directory_of_its_policy(saved, tmp_path):
  sft = Experiment(ObjectiveConfig("sft"), Data("rows"), Scratch(MODEL))
  run = experiments.replace(
    _run(saved, "start", "start"), references=(NamedReference("ref_x", Stage(sft)),)
  )
  assert [where for where, _ in experiments.stages(run)] == ["references.0.weights"]
  (one,) = stages.replaced(run, lambda stage: tmp_path / "policy").references
  assert one.weights == Pretrained(str(tmp_path / "policy"), remat="none")
