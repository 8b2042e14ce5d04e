"""The online loop, tiny: exact under kills, compiled once, true to the papers."""

import dataclasses
import pickle
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests import compiling
from tests.train.tiny_runs import ONLINE
from xpo_jax.config.data import Data
from xpo_jax.config.experiment import AuxLossConfig
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.train import checkpoint, metrics, offline, online, rollouts

# And a second objective with data of its own.
RUN = dataclasses.replace(
  ONLINE,
  aux_losses=(
    AuxLossConfig(
      2.0, ObjectiveConfig("sft"), Data("synthetic:30", rows_per_step=3, row_length=64)
    ),
  ),
)


def _quiet(text: str) -> None:
  del text


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The uninterrupted run, and how much was compiled before each line of it."""
  run_dir = tmp_path_factory.mktemp("runs") / "whole"
  compiled = []
  with compiling.heard() as names:

    def say(text):
      if text.startswith("step "):
        compiled.append(len(names))

    result = online.train(RUN, run_dir, say=say)
  assert result.finished and result.steps == RUN.data.iterations
  return run_dir, compiled


def test_nothing_is_compiled_in_steady_state(whole):
  _, compiled = whole
  assert compiled[0] > 0
  # The third iteration is the first with a reference that moved and a full sampler.
  assert compiled[2:] == [compiled[2]] * 3


def test_line_of_metrics_says_what_happened(whole):
  run_dir, _ = whole
  lines = metrics.read(run_dir)
  assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
  names = {"loss", "entropy", "ratio", "clip_fraction", "updates", "beta"}
  names |= {
    f"rollout/{n}"
    for n in ("reward", "kl", "length", "no_eos", "frac_informative_prompts")
  }
  names |= {f"time/{n}" for n in ("rollout", "feedback", "update", "seconds")}
  for line in lines:
    assert names <= set(line)
    assert line["updates"] == 4
    terms = ("loss/policy", "loss/value", "loss/text/sft")
    assert line["loss"] == pytest.approx(sum(line[name] for name in terms))
    parts = line["time/rollout"] + line["time/feedback"] + line["time/update"]
    assert parts == pytest.approx(line["time/seconds"])
  assert lines[0]["rollout/kl"] == pytest.approx(0, abs=1e-5)  # policy = reference
  # The sampler is one iteration behind: it draws from the start once more.
  assert lines[1]["rollout/kl"] == pytest.approx(0, abs=1e-5)


def test_controller_moves_beta_by_the_kl_it_saw(whole):
  lines = metrics.read(whole[0])
  beta = 0.1
  for line in lines:
    assert line["beta"] == pytest.approx(beta, rel=1e-5)
    error = np.clip(line["rollout/kl"] / 1.0 - 1, -0.2, 0.2)
    beta *= 1 + error * 16 / 100  # 16 completions of a horizon of 100


def test_rollouts_of_an_iteration_can_be_read(whole):
  run_dir, _ = whole
  drawn = rollouts.read(run_dir / online.ROLLOUTS / "000003.jsonl")
  assert drawn.iteration == 2 and drawn.length_BK.shape == (8, 2)
  line = metrics.read(run_dir)[2]
  assert drawn.reward_BK.mean() == pytest.approx(line["rollout/reward"])
  assert set(np.unique(drawn.reward_BK)) <= {0.0, 1.0}


def test_an_iteration_draws_with_luck_of_its_own(whole):
  # The first two are of one policy, the sampler being behind: the start, so near to
  # uniform that draws of one luck are mostly the same whatever the prompt.
  first, second = (
    rollouts.read(whole[0] / online.ROLLOUTS / f"{number:06d}.jsonl").examples
    for number in (1, 2)
  )
  same = [
    a == b
    for ours, theirs in zip(first, second, strict=True)
    for one, other in zip(ours.completions, theirs.completions, strict=True)
    for a, b in zip(one, other, strict=False)
  ]
  assert len(same) > 60 and np.mean(same) < 0.2


_CHILD = """
import os, pickle, signal, sys
from xpo_jax.train import judged, online, references, rollouts
with open(sys.argv[1], "rb") as file:
  experiment = pickle.load(file)
run_dir, log, where, when = *sys.argv[2:5], int(sys.argv[5])
module, name = {
  "rollout": (rollouts, "draw"),
  "feedback": (judged, "ask"),
  "update": (references, "fill"),
}[where]
asked, calls = judged.ask, []

def dying(*args, **named):
  calls.append(1)
  if len(calls) == when:
    os.kill(os.getpid(), signal.SIGKILL)
  return real(*args, **named)

def ask(judge, drawn, feedback):
  with open(log, "a") as file:
    file.write(f"{drawn.iteration} ")
  return asked(judge, drawn, feedback)

judged.ask = ask
real = getattr(module, name)
setattr(module, name, dying)
if os.path.exists(run_dir):
  online.resume(run_dir)
else:
  online.train(experiment, run_dir)
"""


def test_killed_anywhere_it_goes_on_bit_for_bit(whole, tmp_path):
  run_dir, log, handed = tmp_path / "run", tmp_path / "asked", tmp_path / "handed"
  handed.write_bytes(pickle.dumps(RUN))
  # In the rollouts of iteration 2; before the judge's answer in iteration 3, the second
  # of that life; between two updates of iteration 4, whose life did the 4 of another.
  for where, when in (("rollout", 2), ("feedback", 2), ("update", 4 + 3)):
    command = [sys.executable, "-c", _CHILD, str(handed), str(run_dir), str(log)]
    # Into a file: a pipe would stay open while any process it started lives.
    said = tmp_path / "said"
    with said.open("w") as file:
      command_at = [*command, where, str(when)]
      died = subprocess.run(command_at, timeout=300, stdout=file, stderr=file)
    assert died.returncode == -signal.SIGKILL, said.read_text()[-3000:]
  # Iteration 3 was drawn anew; the answers of iteration 4 were on disk.
  assert log.read_text().split() == ["0", "1", "2", "3"]
  said = []
  result = online.resume(run_dir, say=said.append)
  assert result.finished
  assert "continuing after step 3" in said
  _assert_same_run(run_dir, whole[0])


def _leaves(run_dir) -> list[np.ndarray]:
  manager = checkpoint.open_manager(run_dir / offline.CHECKPOINTS, keep=2)
  args = checkpoint.ocp.args
  tree = manager.restore(
    manager.latest_step(), args=args.Composite(state=args.StandardRestore())
  )
  manager.close()
  keys = jax.dtypes.prng_key
  return [
    np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, keys) else x)
    for x in jax.tree.leaves(tree["state"])
  ]


def _assert_same_run(run_dir, whole):
  def lines(directory):
    return [
      {name: x for name, x in line.items() if not name.startswith("time/")}
      for line in metrics.read(directory)
    ]

  for got, want in zip(_leaves(run_dir), _leaves(whole), strict=True):
    assert got.tobytes() == want.tobytes()
  assert lines(run_dir) == lines(whole)
  for iteration in range(1, RUN.data.iterations + 1):
    name = f"{online.ROLLOUTS}/{iteration:06d}.jsonl"
    assert (run_dir / name).read_bytes() == (whole / name).read_bytes()
