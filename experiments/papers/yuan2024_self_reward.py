"""Self-Rewarding LMs: rounds on the model's own judgements."""

from xpo_jax.studies.atlas.table import ABOVE, Arm, Plot, Prediction, Table, gap
from xpo_jax.studies.exact import self_rewarding

OWN, FIRST = "own judge", "judge of model 1"


def arm(series, judge):
  """Three models, each judged by itself or by the first."""
  settings = {
    "objective": "dpo",
    "hparams": {"beta": 0.1},
    "judge": judge,
    "imitation": {"objective": "nll", "hparams": {"reduction": "sequence_sum"}},
    "comparison": {"objective": "bradley_terry", "hparams": {}},
  }
  return Arm(series, 0.0, self_rewarding.iterate, settings)


TABLE = Table(
  paper="Self-Rewarding LMs",
  method="self_rewarding",
  claim="A model that judges its own samples and is trained on them by DPO gets better "
  "in each round, and so does its judgement.",
  where="abstract, and the tables of models 1 to 3",
  design="Contextual bandit; policy and judge are two fixed heads, at a cosine of "
  "0.5, of one learnt representation; model 1 imitates 60 demonstrations and learns "
  "to judge from 60 comparisons; two rounds of DPO with beta 0.1 on 4 samples of each "
  "of 32 prompts, each scored three times with noise; the judge is the current "
  "model's or model 1's; held-out prompts.",
  contrary="A round does not raise the reward; or the third model judges no better "
  "than the first; or judging by itself leads no further than judging by model 1.",
  departs="The judge gets no text and knows no principle: all that it can gain comes "
  "from the shared representation. Prompts are the same in both rounds.",
  arms=(arm(OWN, "own"), arm(FIRST, "first")),
  predictions=(
    Prediction(
      "model 2 minus model 1, reward",
      "reward",
      gap("reward", (OWN, 2.0), (OWN, 1.0)),
      ABOVE,
    ),
    Prediction(
      "model 3 minus model 2, reward",
      "reward",
      gap("reward", (OWN, 3.0), (OWN, 2.0)),
      ABOVE,
    ),
    Prediction(
      "model 3 minus model 1, pairs judged as their rewards",
      "fraction",
      gap("accuracy", (OWN, 3.0), (OWN, 1.0)),
      ABOVE,
    ),
    Prediction(
      "own judge minus judge of model 1, reward of model 3",
      "reward",
      gap("reward", (OWN, 3.0), (FIRST, 3.0)),
      ABOVE,
    ),
  ),
  plot=Plot(
    None,
    "accuracy",
    "model",
    "pairs judged in the order of reward, fraction",
    "Model 1 judges best: training the policy on its judgements makes its judge worse "
    "from round to round, whoever judges.",
  ),
  paper_scale="Not run: Llama-2 70B, 3,964 and 6,942 pairs in two rounds, 4 samples a "
  "prompt, 3 judgements; DPO beta 0.1, lr 1e-6 to 1e-7, batch 16.",
)
