"""RLOO and RAFT: all samples or the best one, under noisy rewards."""

from xpo_jax.studies.atlas.table import (
  ABOVE,
  Arm,
  Prediction,
  Table,
  at_equal_kl,
  frontier,
)
from xpo_jax.studies.exact import online

NOISY, KL = 2.0, 0.5


def arm(series, objective, hparams, noise):
  """A method along training, four samples a prompt."""
  settings = {"objective": objective, "hparams": hparams, "noise": noise}
  return Arm(series, 0.0, online.train, settings)


CLEAN = at_equal_kl("RLOO", "RAFT", KL)
UNDER_NOISE = at_equal_kl("RLOO, noise", "RAFT, noise", KL)


TABLE = Table(
  paper="RLOO",
  method="rloo",
  claim="Learning from all samples of a prompt makes better use of them than learning "
  "from the best one, and is more robust to noise of the reward.",
  where="the comparison with RAFT, Table 1, and the study of noisy rewards",
  design="Tabular bandit, 16 prompts of 12 completions, 4 samples a prompt and "
  "iteration, rewards with and without noise of twice their standard deviation; true "
  "reward at an equal KL of 0.5 nats along training.",
  contrary="RLOO's reward at equal KL below RAFT's, with or without noise; or its lead "
  "smaller with noise.",
  departs="Reward is exact; equal KL in place of equal steps.",
  arms=(
    arm("RLOO", "rloo", {"beta": None}, 0.0),
    arm("RAFT", "raft", {}, 0.0),
    arm("RLOO, noise", "rloo", {"beta": None}, NOISY),
    arm("RAFT, noise", "raft", {}, NOISY),
  ),
  predictions=(
    CLEAN,
    UNDER_NOISE,
    Prediction(
      "lead of RLOO with noise minus without",
      "reward",
      lambda r: UNDER_NOISE.value(r) - CLEAN.value(r),
      ABOVE,
    ),
  ),
  plot=frontier("Along training: a curve further up has more reward at the same KL."),
  paper_scale="Not run: as ahmadian2024_variance; reward noise of standard deviation "
  "1, 3, 5.",
)
