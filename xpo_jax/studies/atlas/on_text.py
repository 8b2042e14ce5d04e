"""What small language models show of papers' claims, on synthetic reviews.

Recipes and tables of `xpo train` measured these; their rows in `experiments/results/`
have intervals over seeds and prompts. A claim here names a row and the range that it
expects, and its verdict is the interval's, as in `table`.
"""

import json
from pathlib import Path
from typing import NamedTuple

from xpo_jax.evaluation import bootstrap
from xpo_jax.evaluation.bootstrap import Interval
from xpo_jax.studies.atlas import table
from xpo_jax.studies.atlas.table import ABOVE, BELOW, Verdict


class TextClaim(NamedTuple):
  """A number on text that a paper's claim predicts.

  Attributes:
    paper: name of its row in `survey.table`.
    recipe: what `xpo train` takes; its results are `RECIPE.json`.
    label: of the row there.
    measure: of the row.
    text, unit, expected: see `table.Prediction`.
  """

  paper: str
  recipe: str
  label: str
  measure: str
  text: str
  unit: str
  expected: tuple[float, float]


class TextFinding(NamedTuple):
  """A claim and what was measured."""

  claim: TextClaim
  interval: Interval
  verdict: Verdict


def _gaps(
  paper: str, recipe: str, first: str, second: str, *nats: str, where: str = ""
) -> list[TextClaim]:
  """The reward of one method minus another's at equal KL."""
  return [
    TextClaim(
      paper,
      recipe,
      f"{first} - {second}{where}, at {kl} nats",
      "reward",
      f"{first} minus {second}, true reward at {kl} nats",
      "reward",
      ABOVE,
    )
    for kl in nats
  ]


_REVIEWS = ", synthetic reviews"
CLAIMS = (
  *_gaps("DPO", "rafailov2023_frontier", "DPO", "Preferred-FT", "0.5", "1.3"),
  TextClaim(
    "DPO",
    "controlled_sentiment",
    "DPO, beta 0.2, over SFT",
    "change",
    "DPO minus SFT, true reward",
    "reward",
    ABOVE,
  ),
  TextClaim(
    "DPO",
    "controlled_sentiment",
    "DPO on flipped labels, over SFT",
    "change",
    "DPO on flipped labels minus SFT, true reward",
    "reward",
    BELOW,
  ),
  *_gaps("RLOO", "ahmadian2024_frontier", "RLOO", "RAFT", "0.25", where=_REVIEWS),
  *_gaps("RLOO", "ahmadian2024_frontier", "RLOO", "PPO", "0.25", "0.5", where=_REVIEWS),
  *_gaps(
    "Online / iterative RLHF",
    "ahmadian2024_frontier",
    "online DPO",
    "offline DPO",
    "0.25",
    where=_REVIEWS,
  ),
  TextClaim(
    "RLHF (Anthropic)",
    "gao2022_overoptimisation",
    "400 labels, train score - test score, paired",
    "difference",
    "score of the reward model that is optimised minus a held-out one's",
    "score",
    ABOVE,
  ),
)


def findings(results: Path) -> dict[str, list[TextFinding]]:
  """Every claim with what the results have, by paper.

  Args:
    results: the folder of results.

  Raises:
    ValueError: no such row, or no interval in it.
  """
  found: dict[str, list[TextFinding]] = {}
  for claim in CLAIMS:
    path = results / f"{claim.recipe}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    values = [row.get(claim.measure) for row in rows if row["label"] == claim.label]
    if len(values) != 1 or not isinstance(values[0], dict) or "low" not in values[0]:
      raise ValueError(
        f"{path.name} has not one interval of {claim.measure!r} at {claim.label!r}"
      )
    ends = {"se": None, "units": 0} | {k: values[0][k] for k in ("mean", "low", "high")}
    interval = bootstrap.read(ends)
    verdict = table.side(interval, claim.expected)
    found.setdefault(claim.paper, []).append(TextFinding(claim, interval, verdict))
  return found
