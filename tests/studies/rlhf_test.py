"""RLHF as one value of three stages, in miniature."""

import dataclasses
import json
from typing import Any

import pytest

from tests.quiet import quiet
from tests.train import compare
from tests.train.tiny_runs import MODEL
from xpo_jax.config import experiment as experiments
from xpo_jax.config.data import Data
from xpo_jax.config.experiment import Experiment, Rollouts, Scratch, Stage
from xpo_jax.config.factories import Configured
from xpo_jax.data import synthetic_reviews
from xpo_jax.data.tokenise import Limits
from xpo_jax.feedback import reward_model
from xpo_jax.studies import find_recipe
from xpo_jax.train import loop, run_directory, stages


def _small(value: Any) -> Any:
  """The same experiment, its stages too, with a tiny model and few steps."""
  if isinstance(value, Configured):
    arguments = {name: _small(item) for name, item in value.arguments.items()}
    return Configured(value.name, **arguments)
  if isinstance(value, Scratch):
    return Scratch(MODEL)
  if not dataclasses.is_dataclass(value) or isinstance(value, type):
    return value
  changes = {}
  if isinstance(value, Experiment | Rollouts | Stage) or hasattr(value, "source"):
    changes = {n: _small(x) for n, x in experiments.children(value)}
  if isinstance(value, Data):
    changes |= {"steps": 2, "rows_per_step": 2, "row_length": 64}
    changes |= {"limits": Limits(completion=8)}
  if isinstance(value, Rollouts):
    sampling = dataclasses.replace(
      value.sampling, completions=2, max_completion_tokens=4
    )
    changes |= {"iterations": 2, "prompts_per_iteration": 4, "sampling": sampling}
  return dataclasses.replace(value, **changes) if changes else value


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  """A file of preferences."""
  texts = synthetic_reviews.generate(80, seed=0)
  path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
  rows = [
    {"prompt": prompt, "chosen": good, "rejected": texts[i + 40][1]}
    for i, (prompt, good) in enumerate(texts[:40])
    if good != texts[i + 40][1]
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def _rlhf(pairs, *arguments: str) -> Experiment:
  files = [f"prompts={pairs}", f"pairs={pairs}", *arguments]
  return _small(find_recipe.load("rlhf", files).experiment)


@pytest.fixture(scope="module")
def run(pairs, tmp_path_factory):
  run_dir = tmp_path_factory.mktemp("rlhf") / "run"
  result = loop.train(_rlhf(pairs), run_dir, say=quiet)
  assert result.finished
  return run_dir


def test_each_stage_is_a_run_of_its_own(pairs, run):
  found = sorted(path.name.partition("-")[0] for path in (run / "stages").iterdir())
  assert found == ["bradley_terry", "sft"]  # asked for twice and three times
  (model,) = (run / "stages").glob("bradley_terry-*")
  about = json.loads((model / "policy" / reward_model.FILE).read_text())
  assert about["kind"] == reward_model.REWARD and about["gain"] > 0


def test_run_that_lost_a_stage_and_its_own_end_has_the_same_bits(pairs, run, tmp_path):
  cut = tmp_path / "cut"
  experiment = _rlhf(pairs)
  begun = []

  def stop_in_the_second_stage(text: str) -> None:
    begun.append("compiling" in text)
    if sum(begun) == 2:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    loop.train(experiment, cut, say=stop_in_the_second_stage)
  done = (cut / "stages").glob(f"*/{run_directory.SUMMARY}")
  assert [path.parent.name[:3] for path in done] == ["sft"]
  loop.resume(cut, say=quiet)
  assert not compare.differences(run, cut)


def test_a_directory_of_ones_own_takes_the_place_of_the_first_start(pairs, run):
  (sft,) = (run / "stages").glob("sft-*")
  experiment = _rlhf(pairs, f"policy={sft / run_directory.POLICY}", "method=rloo")
  assert experiment.data.critic_init is None
  assert len(list(stages.of(experiment))) == 2
  loop.check(experiment, {})
  with pytest.raises(ValueError, match="method=dpo: allowed are ppo, rloo, grpo"):
    _rlhf(pairs, "method=dpo")
