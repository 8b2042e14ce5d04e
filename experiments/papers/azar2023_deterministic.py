"""IPO: certain preferences, a policy that stays tied to its reference."""

from xpo_jax.studies.atlas.table import Plot, Prediction, Table, sweep
from xpo_jax.studies.exact import bandits

TAUS = (0.1, 0.5, 1.0, 5.0, 10.0)
ORDERED = [[0, 1], [1, 2], [0, 2]]  # the first action always wins
NEVER_WINS = [[0, 1], [1, 0], [1, 2]]  # two actions tie, the third loses once

TABLE = Table(
  paper="IPO",
  method="ipo",
  claim="Where preferences are certain DPO becomes deterministic whatever its "
  "regularisation; IPO stays between the reference and the greedy policy.",
  where="section 5.4, the study of three actions",
  design="Three actions, uniform reference, softmax of three logits; Adam at 0.01, "
  "18,000 batches of 9 pairs drawn with replacement, as in the paper, 10 seeds. Two "
  "sets of pairs: one action always wins; two tie and the third never wins.",
  contrary="IPO's probability of the best action at tau = 1 above 0.6, or DPO's below "
  "0.95; or IPO's probability of the action that never wins below 0.1.",
  departs="The second set of pairs: as printed, it leaves the third action's logit "
  "without a gradient, so that here it loses once.",
  arms=(
    *(
      sweep(
        "DPO", bandits.minibatches, "hparams.beta", TAUS, objective="dpo", pairs=ORDERED
      )
    ),
    *(
      sweep(
        "IPO", bandits.minibatches, "hparams.beta", TAUS, objective="ipo", pairs=ORDERED
      )
    ),
    *(
      sweep(
        "DPO, third never wins",
        bandits.minibatches,
        "hparams.beta",
        (1.0,),
        objective="dpo",
        pairs=NEVER_WINS,
      )
    ),
    *(
      sweep(
        "IPO, third never wins",
        bandits.minibatches,
        "hparams.beta",
        (1.0,),
        objective="ipo",
        pairs=NEVER_WINS,
      )
    ),
  ),
  predictions=(
    Prediction(
      "DPO, best action at tau 1",
      "probability",
      lambda r: r.metric("DPO", "p0", 1.0),
      (0.95, 1.01),
    ),
    # Closed form of the full batch: 0.448.
    Prediction(
      "IPO, best action at tau 1",
      "probability",
      lambda r: r.metric("IPO", "p0", 1.0),
      (0.4, 0.6),
    ),
    Prediction(
      "DPO, action that never wins, tau 1",
      "probability",
      lambda r: r.metric("DPO, third never wins", "p2"),
      (-0.01, 0.05),
    ),
    Prediction(
      "IPO, action that never wins, tau 1",
      "probability",
      lambda r: r.metric("IPO, third never wins", "p2"),
      (0.1, 0.34),
    ),
  ),
  plot=Plot(
    None,
    "p0",
    "tau",
    "probability of the first action",
    "DPO stays at 1 until training is too short for its tau; IPO falls towards the "
    "reference, 1/3, as tau grows.",
    log_x=True,
  ),
  paper_scale="The paper's study is of this size.",
)
