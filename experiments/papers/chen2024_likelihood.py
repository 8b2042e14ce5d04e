"""NCA: an absolute target for the chosen completions."""

from xpo_jax.studies.atlas.table import ABOVE, BELOW, Plot, Prediction, Table, sweep
from xpo_jax.studies.exact import bandits

BETAS = (0.1, 0.3, 0.55)


def arms(series, objective):
  """A loss over its betas."""
  return sweep(series, bandits.pairs, "hparams.beta", BETAS, objective=objective)


TABLE = Table(
  paper="NCA, InfoNCA",
  method="nca",
  claim="DPO, which optimises relative rewards alone, lets the likelihood of the "
  "chosen completions fall; NCA, which optimises each completion's, does not.",
  where="Figure 2",
  design="Contextual bandit, linear policy, 1,000 pairs; mean change of the chosen "
  "completions' log-probability on the training pairs over three betas. 10 seeds.",
  contrary="At beta 0.3 DPO's chosen completions do not fall, or NCA's do.",
  departs="Pairs, where the paper has lists of rewards too.",
  arms=(*arms("DPO", "dpo"), *arms("NCA", "nca")),
  predictions=(
    Prediction(
      "DPO, change of the chosen completions' log-probability, beta 0.3",
      "nats",
      lambda r: r.metric("DPO", "chosen", 0.3),
      BELOW,
    ),
    Prediction(
      "NCA, change of the chosen completions' log-probability, beta 0.3",
      "nats",
      lambda r: r.metric("NCA", "chosen", 0.3),
      ABOVE,
    ),
  ),
  plot=Plot(
    None,
    "chosen",
    "beta",
    "change of log p(chosen), nats",
    "Below 0 chosen completions have become less likely: DPO's far, NCA's hardly.",
    log_x=True,
  ),
  paper_scale="Mistral 7B on UltraFeedback, beta 0.01, QLoRA, lr 5e-6, batch 32.",
)
