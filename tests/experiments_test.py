"""Every recipe loads and says what it is; the runnable ones run, made small."""

import ast
import dataclasses
import json
import math
import re
from pathlib import Path

import jax
import pytest

from xpo_jax import cli
from xpo_jax.config.experiment import (
  Experiment,
  MeshShape,
  Pretrained,
  Scratch,
  Stage,
)
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.data import synthetic_reviews
from xpo_jax.evaluation import evaluate_reward_model
from xpo_jax.models import config, transformer
from xpo_jax.studies import experiments_readme, find_recipe
from xpo_jax.studies.sentiment.settings import Arm, SentimentStudy
from xpo_jax.train import loop

ROOT = Path(__file__).parent.parent / "experiments"
RECIPES = sorted(ROOT.glob("[!_]*.py")) + sorted((ROOT / "tables").glob("*.py"))
TINY = SentimentStudy(
  num_texts=400,
  vocab=600,
  width=16,
  layers=1,
  sft_steps=2,
  sft_rows=2,
  max_completion_tokens=8,
  num_pairs=16,
  rows=2,
  arms=(
    Arm("DPO", ObjectiveConfig("dpo"), (1.0,)),
    Arm("Preferred-FT", ObjectiveConfig("sft"), (1e-3,), hparam="learning_rate"),
  ),
  online=(),
  seeds=(0, 1),
  eval_prompts=4,
  eval_samples=2,
  pool=4,
)


def test_readme_is_what_the_headers_say():
  written = (ROOT / experiments_readme.README).read_text(encoding="utf-8")
  assert written == experiments_readme.text(), "stale: make docs writes it"
  for name in find_recipe.names():
    assert f"[{name}](" in written


@pytest.mark.parametrize(
  "path", sorted((ROOT / "results").glob("*.json")), ids=lambda path: path.stem
)
def test_results_are_labelled_measures_of_a_recipe(path):
  assert path.stem in find_recipe.names()
  for row in json.loads(path.read_text(encoding="utf-8")):
    assert isinstance(row.pop("label"), str)
    for value in row.values():
      if isinstance(value, dict) and "low" in value:
        # A range over rows has no mean.
        assert value["low"] <= value.get("mean", value["low"]) <= value["high"]


def test_no_name_is_both_a_recipe_and_a_table():
  stems = [path.stem for path in RECIPES]
  assert len(set(stems)) == len(stems)
  tables = set(find_recipe.names("table"))
  assert tables <= {path.stem for path in (ROOT / "tables").glob("*.py")}
  assert tables.isdisjoint(find_recipe.names("recipe"))
  assert find_recipe.names().keys() == tables | set(find_recipe.names("recipe"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_header_says_command_hardware_and_result(path):
  header = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
  for field in ("Command:", "Hardware:"):
    assert field in header, f"{path.name} does not say its {field}"
  assert re.search("^(Last result|Result):", header, re.M), f"{path.name}: no Result:"
  if path.parent.name == "tables" or path.stem in find_recipe.names():
    assert "arXiv:" in header and "Expected:" in header


@pytest.mark.parametrize(
  "name, arguments",
  [
    ("controlled_sentiment", ["source=texts.jsonl"]),
    ("controlled_sentiment_imdb", ["source=imdb", "policy=gpt2"]),
    ("dpo_hh", ["path=hh.jsonl"]),
    ("dpo_hh_pythia", ["path=hub:some/name", "policy=pythia"]),
    ("reward_hh", ["path=hh.jsonl"]),
    ("preference_hh", ["path=hh.jsonl"]),
    ("reward_listwise", ["path=lists.jsonl"]),
  ],
)
def test_recipe_is_found_by_name_and_takes_its_arguments(name, arguments):
  recipe = find_recipe.load(name, arguments)
  assert isinstance(recipe.experiment, SentimentStudy if recipe.run else Experiment)
  with pytest.raises(ValueError, match="needs"):
    find_recipe.load(name)


@pytest.mark.parametrize(
  "name, arguments, billions",
  [
    ("dpo_llama", ["size=1B"], 1.236),
    ("dpo_llama", [], 8.030),
    ("dpo_llama", ["size=70B"], 70.554),
    ("ppo_llama_8b", [], 8.030),
    ("grpo_llama_8b", [], 8.030),
  ],
)
def test_recipes_at_the_size_of_papers_need_no_policy(name, arguments, billions):
  start = find_recipe.load(name, arguments).experiment.start
  shapes = jax.tree.leaves(transformer.weights(start.model))
  count = sum(math.prod(weight.shape) for weight in shapes)
  assert round(count / 1e9, 3) == billions  # of the models' cards
  policy = find_recipe.load(name, ["policy=DIR"]).experiment.start
  assert policy == Pretrained("DIR", compute_dtype="bfloat16")


def test_llama_of_another_size_is_refused():
  with pytest.raises(ValueError, match="size is '9B'; allowed: 1B, 8B, 70B"):
    find_recipe.load("dpo_llama", ["size=9B"])


def test_every_named_recipe_is_tested():
  assert set(find_recipe.names("recipe")) == {
    "controlled_sentiment",
    "controlled_sentiment_imdb",
    "dpo_hh",
    "dpo_hh_pythia",
    "reward_hh",
    "preference_hh",
    "reward_listwise",
    # in test_recipes_at_the_size_of_papers_need_no_policy
    "dpo_llama",
    "ppo_llama_8b",
    "grpo_llama_8b",
    "compare_objectives",  # in studies/comparison/train_objectives_test.py
    # in studies/multistage/recipes_test.py
    "rso",
    "slic_sample_rank",
    "sdpo",
    "best_of_n",
    "paft",
    "instructgpt",
    "iterated_rlhf",
    # in studies/multistage/ai_feedback_test.py
    "rlaif",
    "constitutional_ai",
    "self_rewarding",
    "rlhf",  # in studies/rlhf_test.py
    "real_model",  # in studies/real_model/compare_test.py
    # in studies/task_test.py
    "rloo",
    "ppo",
    "ppo_ptx",
    "reinforce",
    "remax",
    "raft",
    "grpo",
    "dr_grpo",
    "dapo",
    "gspo",
    "online_dpo",
    "iterative_dpo",
    "exploratory_dpo",
    "sppo",
    "dno",
    "iterative_cringe",
    "nash_md",
    "direct_rlaif",
    "gkd",
    "on_policy_distillation",
    "minillm",
    "kd",  # in studies/distillation_test.py
    "gspo_token",
    "sapo",
    "gmpo",
    "lite_ppo",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "entropy_bonus",
    # in studies/offline_recipes_test.py
    "dpo_shift",
    "simper",
    "bco_udm",
    "step_dpo",
    "spin",
  }


def _hh(path: Path) -> None:
  """Transcripts as in Anthropic HH, with one row that shares no prompt."""
  texts = synthetic_reviews.generate(80, 0)
  rows = []
  for (prompt, a), (_, b) in zip(texts[::2], texts[1::2], strict=True):
    start = f"\n\nHuman: what of {prompt}?\n\nAssistant:"
    if a != b:
      rows.append({"chosen": start + a, "rejected": start + b})
  rows.append({"chosen": rows[0]["chosen"], "rejected": rows[1]["rejected"]})
  path.write_text("\n".join(map(json.dumps, rows)) + "\n")


@pytest.mark.slow
def test_hh_recipe_trains_and_judges_held_out_pairs(tmp_path):
  _hh(tmp_path / "hh.jsonl")
  whole = find_recipe.load("dpo_hh", [f"path={tmp_path / 'hh.jsonl'}"]).experiment
  small = config.Config(
    vocab=400, width=16, layers=1, heads=2, kv_heads=2, head_dim=8, mlp_width=16
  )
  data = dataclasses.replace(whole.data, steps=2, row_length=256, rows_per_step=2)
  one = {"data": data, "mesh": MeshShape(data=1)}
  first = dataclasses.replace(whole.start.experiment, start=Scratch(small), **one)
  whole = dataclasses.replace(whole, start=Stage(first), **one)
  done = loop.train(whole, tmp_path / "run", say=lambda line: None)
  assert done.finished and done.steps == 2
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  assert "eval/reward_accuracy" in json.loads(lines[-1])
  counts = json.loads((tmp_path / "run" / "data.json").read_text())
  assert "no shared prompt" in json.dumps(counts)


def _lists(path: Path) -> None:
  """Prompts with ragged lists of judged answers."""
  texts = synthetic_reviews.generate(120, 0)
  rows = []
  for n in range(40):
    answers = [text.strip() for _, text in texts[3 * n : 3 * n + 2 + n % 2]]
    judged = zip(answers, synthetic_reviews.true_reward(answers).tolist(), strict=True)
    responses = [{"text": text, "p_beats_baseline": p} for text, p in judged]
    rows.append({"prompt": f"what of {texts[n][0]}?", "responses": responses})
  path.write_text("\n".join(map(json.dumps, rows)) + "\n")


@pytest.mark.parametrize(
  ("name", "answers"), [("reward_hh", 2), ("preference_hh", 4), ("reward_listwise", 24)]
)
def test_longest_group_of_a_feedback_recipe_fits_its_row(name, answers):
  data = find_recipe.load(name, ["path=data.jsonl"]).experiment.data
  longest = data.limits.completion + (data.transform is not None)  # its own EOS
  assert data.limits.prompt + answers * longest <= data.row_length


@pytest.mark.parametrize(
  ("name", "write", "stages"),
  [("reward_hh", _hh, 1), ("preference_hh", _hh, 1), ("reward_listwise", _lists, 2)],
)
def test_feedback_recipe_trains_and_agrees_as_the_trainer_measured(
  tmp_path, capsys, name, write, stages
):
  write(tmp_path / "data.jsonl")
  whole = find_recipe.load(name, [f"path={tmp_path / 'data.jsonl'}"]).experiment
  small = config.Config(
    vocab=400, width=8, layers=1, heads=1, kv_heads=1, head_dim=8, mlp_width=8
  )
  sizes = {"steps": 1, "row_length": 320, "rows_per_step": 2, "microbatches": 1}
  one = {"mesh": MeshShape(data=1)}
  start = Scratch(small)
  if stages == 2:  # the reference samples come from the stage before
    first = whole.start.experiment
    data = dataclasses.replace(first.data, **sizes)
    start = Stage(dataclasses.replace(first, data=data, start=start, **one))
  data = dataclasses.replace(whole.data, **sizes)
  whole = dataclasses.replace(whole, data=data, start=start, **one)
  run_dir = tmp_path / "run"
  done = loop.train(whole, run_dir, say=lambda line: None)
  assert done.finished
  if stages == 2:
    evaluate_reward_model.judge_run(run_dir, most=None, batch=8)
  else:
    assert not cli.main(["evaluate", str(run_dir)])
    assert "accuracy_longer" in capsys.readouterr().out
  measured = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
  agreed = json.loads((run_dir / "agreement.json").read_text())
  if name != "reward_listwise":  # there prompts weigh the same, not pairs
    accuracy = agreed["measures"]["accuracy"]["mean"]
    assert accuracy == pytest.approx(measured["eval/reward_accuracy"], abs=1e-6)
  about = json.loads((run_dir / "policy" / "reward.json").read_text())
  assert about["kind"] == ("preference" if name == "preference_hh" else "reward")
  assert (about["gain"] == 1) == (name == "preference_hh")


@pytest.mark.slow
def test_dpo_table_is_rebuilt_by_its_name(tmp_path, capsys):
  recipe = find_recipe.load("rafailov2023_frontier")
  assert [arm.label for arm in recipe.experiment.arms] == ["DPO", "Preferred-FT"]
  recipe.run(TINY, tmp_path / "run")
  shown = capsys.readouterr().out
  assert "2305.18290" in shown
  assert (tmp_path / "run" / "frontier.svg").read_text().startswith("<svg")
  assert "Preferred-FT" in (tmp_path / "run" / "report.md").read_text()
