"""Nash-MD: cyclic preferences, a last iterate that converges."""

from xpo_jax.studies.atlas.table import BELOW, Arm, Plot, Prediction, Table, sweep
from xpo_jax.studies.exact import games

TAU, ETA = 0.1, 0.05


def self_play(series, beta, opponent, eta):
  """Policy gradient on win rates against a mixture with the reference."""
  settings = {
    "objective": "nash_md",
    "hparams": {"beta": beta},
    "opponent": opponent,
    "learning_rate": eta,
  }
  return Arm(series, beta, games.learn, settings)


def exploited(r):
  """Exploitability of Nash-MD minus that of a Bradley-Terry reward's optimum."""
  kl_S = r.metric("Nash-MD", "kl")
  rewarded_S = [
    r.at("Bradley-Terry reward", "exploitability", "kl", kl)[i]
    for i, kl in enumerate(kl_S)
  ]
  return r.metric("Nash-MD", "exploitability") - rewarded_S


TABLE = Table(
  paper="Nash learning (NLHF)",
  method="nash_md",
  claim="Nash-MD's last iterate converges to the equilibrium of the regularised game; "
  "plain self-play's does not converge. No reward explains cyclic preferences: the "
  "optimum of one is more exploitable.",
  where="the convergence of Nash-MD",
  design="Random win matrices of 12 completions, full of cycles; the expected gradient "
  "of the objective, natural, 4,000 steps. Nash-MD with tau 0.1 and step 0.05; "
  "self-play with neither tie nor mixture, step 0.5; and the KL-regularised optimum "
  "of a Bradley-Terry reward fitted on the reference's own pairs, at Nash-MD's KL. 10 "
  "seeds.",
  contrary="Nash-MD's duality gap above 1e-4; or self-play still by less than 0.01 "
  "of total variation in 10 steps; or Nash-MD no less exploitable at equal KL.",
  departs="Exploitability and duality gap in place of win rates between methods, which "
  "an equilibrium need not win.",
  arms=(
    self_play("Nash-MD", TAU, ETA * TAU, ETA),
    self_play("self-play", 1e-6, 0.0, 0.5),
    *sweep(
      "Bradley-Terry reward",
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
      "Nash-MD, duality gap of the last iterate",
      "win probability",
      lambda r: r.metric("Nash-MD", "gap"),
      (-1e-4, 1e-4),
    ),
    Prediction(
      "self-play, change over its last 10 steps",
      "total variation",
      lambda r: r.metric("self-play", "change"),
      (0.01, 1.0),
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
    "KL to the reference, nats",
    "exploitability, win probability above 1/2",
    "Nash-MD lies below the curve of Bradley-Terry optima; plain self-play ends where "
    "it happens to be on its cycle.",
  ),
  paper_scale="T5X-L policy, T5X-XL preference model, TL;DR, 10,000 steps, tau 0.008.",
)
