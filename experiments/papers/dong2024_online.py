"""Online RLHF: pairs of the current policy, or of the reference, at equal labels."""

from xpo_jax.studies.atlas.table import ABOVE, Arm, Plot, Prediction, Table
from xpo_jax.studies.exact import online

KL = 0.3


def arm(series, sampler):
  """Online DPO's loss on two samples a prompt and iteration, labelled anew."""
  settings = {
    "objective": "online_dpo",
    "hparams": {"beta": 0.1},
    "samples": 2,
    "labels": "comparisons",
    "sampler": sampler,
  }
  return Arm(series, 0.0, online.train, settings)


TABLE = Table(
  paper="Online / iterative RLHF",
  method="online_dpo",
  claim="With as many labels, pairs that the current policy writes teach more than "
  "pairs of the first policy.",
  where="abstract",
  design="Tabular bandit, 16 prompts of 12 completions; the same loss, DPO with beta "
  "0.1, on two fresh samples a prompt and iteration, labelled by Bradley-Terry and "
  "written by the current policy, or always by the reference. 10 seeds.",
  contrary="After equally many labels the online policy has no more reward; or no more "
  "at 0.3 nats of KL.",
  departs="Pairs are refreshed at every update, not in three rounds.",
  arms=(arm("online", "policy"), arm("offline", "reference")),
  predictions=(
    Prediction(
      "online minus offline, reward after 300 iterations",
      "reward",
      lambda r: (
        r.metric("online", "reward", 300.0) - r.metric("offline", "reward", 300.0)
      ),
      ABOVE,
    ),
    Prediction(
      f"online minus offline, reward at {KL:g} nats",
      "reward",
      lambda r: (
        r.at("online", "reward", "root_kl", KL**0.5)
        - r.at("offline", "reward", "root_kl", KL**0.5)
      ),
      ABOVE,
    ),
  ),
  plot=Plot(
    "kl",
    "reward",
    "KL to the reference, nats",
    "expected reward above the reference's",
    "Along training, a point each 25 iterations of as many labels.",
  ),
  paper_scale="Llama-3 8B, 3 iterations of 20,000 prompts, 8 samples a prompt, DPO at "
  "5e-7, beta 0.1.",
)
