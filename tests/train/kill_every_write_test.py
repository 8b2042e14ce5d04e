"""A few of the moments at which `experiments/bench/kill_every_write.py` kills runs."""

import pytest

from experiments.bench import kill_every_write
from experiments.bench.kill_every_write import OFFLINE, Moment
from xpo_jax.config import experiment as experiments
from xpo_jax.config.experiment import Scratch

# One of each kind of file and directory, by what would have come next; of those with
# "half", the file that was written last is cut.
MOMENTS = {
  "rename run.tmp/.config.yaml.half, half",
  "rename run/.records.jsonl.half, half",
  "rename run/.tokenizer.half",
  "rename run/.data.json.half, half",
  "rename run/references/.train.half",
  "open run/references/.train.half/.key.json.half",
  "rename run/.policy.half",
  "rename run/.summary.json.half, half",
  "rename run/.evaluation.json.half, half",
  "rename .exported.half",
}


def _name(moment: Moment) -> str:
  return moment.operation + (", half" if moment.cut else "")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
  """A run of one step, the undisturbed one and what kills leave."""
  experiment = experiments.replace(
    OFFLINE, start=Scratch(OFFLINE.start.experiment.start.model), adapter=None, steps=1
  )
  whole, moments = kill_every_write.moments(experiment, tmp_path_factory.mktemp("runs"))
  return experiment, whole, {_name(moment): moment for moment in moments}


def test_kills_are_between_all_writes(killed):
  _, whole, moments = killed
  assert len(moments) > 80
  appended = {"checkpoints", "tensorboard", "metrics.jsonl"}
  for name in whole.files["export"]:
    if not appended & set(name.parts):
      steps = [f".{part}.half" for part in name.parts]
      assert any(step in moment for step in steps for moment in moments), name


@pytest.mark.parametrize("name", sorted(MOMENTS))
def test_run_killed_between_two_writes_ends_with_the_same_bits(killed, name):
  experiment, whole, moments = killed
  assert kill_every_write.go_on(moments[name], experiment, whole) is None


def test_half_a_file_under_its_name_is_seen(killed):
  experiment, whole, moments = killed
  moment = moments["open run/.shown.json.half"]
  counts = moment.root / "run" / "data.json"
  counts.write_bytes(counts.read_bytes()[:-9])
  fault = kill_every_write.go_on(moment, experiment, whole)
  assert fault is not None and "data.json" in fault
