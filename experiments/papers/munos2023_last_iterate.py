"""Nash-MD: cyclic preferences, a last iterate that converges."""

import math

from xpo_jax.studies.atlas.table import (
  ABOVE,
  BELOW,
  KL,
  Plot,
  Prediction,
  Table,
  gap,
  metric,
  sweep,
)
from xpo_jax.studies.exact import games

TAU = 0.1
RATES = (0.05, 0.1, 0.2, 0.5)
NASH, PLAIN, REWARDED = "Nash-MD", "self-play", "Bradley-Terry reward"


def self_play(series, beta, mixed):
  """Policy gradient on win rates over its step, against a mixture with the reference
  whose share is `mixed` times the step."""
  return tuple(
    arm
    for rate in RATES
    for arm in sweep(
      series,
      games.learn,
      "learning_rate",
      (rate,),
      objective="nash_md",
      hparams={"beta": beta},
      opponent=mixed * rate,
    )
  )


def exploited(r):
  """Exploitability of Nash-MD minus that of a Bradley-Terry reward's optimum."""
  kl_S = r.metric(NASH, "kl", RATES[0])
  rewarded_S = [
    r.at(REWARDED, "exploitability", "kl", kl)[i] for i, kl in enumerate(kl_S)
  ]
  return r.metric(NASH, "exploitability", RATES[0]) - rewarded_S


TABLE = Table(
  paper="Nash learning (NLHF)",
  method="nash_md",
  claim="Nash-MD's last iterate converges to the equilibrium of the regularised game; "
  "plain self-play's does not converge. No reward explains cyclic preferences: the "
  "optimum of one is more exploitable.",
  where="the convergence of Nash-MD",
  design="Random win matrices of 12 completions, a quarter of whose triples are "
  "cycles; the expected gradient of the objective, natural, 4,000 steps. Nash-MD with "
  "tau 0.1 and self-play with neither tie nor mixture, both at steps of 0.05, 0.1, 0.2 "
  "and 0.5; and the KL-regularised optimum of a Bradley-Terry reward fitted on the "
  "reference's own pairs, at Nash-MD's KL.",
  contrary="Nash-MD's duality gap above 1e-4 at step 0.05; or, at any step, "
  "self-play's gap in its own game no larger than Nash-MD's in its own, or self-play's "
  "last 10 steps no longer than Nash-MD's; or Nash-MD no less exploitable at equal KL.",
  departs="Exploitability and duality gap in place of win rates between methods, which "
  "an equilibrium need not win.",
  arms=(
    *self_play(NASH, TAU, TAU),
    *self_play(PLAIN, 1e-6, 0.0),
    *sweep(
      REWARDED,
      games.learn,
      "hparams.beta",
      (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0),
      objective="reinforce",
      opponent=0.0,
      reward="bradley_terry",
      learning_rate=0.1,
    ),
  ),
  predictions=(
    Prediction(
      f"Nash-MD, duality gap of the last iterate, step {RATES[0]}",
      "win probability",
      metric("gap", (NASH, RATES[0])),
      (-math.inf, 1e-4),
    ),
    *(
      Prediction(
        f"self-play minus Nash-MD, {what}, step {rate}",
        unit,
        gap(name, (PLAIN, rate), (NASH, rate)),
        ABOVE,
      )
      for name, what, unit in (
        ("gap", "duality gap of the last iterate", "win probability"),
        ("change", "change over the last 10 updates", "total variation"),
      )
      for rate in RATES
    ),
    Prediction(
      "Nash-MD minus Bradley-Terry optimum, exploitability at equal KL",
      "win probability",
      exploited,
      BELOW,
    ),
  ),
  plot=Plot(
    "kl",
    "exploitability",
    KL,
    "exploitability, win probability above 1/2",
    "Nash-MD, at any step, lies below the curve of Bradley-Terry optima; plain "
    "self-play ends where it happens to be on its cycle.",
  ),
  paper_scale="Not run: T5X-L policy, T5X-XL preference model, TL;DR, 10,000 steps, "
  "tau 0.008.",
  revised="A first look at step 0.5 showed a gap of Nash-MD above 1e-4, whose fixed "
  "point is off by the square of the step, so that its step became 0.05 while "
  "self-play's stayed; a second look compared both at every step.",
)
