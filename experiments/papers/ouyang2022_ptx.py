"""InstructGPT: pretraining data in RL, against what RL forgets."""

import math

import numpy as np

from xpo_jax.studies.atlas.table import (
  BELOW,
  REWARD,
  Plot,
  Prediction,
  Table,
  gap_at,
  metric,
  sweep,
)
from xpo_jax.studies.exact import pretraining

GAMMAS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)
BETAS = (0.02, 0.1, 0.2, 0.5, 1.0, 2.0)  # 0.02 and 2 in the paper
GAINED = 1.0  # reward at which forgetting is compared
NLL = {"objective": "nll", "hparams": {"reduction": "sequence_sum"}}
PTX, ALONE = "mixed with pretraining", "KL penalty alone"


def kept(r):
  """Reward where half of the forgetting is undone, over that of gamma 0, `[S]`."""
  most_S = r.metric(PTX, "forgotten", 0.0)
  half_S = [r.at(PTX, "reward", "forgotten", x / 2)[i] for i, x in enumerate(most_S)]
  return np.array(half_S) / r.metric(PTX, "reward", 0.0)


TABLE = Table(
  paper="InstructGPT",
  method="ppo",
  claim="RL makes the model worse on other data; mixing gradients of pretraining data "
  "in (PPO-ptx) undoes that at little cost of reward, and better than a stronger KL "
  "penalty does.",
  where="section 3.5, appendix E.6",
  design="Bandit with a linear policy that prompts of RL and of pretraining share; "
  "their features have opposite scales, 0.2 to 1.8; 400 policy-gradient updates of 4 "
  "samples a prompt, KL penalty 0.02 and gamma 0 to 3, or gamma 0 and KL penalty 0.02 "
  "to 2; rise of the loss on the reference's own data, held-out prompts.",
  contrary="Without either the loss on pretraining data rises by less than 0.1 nats; "
  "or at a reward of 1 pretraining data have undone no more of it than the KL "
  "penalty; or undoing half of it costs a fifth of the reward.",
  departs="REINFORCE with a running baseline in place of PPO with a value function; "
  "pretraining data are the reference's own samples. In the paper no KL penalty undoes "
  "the regressions; here one that is strong enough must, so that equal rewards are "
  "compared.",
  arms=(
    *sweep(
      PTX,
      pretraining.mix,
      "gamma",
      GAMMAS,
      objective="reinforce",
      hparams={"beta": 0.02},
      likelihood=NLL,
    ),
    *sweep(
      ALONE,
      pretraining.mix,
      "hparams.beta",
      BETAS,
      objective="reinforce",
      likelihood=NLL,
      gamma=0.0,
    ),
  ),
  predictions=(
    Prediction(
      "RL alone, KL penalty 0.02: rise of the loss on pretraining data",
      "nats",
      metric("forgotten", (ALONE, BETAS[0])),
      (0.1, np.inf),
    ),
    Prediction(
      f"pretraining data minus KL penalty, rise of that loss at a reward of {GAINED:g}",
      "nats",
      gap_at("forgotten", "reward", GAINED, PTX, ALONE),
      BELOW,
    ),
    Prediction(
      "reward where pretraining data undo half of the rise, over that without them",
      "ratio",
      kept,
      (0.8, math.inf),
    ),
  ),
  plot=Plot(
    "reward",
    "forgotten",
    REWARD,
    "rise of the loss on pretraining data, nats",
    "At every reward the loss on pretraining data has risen less where they are mixed "
    "in; a KL penalty of 2 takes most of the reward and still leaves a rise.",
  ),
  paper_scale="Not run: GPT-3 1.3B to 175B, reward model 6B, 256,000 episodes; KL "
  "penalty 0.02, gamma 27.8, 8 pretraining examples an episode.",
)
