"""f-DPO: which divergence ties the policy, how diverse it stays."""

from xpo_jax.studies.atlas.table import ABOVE, Plot, Prediction, Table, sweep
from xpo_jax.studies.exact import bandits

# Below these betas the policy fits noise of rarely seen pairs, and reward falls.
BETAS = (1.7, 3.0, 5.5, 10.0, 17.0, 30.0, 55.0)
REWARD = 0.3  # at which entropies are compared


def arms(series, divergence):
  """DPO with a divergence over its betas."""
  return sweep(
    series,
    bandits.pairs,
    "hparams.beta",
    BETAS,
    objective="f_dpo",
    hparams={"divergence": divergence},
    tabular=True,
    count=1500,
  )


def entropy_gap(series):
  """Entropy of a divergence minus that of the reverse KL, at equal reward."""
  return lambda r: (
    r.at(series, "entropy", "reward", REWARD)
    - r.at("reverse KL", "entropy", "reward", REWARD)
  )


TABLE = Table(
  paper="Beyond reverse KL (f-DPO)",
  method="f_dpo",
  claim="The reverse KL gives the least diverse policies; the forward KL the most, and "
  "the Jensen-Shannon divergence lies between them.",
  where="abstract",
  design="Tabular bandit, 16 prompts of 12 completions, 1,500 pairs of uniformly drawn "
  "completions labelled by Bradley-Terry; each divergence over seven betas; entropy at "
  "an equal expected reward of 0.3, interpolated along each frontier. 10 seeds.",
  contrary="At equal reward, the forward KL's or the Jensen-Shannon divergence's "
  "entropy at or below the reverse KL's.",
  departs="Entropy is exact and compared at equal reward, as equal betas mean "
  "different ties.",
  arms=(
    *arms("reverse KL", "reverse_kl"),
    *arms("Jensen-Shannon", "jensen_shannon"),
    *arms("forward KL", "forward_kl"),
  ),
  predictions=(
    Prediction(
      "forward KL minus reverse KL, entropy at equal reward",
      "nats",
      entropy_gap("forward KL"),
      ABOVE,
    ),
    Prediction(
      "Jensen-Shannon minus reverse KL, entropy at equal reward",
      "nats",
      entropy_gap("Jensen-Shannon"),
      ABOVE,
    ),
  ),
  plot=Plot(
    "reward",
    "entropy",
    "expected reward above the reference's",
    "entropy, nats",
    "A curve further up is more diverse at the same reward; each point is a beta.",
  ),
  paper_scale="GPT-2 large on IMDb: beta 0.1 (reverse KL, Jensen-Shannon), 1e-5 "
  "(forward KL); Pythia 2.8B on Anthropic HH.",
)
