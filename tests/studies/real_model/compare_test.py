"""Recipe and cells of a real model, on a tiny one: train once, judge, decide."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from tests import tiny_policy
from tests.studies import hash_reward
from xpo_jax.config.factories import Configured
from xpo_jax.models import hf_checkpoint
from xpo_jax.models.lora import Adapter
from xpo_jax.studies import find_recipe
from xpo_jax.studies.multistage import arms
from xpo_jax.studies.real_model import cells, runs
from xpo_jax.train import loop

SIZES = {
  "max_completion_tokens": 12,
  "row_length": 96,
  "num_prompts": 8,
  "rows": 2,
  "learning_rate": 1e-2,
  "eval_prompts": 3,
  "eval_samples": 2,
  "adapter": Adapter(rank=2, targets="down"),
  "reward": Configured(hash_reward.scorer),
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
  """An untrained model whose completions end: about one token in five is EOS."""
  folder = tmp_path_factory.mktemp("policies")
  loaded = hf_checkpoint.load(tiny_policy.write(folder / "untrained"))
  lm = dict(loaded.params["lm"])
  lm["embedding"] = lm["embedding"] + 3.0  # a direction that all states share
  eos = loaded.tokenizer.eos_token_id
  lm["head"] = lm["head"].copy()
  lm["head"][eos] += 0.5
  return hf_checkpoint.save(
    folder / "policy", loaded.config, {"lm": lm}, tokenizer=loaded.tokenizer
  )


@pytest.fixture(scope="module")
def study(policy, tmp_path_factory):
  """The recipe made small, run once: settings, directory, exit code, output."""
  patch = pytest.MonkeyPatch()
  patch.setattr(runs, "MIN_GAP", 0.0)
  patch.setattr(runs, "ITERATIONS", 2)
  patch.setattr(runs, "PROMPTS_PER_ITERATION", 4)
  recipe = find_recipe.load("real_model", [f"policy={policy}"])
  task = dataclasses.replace(recipe.experiment.task, **SIZES)
  settings = dataclasses.replace(recipe.experiment, task=task)
  run_dir = tmp_path_factory.mktemp("studies") / "study"
  yield recipe, settings, run_dir, recipe.run(settings, run_dir)
  patch.undo()


def read(run_dir):
  rows = json.loads((run_dir / arms.RESULTS).read_text(encoding="utf-8"))
  return {row.pop("label"): row for row in rows}


def test_rows_are_start_and_methods(study):
  *_, run_dir, _ = study
  rows = read(run_dir)
  assert list(rows) == ["start", "DPO", "RLOO", "DPO, flipped labels"]
  assert rows["start"]["kl"]["mean"] == pytest.approx(0, abs=1e-6)
  assert rows["start"]["change"]["mean"] == 0
  for label, row in rows.items():
    assert row["reward"]["units"] == 3
    assert (row["kl"]["mean"] > 0) == (label != "start")
    assert 0 <= row["cut"]["mean"] <= 1


def test_exit_code_is_whether_every_interval_lies_on_its_side(study):
  *_, run_dir, code = study
  rows = read(run_dir)
  holds = (
    rows["DPO"]["change"]["low"] > 0
    and rows["RLOO"]["change"]["low"] > 0
    and rows["DPO, flipped labels"]["change"]["high"] < 0
  )
  assert code == (0 if holds else 1)


def test_page_has_table_verdicts_and_samples(study):
  *_, run_dir, _ = study
  page = (run_dir / "report.md").read_text(encoding="utf-8")
  for word in ("Does it hold?", "Samples", "What do you think of", "flipped labels"):
    assert word in page


def test_second_run_trains_nothing_and_finds_the_same(study, monkeypatch):
  recipe, settings, run_dir, code = study
  before = read(run_dir)

  def refuse(*_, **__):
    raise AssertionError("trained again")

  monkeypatch.setattr(loop, "train", refuse)
  assert recipe.run(settings, run_dir) == code
  assert read(run_dir) == before


@pytest.fixture
def small(policy, study, tmp_path, monkeypatch):
  """Cells of the recipe's sizes, whose programs `study` has compiled."""
  task = study[1].task
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(
    cells.runs, "task", lambda _, **changes: dataclasses.replace(task, **changes)
  )
  monkeypatch.setattr(cells, "_code", lambda: "code")
  return str(policy)


def test_cells_are_paired_by_prompt_and_trained_once(small, monkeypatch):
  start = cells.start(0, policy=small)
  settings = {"objective": "dpo", "hparams": {}, "learning_rate": 1e-2}
  trained = cells.trained(0, policy=small, **settings)
  assert start.keys() == trained.keys() == {"reward", "kl", "length", "cut"}
  for name, of_start in start.items():
    assert of_start.shape == trained[name].shape == (3,)
  np.testing.assert_allclose(start["kl"], 0, atol=1e-6)
  assert (trained["kl"] > 0).all()
  monkeypatch.setattr(loop, "train", None)
  again = cells.trained(0, policy=small, **settings)
  np.testing.assert_array_equal(again["reward"], trained["reward"])
  assert (Path(cells.STORE, "code", "references")).exists()


def test_cell_of_peoples_pairs_measures_log_ratios_of_held_out_ones(small, monkeypatch):
  monkeypatch.setattr(cells, "PAIR_STEPS", 4)
  rows = [
    {
      "chosen": f"\n\nHuman: say {word}\n\nAssistant: {word} yes",
      "rejected": f"\n\nHuman: say {word}\n\nAssistant: {word} no",
    }
    for word in map("word {}".format, range(40))
  ]
  Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
  found = cells.on_pairs(
    0,
    policy=small,
    pairs="pairs.jsonl",
    objective="dpo",
    hparams={},
    learning_rate=3e-2,
  )
  assert 0 < len(found["margin"]) < 40
  np.testing.assert_allclose(
    found["margin"], found["chosen"] - found["rejected"], atol=1e-5
  )
  np.testing.assert_array_equal(found["accuracy"], found["margin"] > 0)
  assert np.mean(found["margin"]) > 0  # "yes" is chosen in every pair


def test_cell_without_the_model_says_what_makes_it(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=r"fetch_smollm2\.py smollm2 makes one"):
    cells.start(0, policy="smollm2")
