"""SLiC-HF, sample-rank: samples of the SFT policy, ranked, calibrated by a hinge.

Paper: Zhao et al. 2023, arXiv:2305.10425: 8 samples a prompt, ranked by a tournament of
  pairwise comparisons or by a pointwise reward, loss with delta = 1 and an NLL term.
Command: xpo train slic_sample_rank [--delta 1 --weight 0.1]
Hardware: 2 CPU cores; four minutes for three seeds, beside other jobs.
Expected: both rankings above SFT, the tournament's above the pointwise one (paper: win
  rates 86.2 and 82.4 %, SFT 45.0 %); here both see the true reward, so direction only.
Departs from the paper: the ranking model is the world's true reward; the pointwise arm
  pairs the best sample with the worst, which the paper does not spell out; the NLL
  target is the chosen answer, and its weight is not checked against the paper.
Last result: 2026-11-22, three seeds, intervals over 128 prompts and seeds. True reward,
  from 0.091: tournament 0.727 [0.706, 0.747] at 3.8 nats, best against worst 0.498
  [0.460, 0.534] at 4.0: the paper's direction. The tournament makes seven pairs of a
  prompt, the other one.
"""

import dataclasses
import time
from pathlib import Path

from xpo_jax.studies.multistage.staged_world import World


@dataclasses.dataclass(frozen=True)
class SampleRank:
  """Settings.

  Attributes:
    candidates: samples of the SFT policy for each prompt. Paper: 8.
    sampling_temperature: of the samples. Paper: 0.7.
    top_k: of the samples. Paper: 40.
    delta: gap of the hinge, nats. Paper: 1.
    weight: of the NLL term.
    world: start and sizes.
  """

  candidates: int = 8
  sampling_temperature: float = 0.7
  top_k: int = 40
  delta: float = 1.0
  weight: float = 0.1
  world: World = dataclasses.field(default_factory=World)

  def __post_init__(self):
    if self.candidates < 2:
      raise ValueError(
        f"SampleRank.candidates is {self.candidates}; a ranking needs at least 2"
      )


def experiment() -> SampleRank:
  """The paper's settings on the embedded world."""
  return SampleRank()


def run(settings: SampleRank, run_dir: Path) -> int:
  """Samples, ranks, trains, judges."""
  from xpo_jax.config.factories import ObjectiveConfig
  from xpo_jax.studies import demo
  from xpo_jax.studies.multistage import stage_samples, staged

  lab = staged.Lab(settings, run_dir)
  objective = ObjectiveConfig("slic", delta=settings.delta, weight=settings.weight)
  labels = ("tournament", "pointwise")
  policies = {label: {} for label in labels}
  seconds = dict.fromkeys(labels, 0.0)
  for seed in settings.world.seeds:
    lab.say(f"seed {seed}: {settings.candidates} samples for each prompt")
    sampled = lab.sample(
      lab.start.params,
      completions=settings.candidates,
      seed=seed,
      temperature=settings.sampling_temperature,
      top_k=settings.top_k,
    )
    duels = _duels(sampled.reward_BK)
    for label in labels:
      began = time.perf_counter()
      rows = stage_samples.pairs(sampled, *duels[label])
      done = lab.stage(f"{label}-{seed}", objective, rows, seed=seed)
      policies[label][seed] = done.params
      seconds[label] += time.perf_counter() - began
  rows = [lab.row("SFT", dict.fromkeys(settings.world.seeds, lab.start.params))]
  rows += [lab.row(f"SLiC, {x}", policies[x], seconds[x]) for x in labels]
  demo.show(lab.finish("SLiC sample-rank", rows))
  return 0


def _duels(reward_BK):
  """Ranking -> winners, losers, kept."""
  import jax.numpy as jnp
  import numpy as np

  from xpo_jax.ops import pairing, preference_games

  present_BK = jnp.ones(reward_BK.shape)
  wins_BKK = preference_games.from_rewards(jnp.asarray(reward_BK))
  best_worst = pairing.best_worst(jnp.asarray(reward_BK), present_BK)
  pointwise = (best_worst.chosen_B, best_worst.rejected_B, best_worst.keep_B)
  return {
    "tournament": tuple(map(np.asarray, pairing.tournament(wins_BKK, present_BK))),
    "pointwise": tuple(np.asarray(x)[:, None] for x in pointwise),
  }
