"""Equation numbers that the package prints, and who states each of them.

A page prints a number only where a public source states it; this is the one place that
says which. `docs_test.py` compares the table with what the files print.
"""

import re
from pathlib import Path
from typing import NamedTuple

_NUMBER = r"\d+(?:\.\d+)?"
_PRINTED = re.compile(rf"\bEqs?\. ({_NUMBER}(?:(?:, | and | to ){_NUMBER})*)")


class Printed(NamedTuple):
  """Equations of one paper that one file prints.

  Attributes:
    file: path below the package.
    numbers: as the file prints them: "7", "4 and 5", "8 to 10".
    what: what the equation defines.
    paper: arXiv number, or the title where there is none.
    source: who states the number.
    read: the number was read in the text of the paper.
  """

  file: str
  numbers: str
  what: str
  paper: str
  source: str
  read: bool = False


_DPO_CODE = "the authors' code (eric-mitchell/direct-preference-optimization)"
_COURSE = "notes of a public course, `frontierlab`, that checks claims in the papers"
_TDPO = "comments of a public TDPO trainer built on TRL"
_OAT = "sail-sg/oat, `learners/loss.py`"
_DISTILLATION = "public notes that quote MiniLLM and GKD equation by equation"
_INSTRUCTGPT = "public notes that quote InstructGPT equation by equation"

PRINTED = (
  Printed("objectives/_apo_down.py", "8", "loss", "2408.06266", "TRL, DPO trainer"),
  Printed("objectives/_apo_zero.py", "7", "loss", "2408.06266", "TRL, DPO trainer"),
  Printed(
    "objectives/_apo_zero_unpaired.py",
    "7",
    "loss on pairs",
    "2408.06266",
    "TRL, KTO trainer",
  ),
  Printed("objectives/_bradley_terry.py", "1", "loss", "2203.02155", _INSTRUCTGPT),
  Printed(
    "objectives/_cispo.py",
    "4 and 5",
    "loss, clipped weight",
    "2506.13585",
    "THUDM/slime, `ppo_utils.py`",
  ),
  Printed("objectives/_cpo.py", "5", "loss", "2401.08417", "public notes on the paper"),
  Printed(
    "objectives/_cpo.py",
    "3",
    "preference term",
    "2401.08417",
    "the authors' code (fe1ixxu/ALMA); TRL",
  ),
  Printed("objectives/_dapo.py", "8", "objective", "2503.14476", _COURSE),
  Printed(
    "objectives/_dapo.py",
    "13",
    "overlong punishment",
    "2503.14476",
    "TRL, `rewards/other_rewards.py`",
  ),
  Printed(
    "objectives/_discopop.py",
    "27",
    "loss",
    "2406.08414",
    "the paper's appendix (TRL gives Eq. 5, of its main text)",
    read=True,
  ),
  Printed("objectives/_dpo.py", "7", "loss", "2305.18290", _DPO_CODE),
  Printed(
    "objectives/_dpo.py",
    "3",
    "cDPO",
    "A note on DPO with noisy preferences",
    _DPO_CODE,
  ),
  Printed("objectives/_dpo_norm.py", "6", "loss", "2411.15124", _COURSE),
  Printed(
    "objectives/_dpo_shift.py",
    "3",
    "loss",
    "2502.07599",
    "the paper, version 2",
    read=True,
  ),
  Printed("objectives/_dpop.py", "3", "loss", "2402.13228", _OAT),
  Printed(
    "objectives/_dr_grpo.py",
    "2",
    "loss with a constant divisor",
    "2503.20783",
    "documentation of slime's `--pg-loss-divisor`",
  ),
  Printed(
    "objectives/_exo.py", "16", "loss on pairs", "2402.00856", "TRL, DPO trainer"
  ),
  Printed(
    "objectives/_gmpo.py",
    "4",
    "objective",
    "2507.20673",
    "the paper, version 3",
    read=True,
  ),
  Printed("objectives/_gkd.py", "4", "loss", "2306.13649", _DISTILLATION),
  Printed("objectives/_gkd.py", "1", "divergence", "2306.13649", _DISTILLATION),
  Printed("objectives/_grpo.py", "3", "objective", "2402.03300", _COURSE),
  Printed("objectives/_grpo.py", "4", "k3", "2402.03300", _COURSE),
  Printed("objectives/_gspo.py", "5", "objective", "2507.18071", _COURSE),
  Printed("objectives/_gspo.py", "7", "ratio of a sequence", "2507.18071", _COURSE),
  Printed(
    "objectives/_gspo_token.py", "13 and 14", "objective, ratio", "2507.18071", _COURSE
  ),
  Printed("objectives/_ipo.py", "17", "loss", "2310.12036", _DPO_CODE, read=True),
  Printed("objectives/_ipo_avg.py", "17", "loss, summed", "2310.12036", _DPO_CODE),
  Printed(
    "objectives/_kto.py",
    "8",
    "loss",
    "2402.01306",
    "comments of a public trainer with differential privacy (TRL gives Eq. 7)",
  ),
  Printed(
    "objectives/_kto.py",
    "9",
    "ratio of the weights",
    "2402.01306",
    "comments of a public trainer (TRL gives Eq. 8)",
  ),
  Printed("objectives/_kwise.py", "1", "loss", "2203.02155", _INSTRUCTGPT),
  Printed("objectives/_minillm.py", "7", "gradient", "2306.08543", _DISTILLATION),
  Printed("objectives/_minillm.py", "4", "sampling", "2306.08543", _DISTILLATION),
  Printed("objectives/_minillm.py", "6", "mean R_t", "2306.08543", _DISTILLATION),
  Printed(
    "objectives/_nll.py",
    "1",
    "DPO plus the term",
    "2404.19733",
    "a review of this package, which did not record its source",
  ),
  Printed(
    "objectives/_npo.py",
    "3",
    "loss",
    "2404.05868",
    "the paper's text, as Markdown in a public repository",
    read=True,
  ),
  Printed(
    "objectives/_orpo.py",
    "3, 4 and 7",
    "average log-probability, odds, loss of the odds ratio",
    "2403.07691",
    "google/tunix, DPO trainer (3); TRL, ORPO trainer (4 and 7)",
  ),
  Printed(
    "objectives/_ppo.py",
    "2",
    "objective with pretraining term",
    "2203.02155",
    "ReMax's authors' code (liziniu/ReMax)",
  ),
  Printed(
    "objectives/_ppo.py",
    "7",
    "clipped loss",
    "1707.06347",
    "torchtune, `rlhf/loss/ppo.py`",
  ),
  Printed(
    "objectives/_pro.py",
    "5",
    "loss",
    "2306.17492",
    "two public sets of reading notes with the paper's tags",
  ),
  Printed("objectives/_r_dpo.py", "9", "loss", "2403.19159", _OAT),
  Printed(
    "objectives/_reinforce_plus_plus.py",
    "1, 4 and 5",
    "objective, advantage, its normalisation",
    "2501.03262",
    "the paper, version 9",
    read=True,
  ),
  Printed(
    "objectives/_reinforce_plus_plus_baseline.py",
    "1, 6, 7 and 8",
    "objective, advantage, its normalisation, loss",
    "2501.03262",
    "the paper, version 9",
    read=True,
  ),
  Printed(
    "objectives/_rso.py", "8 to 10", "losses", "2309.06657", "the paper", read=True
  ),
  Printed(
    "objectives/_sapo.py",
    "5 and 6",
    "objective, gate",
    "2511.20347",
    "public notes on the paper",
  ),
  Printed(
    "objectives/_simpo.py",
    "6",
    "loss",
    "2405.14734",
    "several public implementations of the loss",
  ),
  Printed(
    "objectives/_slic.py", "4", "loss", "2305.10425", "public notes on the paper"
  ),
  Printed(
    "objectives/_spin.py",
    "4.7",
    "loss",
    "2401.01335",
    "the paper, version 3",
    read=True,
  ),
  Printed("objectives/_sppo.py", "4.7", "loss", "2405.00675", "TRL, DPO trainer"),
  Printed(
    "objectives/_step_dpo.py",
    "2",
    "loss",
    "2406.18629",
    "the paper, as the authors' repository holds it",
    read=True,
  ),
  Printed("objectives/_tdpo1.py", "14 and 15", "loss", "2404.11999", _TDPO),
  Printed("objectives/_tdpo2.py", "17 and 18", "loss", "2404.11999", _TDPO),
  Printed(
    "objectives/_wpo.py", "2", "weight of a pair", "2406.11827", "TRL, DPO trainer"
  ),
  Printed(
    "ops/discopop_losses.py",
    "9, 11 to 13, 18, 20 to 24, 26, 27 and 29",
    "discovered losses",
    "2406.08414",
    "the paper's appendix",
    read=True,
  ),
  Printed(
    "ops/policy_loss.py",
    "7",
    "clipped loss",
    "1707.06347",
    "torchtune, `rlhf/loss/ppo.py`",
  ),
  Printed(
    "ops/policy_loss.py", "5", "dual clip", "1912.09729", "thu-ml/tianshou, PPO policy"
  ),
  Printed(
    "ops/returns.py",
    "16",
    "generalised advantage estimate",
    "1506.02438",
    "a public formalisation in Lean",
  ),
  Printed(
    "ops/returns.py",
    "11",
    "the same, truncated",
    "1707.06347",
    "several public implementations of PPO",
  ),
)


def printed_in(text: str) -> set[str]:
  """All equation numbers that a text prints; "8 to 10" is 8, 9 and 10."""
  found = _PRINTED.findall(" ".join(text.split()))
  return {number for numbers in found for number in spelled_out(numbers)}


def spelled_out(numbers: str) -> set[str]:
  """The single numbers of "9, 11 to 13 and 18"."""
  out = set()
  for part in re.split(", | and ", numbers):
    first, _, last = part.partition(" to ")
    out |= {str(n) for n in range(int(first), int(last) + 1)} if last else {first}
  return out


def page(objectives: tuple[str, ...]) -> str:
  """The table as reStructuredText; `objectives` are the names of the index."""
  header = ("Page", "Eq.", "What", "Paper", "Stated by", "Read in the paper")
  rows = [header, *(_cells(one) for one in PRINTED)]
  table = "".join(
    f"   * - {row[0]}\n" + "".join(f"     - {cell}\n" for cell in row[1:])
    for row in rows
  )
  named = {_name(one.file) for one in PRINTED}
  others = ", ".join(f":doc:`{name}`" for name in objectives if name not in named)
  return (
    "An equation is numbered on a page only where a public source states the number:\n"
    "the paper itself, code, its comments, or notes. Numbers differ between versions\n"
    "of a paper. A number that was not read in the paper is as good as its source.\n\n"
    f".. list-table::\n   :header-rows: 1\n\n{table}\n"
    f"No number is printed for {others}.\n"
  )


def _cells(one: Printed) -> tuple[str, ...]:
  name = _name(one.file)
  link = f":doc:`{name}`" if one.file.startswith("objectives/") else f"`{name}`"
  paper = f"arXiv:{one.paper}" if one.paper[:4].isdigit() else one.paper
  return (link, one.numbers, one.what, paper, one.source, "yes" if one.read else "no")


def _name(file: str) -> str:
  """Name of the objective, or of the module."""
  path = Path(file)
  if path.parts[0] == "objectives":
    return path.stem.removeprefix("_")
  return ".".join(path.with_suffix("").parts)
