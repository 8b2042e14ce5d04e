"""RLOO and RAFT: all samples or the best one, under noisy rewards."""

from xpo_jax.studies.atlas.table import ABOVE, Arm, Plot, Prediction, Table
from xpo_jax.studies.exact import online

NOISY, KL = 2.0, 0.5


def arm(series, objective, hparams, noise):
  """A method along training, four samples a prompt."""
  settings = {"objective": objective, "hparams": hparams, "noise": noise}
  return Arm(series, 0.0, online.train, settings)


def gap(r, noise):
  """Reward of RLOO minus RAFT at equal KL."""
  return r.at(f"RLOO{noise}", "reward", "root_kl", KL**0.5) - r.at(
    f"RAFT{noise}", "reward", "root_kl", KL**0.5
  )


TABLE = Table(
  paper="RLOO",
  method="rloo",
  claim="Learning from all samples of a prompt makes better use of them than "
  "learning from the best one, and is more robust to noise of the reward.",
  where="the comparison with RAFT, Table 1, and under noisy rewards, Figures 4 and 5",
  design="Tabular bandit, 16 prompts of 12 completions, 4 samples a prompt and "
  "iteration, rewards with and without noise of twice their standard deviation; "
  "true reward at an equal KL of 0.5 nats along training. 10 seeds.",
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
    Prediction(
      f"RLOO minus RAFT, reward at {KL} nats", "reward", lambda r: gap(r, ""), ABOVE
    ),
    Prediction(
      f"RLOO minus RAFT, reward at {KL} nats, noise",
      "reward",
      lambda r: gap(r, ", noise"),
      ABOVE,
    ),
    Prediction(
      "lead of RLOO with noise minus without",
      "reward",
      lambda r: gap(r, ", noise") - gap(r, ""),
      ABOVE,
    ),
  ),
  plot=Plot(
    "kl",
    "reward",
    "KL to the reference, nats",
    "expected reward above the reference's",
    "Along training: a curve further up has more reward at the same KL.",
  ),
  paper_scale="As ahmadian2024_variance; reward noise of standard deviation 1, 3, 5.",
)
