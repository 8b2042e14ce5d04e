"""The online loop, tiny: exact under kills, compiled once, true to the papers."""

import jax
import numpy as np
import pytest

from xpo_jax import controllers
from xpo_jax.feedback import rules
from xpo_jax.models.config import Config
from xpo_jax.train import (
  metrics,
  online,
  rollouts,
)
from xpo_jax.train.experiment import Loop, MeshShape, Scratch, Use
from xpo_jax.train.online_experiment import (
  Call,
  Feedback,
  OnlineExperiment,
  Prompts,
  Sampling,
)
from xpo_jax.train.optim import Optimizer

MODEL = Config(
  vocab=320,
  width=12,
  layers=1,
  heads=2,
  kv_heads=2,
  head_dim=6,
  mlp_width=16,
  tied=True,
  remat=False,
)
# All that a resume can get wrong: a controller, stale samples, a reference that moves,
# several passes over minibatches of microbatches, a value, an average of weights.
RUN = OnlineExperiment(
  Use("ppo", beta=0.1),
  Prompts("world:30"),
  Scratch(MODEL),
  Feedback(Call(rules.matches, pattern="[aeiou]"), missing_eos=0.25),
  Sampling(completions=2, max_tokens=6, temperature=0.8, staleness=1),
  iterations=5,
  prompts_per_iteration=8,
  minibatches=2,
  inner_epochs=2,
  microbatches=2,
  controller=Call(controllers.adaptive_kl, beta=0.1, target=1.0, horizon=100.0),
  renew_reference=2,
  optimizer=Optimizer(learning_rate=1e-2, ema=0.9),
  loop=Loop(log_every=1),
  mesh=MeshShape(data=1),
)


def _quiet(text: str) -> None:
  del text


class Compiles:
  """Counts what JAX traces while it is open."""

  def __init__(self):
    self.names = []

  def __call__(self, event: str, seconds: float, **_) -> None:
    if event.endswith("jaxpr_trace_duration"):
      self.names.append(event)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The uninterrupted run, and how much was traced before each line of it."""
  run_dir = tmp_path_factory.mktemp("runs") / "whole"
  seen, traced = Compiles(), []

  def say(text):
    if text.startswith("step "):
      traced.append(len(seen.names))

  jax.monitoring.register_event_duration_secs_listener(seen)
  try:
    result = online.train(RUN, run_dir, say=say)
  finally:
    jax.monitoring.unregister_event_duration_listener(seen)
  assert result.finished and result.steps == RUN.iterations
  return run_dir, traced


def test_nothing_is_compiled_in_steady_state(whole):
  _, traced = whole
  assert traced[0] > 0
  # The third iteration is the first with a reference that moved and a full sampler.
  assert traced[2:] == [traced[2]] * 3


def test_line_of_metrics_says_what_happened(whole):
  run_dir, _ = whole
  lines = metrics.read(run_dir)
  assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
  names = {"loss", "entropy", "ratio", "clip_fraction", "updates", "beta"}
  names |= {f"rollout/{n}" for n in ("reward", "kl", "length", "no_eos", "informative")}
  names |= {f"time/{n}" for n in ("rollout", "feedback", "update", "seconds")}
  for line in lines:
    assert names <= set(line)
    assert line["updates"] == 4
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
