"""PAFT: SFT and DPO in parallel, merged, against one after the other."""

from xpo_jax.studies.atlas.table import ABOVE, BELOW, Arm, Plot, Prediction, Table, gap
from xpo_jax.studies.exact import merging

SPARSITIES = (0.0, 0.3)
CHOSEN = 0.3
PARALLEL, SUM = "parallel, merged by TIES", "parallel, sum of differences"
IN_TURN, TURNED = "SFT, then DPO", "DPO, then SFT"


def arm(series, order, sparsity=0.0):
  """An order of training, with an L1 penalty on SFT's change."""
  settings = {
    "order": order,
    "sft": {"objective": "nll", "hparams": {"reduction": "sequence_sum"}},
    "preference": {"objective": "dpo", "hparams": {"beta": 1.0}},
    "sparsity": sparsity,
    "learning_rate": 0.002,
  }
  return Arm(series, sparsity, merging.train, settings)


TABLE = Table(
  paper="PAFT",
  method="paft",
  claim="SFT and DPO in parallel from one base, merged as weights, keep more of both "
  "than one after the other, where SFT's change, dense by nature while DPO's is "
  "sparse, is made sparse by an L1 penalty.",
  where="abstract",
  design="Bandits with a network of 32 hidden units; a skill, taught by 300 "
  "demonstrations, and preferences, taught by 300 pairs with beta 1, on prompts that "
  "vary along other features; 200 steps of Adam at 0.002 each; TIES with half of the "
  "entries of each difference; L1 weight 0 or 0.3 of Adam's step; the mean of skill "
  "and reward, each over what one of the two has alone, on held-out prompts.",
  contrary="The sparse merge, weight 0.3, scores no higher than SFT then DPO; or no "
  "higher than the dense merge; or DPO's change is no sparser than SFT's.",
  departs="A network of 544 weights, all trained, in place of LoRA of a language "
  "model; an entry counts where it is a hundredth of the largest; the penalty is a "
  "proximal step, which makes exact zeros.",
  arms=(
    *(arm(PARALLEL, "ties", x) for x in SPARSITIES),
    *(arm(SUM, "linear", x) for x in SPARSITIES),
    arm(IN_TURN, "sft, dpo"),
    arm(TURNED, "dpo, sft"),
  ),
  predictions=(
    Prediction(
      "sparse merge by TIES minus SFT then DPO, score",
      "share of either alone",
      gap("score", (PARALLEL, CHOSEN), (IN_TURN, None)),
      ABOVE,
    ),
    Prediction(
      "sparse minus dense merge by TIES, score",
      "share of either alone",
      gap("score", (PARALLEL, CHOSEN), (PARALLEL, 0.0)),
      ABOVE,
    ),
    Prediction(
      "DPO's minus SFT's change, entries that are not negligible",
      "fraction",
      lambda r: r.metric(IN_TURN, "dpo_density") - r.metric(IN_TURN, "sft_density"),
      BELOW,
    ),
  ),
  plot=Plot(
    None,
    "score",
    "L1 weight, in Adam's steps",
    "mean share of skill and reward of either alone",
    "SFT after DPO keeps most of both. The sum of differences is near DPO after SFT, "
    "TIES below both, and a sparse change of SFT alters little.",
  ),
  paper_scale="Not run: Mistral 7B and Llama-3 8B with LoRA; the L1 weight and the "
  "rank were not found.",
  revised="Beta 0.1, prompts that no feature tells apart, and Adam at 0.01 were given "
  "up after runs in which preferences left less skill than the base has, as they still "
  "do here; at 0.01 the sparse merge scored less than SFT then DPO too.",
)
