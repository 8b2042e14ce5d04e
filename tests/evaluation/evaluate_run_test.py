"""A finished run on records, evaluated."""

import pytest

from tests.train.tiny_runs import MODEL
from xpo_jax.config.data import Data, Evaluation
from xpo_jax.config.experiment import Experiment, MeshShape, Scratch
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.data.records import Pair
from xpo_jax.data.tokenise import Limits
from xpo_jax.evaluation import evaluate_run
from xpo_jax.train import loop


def _pairs(where, prompts, each):
  return [
    Pair(f"{where} {p} {n}", f"{where} prompt {p}", f" good {n}", f" bad {n}")
    for p in range(prompts)
    for n in range(each)
  ]


def test_accuracy_counts_prompts_and_not_their_pairs(tmp_path):
  datasets = {"rows": _pairs("train", 4, 1), "apart": _pairs("test", 3, 4)}
  data = Data("rows", rows_per_step=4, row_length=64, limits=Limits(completion=8))
  run = Experiment(
    ObjectiveConfig("dpo"),
    data,
    Scratch(MODEL),
    evaluation=Evaluation("apart"),
    mesh=MeshShape(data=1),
  )
  done = loop.train(run, tmp_path / "run", datasets=datasets, say=lambda text: None)
  assert done.finished
  report = evaluate_run.evaluate_run(tmp_path / "run", completions=1, datasets=datasets)
  assert report.measures["preference_accuracy"].units == 3
  with pytest.raises(ValueError, match=r"prompts is -3; .*at least 1"):
    evaluate_run.evaluate_run(tmp_path / "run", prompts=-3, datasets=datasets)
