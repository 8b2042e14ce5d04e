"""TDPO: the KL of every token, of both sides of a pair."""

from xpo_jax.studies.atlas.table import (
  ABOVE,
  BELOW,
  REWARD,
  Plot,
  Prediction,
  Table,
  gap,
  gap_at,
  metric,
  sweep,
)
from xpo_jax.studies.exact import trees

BETAS = (0.1, 1.0, 1.7, 3.0, 5.5, 10.0, 30.0)
COMPARED = 0.6  # reward


def arms(series, objective, **hparams):
  """A loss over its betas."""
  return sweep(
    series,
    trees.pairs,
    "hparams.beta",
    BETAS,
    objective=objective,
    hparams=hparams,
    count=1000,
  )


def at_equal_reward(name):
  """A metric, TDPO2 minus DPO."""
  return gap_at(name, "reward", COMPARED, "TDPO2", "DPO")


TABLE = Table(
  paper="TDPO",
  method="tdpo2",
  claim="Under DPO the KL of rejected completions grows faster than that of chosen "
  "ones; TDPO2 holds both, and its policy is more diverse at no loss of alignment.",
  where="abstract",
  design="Trees of 4 tokens out of 3, 1,000 pairs of the reference's samples, table of "
  "logits; DPO, TDPO1 and TDPO2 (alpha 0.5) over seven betas; KL(ref || policy) summed "
  "over each completion, compared at an equal expected reward of 0.6.",
  contrary="At beta 0.1 TDPO2's gap of KLs is no smaller than DPO's; or at equal "
  "reward its sequential KL is no smaller, or its entropy no larger.",
  departs="Compared at equal reward too: at equal beta the KL term alone regularises.",
  arms=(
    *arms("DPO", "token_dpo"),
    *arms("TDPO1", "tdpo1"),
    *arms("TDPO2", "tdpo2", alpha=0.5),
  ),
  predictions=(
    Prediction(
      "DPO, KL of rejected minus that of chosen, beta 0.1",
      "nats",
      metric("seq_kl_gap", ("DPO", 0.1)),
      ABOVE,
    ),
    Prediction(
      "TDPO2 minus DPO, gap of the two KLs, beta 0.1",
      "nats",
      gap("seq_kl_gap", ("TDPO2", 0.1), ("DPO", 0.1)),
      BELOW,
    ),
    Prediction(
      "TDPO2 minus DPO, KL of rejected at equal reward",
      "nats",
      at_equal_reward("seq_kl_rejected"),
      BELOW,
    ),
    Prediction(
      "TDPO2 minus DPO, entropy at equal reward",
      "nats",
      at_equal_reward("entropy"),
      ABOVE,
    ),
  ),
  plot=Plot(
    "reward",
    "seq_kl_rejected",
    REWARD,
    "KL(ref || policy), rejected, nats",
    "A curve further down pays less KL for the same reward.",
  ),
  paper_scale="Not run: GPT-2 large on IMDb, Pythia 2.8B on HH; beta 0.1, alpha 0.5, "
  "lr 5e-6.",
  revised="After a first look the compared reward was lowered from 1 to 0.6 and betas "
  "up to 30 were added, since the curves of some seeds do not pass 1; pairs were cut "
  "from 3,000 to 1,000, to save time.",
)
