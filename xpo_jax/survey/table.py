"""The survey's table as data: each paper's values in the 13 directions.

"A Comprehensive Survey of LLM Alignment Techniques: RLHF, RLAIF, PPO, DPO and More",
Wang et al. 2024, arXiv:2407.16216v1. The values are a RECONSTRUCTION from the survey's
definitions and the papers, not a copy of its printed table, which was not checked. Each
cell states its basis. What code can decide (reference, pair or list, ..) is checked
against the objectives by a test.

Importing this imports no JAX.
"""

import enum
from collections.abc import Callable

from xpo_jax.survey import taxonomy
from xpo_jax.survey.taxonomy import paper

# fmt: off
PAPERS = (
  # name, section, arXiv, RM1 RM2 RM3 RM4  F1 F2 F3  RL1 RL2 RL3 RL4  O1 O2
  paper("InstructGPT", "3.1.1", "2203.02155",
        "E* P* R* +-*  Pf* Lw* H*  Ref* no rKL* On  Once Sep*", "ppo kwise sft nll",
        notes={"F2": "4 to 9 completions ranked, expanded to pairs"}),
  paper("RLHF (Anthropic)", "3.1.2", "2204.05862",
        "E* P R +-  Pf Pw H*  Ref* no rKL* On  It* Sep", "ppo bradley_terry",
        recipe="PPO, reward model and policy refreshed in turn"),
  paper("Online / iterative RLHF", "3.1.3", "2405.07863",
        "E* P R +-  Pf Pw A?  Ref no rKL On*  It* Sep", "dpo bradley_terry",
        recipe="best against worst of n, DPO, again",
        notes={"RM2": "a preference model is used too"}),
  paper("RLAIF (Anthropic)", "3.2.1", "2212.08073",
        "E P R +-  Pf Pw A*  Ref no rKL On  Once Sep*", "ppo bradley_terry sft",
        recipe="critique and revise, then PPO on AI labels"),
  paper("RLAIF (Google)", "3.2.2", "2309.00267",
        "E* P R +-  Pf Pw A*  Ref no rKL On  Once Sep", "reinforce bradley_terry",
        recipe="REINFORCE on AI labels, or on an AI's score",
        notes={"RM1": "direct RLAIF fits no reward model"}),
  paper("SLiC-HF", "3.3.1", "2305.10425",
        "I/E P R +-  Pf Pw H  Free? no n/a? Off  Once Sep", "slic",
        notes={"RM1": "implicit when direct, explicit with sample-rank",
                "RL1": "an SFT regulariser instead of a ratio",
                "O2": "the regulariser is an SFT term"}),
  paper("RSO", "3.3.2", "2309.06657",
        "E* P R +-  Pf Pw H/A  Ref no rKL Off  Once Sep", "rso",
        notes={"RM1": "for the rejection sampler",
                "RL4": "approximates samples of the optimal policy"}),
  paper("DPO", "3.3.3", "2305.18290",
        "I* P R* +-  Pf* Pw* H  Ref* no rKL* Off*  Once* Sep", "dpo"),
  paper("DPOP (Smaug)", "3.3.4", "2402.13228",
        "I P R +-  Pf Pw H  Ref* no rKL Off  Once Sep", "dpop"),
  paper("beta-DPO", "3.3.5", "2407.08639",
        "I P R +-  Pf Pw H  Ref no rKL Off  Once Sep", "beta_dpo"),
  paper("IPO", "3.3.6", "2310.12036",
        "I Pr* R +-  Pf Pw H  Ref* no rKL Off  Once Sep", "ipo"),
  paper("sDPO", "3.3.7", "2403.19270",
        "I P R +-  Pf Pw H  Ref* no rKL Off  It? Sep", "dpo",
        recipe="DPO in stages, each stage's policy the next reference"),
  paper("GPO", "3.3.8", "2402.05749",
        "I P R +-  Pf Pw H  Ref* no rKL* Off  Once Sep", "gpo"),
  paper("From r to Q*", "3.4.1", "2404.12358",
        "I* P T* +-  Pf Pw H  Ref* no rKL Off  Once Sep", "token_dpo"),
  paper("TDPO", "3.4.2", "2404.11999",
        "I* P T* +-  Pf Pw H  Ref* no other* Off  Once Sep", "tdpo1 tdpo2",
        notes={"RL3": "forward KL summed over the sequence"}),
  paper("Self-Rewarding LMs", "3.5.1", "2401.10020",
        "I P R +-  Pf Pw A*  Ref no rKL On  It* Sep", "dpo",
        recipe="iterated DPO, the policy its own judge"),
  paper("CRINGE", "3.5.2", "2312.16682",
        "E? P R/T +-  B/Pf* Pw* H/A  Free* no n/a On  It* Sep", "pairwise_cringe",
        notes={"RM3": "tokens inside the loss",
                "RL4": "its iterations sample; one training run does not",
                "O2": "the likelihood of the chosen completion is part of the loss"}),
  paper("KTO", "3.6.1", "2402.01306",
        "I* P* R +-  B* n/a H  Ref* no rKL* Off  Once Sep", "kto",
        notes={"O2": "works without fine-tuning"}),
  paper("DRO", "3.6.2", "2405.19107",
        "I* P* R* +-  B* n/a H  Ref* no rKL* Off*  Once* Sep", "dro",
        notes={"F1": "any scalar"}),
  paper("ORPO", "3.7.1", "2403.07691",
        "I P R +-  Pf Pw H  Free* no n/a Off  Once Mrg*", "orpo",
        notes={"RL2": "log-probabilities are averaged over length"}),
  paper("PAFT", "3.7.2", "2406.17923",
        "I P R +-  Pf Pw H  Ref no rKL Off  Once Mrg*", "dpo sft",
        recipe="SFT and DPO in parallel, weights merged",
        notes={"O2": "merged as weights, not in a loss"}),
  paper("R-DPO", "3.8.1", "2403.19159",
        "I P R +-  Pf Pw H  Ref* len* rKL* Off  Once Sep", "r_dpo"),
  paper("SimPO", "3.8.2", "2405.14734",
        "I P R +-  Pf Pw H  Free* len* n/a Off  Once Sep", "simpo"),
  paper("RLOO", "3.8.3", "2402.14740",
        "E* P R +-  Pf Pw H  Ref/Free? no rKL? On*  Once Sep", "rloo",
        notes={"RL1": "survey: free; paper and codes put a KL term in the reward"}),
  paper("LiPO", "3.9", "2402.01878",
        "I P R +-  Pf Lw* A  Ref* no rKL Off  Once* Sep", "lipo"),
  paper("RRHF", "3.9", "2304.05302",
        "E P R +-  Pf Lw H/A  Free* no n/a Off  Once Mrg?", "rrhf",
        notes={"RL2": "log-probabilities are averaged over length"}),
  paper("PRO", "3.9", "2306.17492",
        "E P R +-  Pf Lw* H/A  Free* no n/a Off  Once Mrg?", "pro",
        notes={"RM1": "rewards are temperatures",
                "RL2": "log-probabilities are averaged over length"}),
  paper("Negating Negatives (D2O)", "3.10", "2403.03419",
        "I P R -*  B n/a H  Ref* no other On  It? Sep", "d2o",
        notes={"RL1": "two references", "F2": "self-samples and one negative",
               "RM4": "self-samples are anchors"}),
  paper("NPO", "3.10", "2404.05868",
        "I P R -*  B n/a H  Ref* no rKL Off*  Once Sep", "npo retain_kl"),
  paper("CPO", "3.10", "2401.08417",
        "I P R +-/-?  Pf* Pw* A*  Free* no n/a Off*  Once Mrg?", "cpo",
        notes={"RM4": "the survey lists it here; it uses pairs"}),
  paper("Nash learning (NLHF)", "3.11", "2312.00886",
        "E Pr* R +-  Pf Pw H  Ref no rKL On  It Sep", "nash_md preference_model"),
  paper("SPPO", "3.11", "2405.00675",
        "E Pr* R +-  Pf Pw A  Ref no rKL On  It* Sep", "sppo"),
  paper("DNO", "3.11", "2404.03715",
        "E? Pr* R +-  Pf Pw A  Ref no rKL On  It Sep", "dno"),
  paper("Beyond reverse KL (f-DPO)", "3.12", "2309.16240",
        "I P R +-  Pf Pw H  Ref* no other* Off  Once Sep", "f_dpo"),
  # Related methods that the survey does not discuss; classified by its definitions.
  paper("Robust DPO", "", "2403.00409",
        "I P R +-  Pf Pw H  Ref no rKL Off  Once Sep", "robust_dpo"),
  paper("IPO, averaged", "", "2310.12036",
        "I Pr R +-  Pf Pw H  Ref no rKL Off  Once Sep", "ipo_avg",
        notes={"RL2": "log-ratios are averaged over length"}),
  paper("Length-normalised DPO (Tulu 3)", "", "2411.15124",
        "I P R +-  Pf Pw H/A  Ref len rKL Off  Once Sep", "dpo_norm"),
  paper("X-ALMA (ARPO)", "", "2410.03115",
        "I P R +-  Pf Pw A  Free no n/a Off  Once Mrg?", "arpo",
        notes={"RL2": "the penalty reads log-probabilities per token"}),
  paper("chi-PO", "", "2407.13399",
        "I P R +-  Pf Pw H  Ref no other Off  Once Sep", "chi_po",
        notes={"RL3": "chi-square beside the reverse KL"}),
  paper("EXO", "", "2402.00856",
        "I P R +-  Pf Pw/Lw H  Ref no rKL Off  Once Sep", "exo exo_list"),
  paper("APO", "", "2408.06266",
        "I P R +-  Pf Pw A  Ref no rKL Off  Once Sep", "apo_zero apo_down"),
  paper("APO-zero, unpaired", "", "2408.06266",
        "I P R +-  B n/a A  Ref no rKL Off  Once Sep", "apo_zero_unpaired"),
  paper("NCA, InfoNCA", "", "2402.05369",
        "I P R +-  Pf Pw/Lw A  Ref no rKL Off  Once Sep", "nca infonca"),
  paper("BCO", "", "2404.04656",
        "I P R +-  B n/a H  Ref no rKL Off  Once Sep", "bco bco_udm"),
  paper("AOT", "", "2406.05882",
        "I P R +-  Pf Pw H  Ref no rKL Off  Once Sep", "aot aot_unpaired"),
  paper("DiscoPOP", "", "2406.08414",
        "I P R +-  Pf Pw H  Ref no rKL Off  Once Sep", "discopop"),
  paper("WPO", "", "2406.11827",
        "I P R +-  Pf Pw A  Ref no rKL Off  Once Sep", "wpo",
        notes={"RL2": "a pair's weight is an average over length"}),
  paper("LD-DPO", "", "2409.06411",
        "I P R +-  Pf Pw H  Ref len rKL Off  Once Sep", "ld_dpo"),
  paper("SamPO", "", "2406.10957",
        "I P R +-  Pf Pw H  Ref len rKL Off  Once Sep", "sampo"),
  paper("AlphaPO", "", "2501.03884",
        "I P R +-  Pf Pw H  Free len n/a Off  Once Sep", "alphapo"),
  paper("CRINGE, binary", "", "2211.05826",
        "E? P T +-  B n/a H/A  Free no n/a Off  It Mrg", "cringe",
        notes={"RL2": "a mean over tokens",
               "O2": "the likelihood of desirable completions is in the loss"}),
  paper("Unlikelihood", "", "1908.04319",
        "I P T +-  B n/a A  Free no n/a Off  Once Mrg", "unlikelihood",
        notes={"RL2": "a mean over tokens",
               "O2": "the likelihood of desirable completions is in the loss"}),
  paper("Process reward model", "", "2305.20050",
        "E P T +-  B n/a H  Free no n/a Off  Once Sep", "token_reward"),
  paper("SimNPO", "", "2410.07163",
        "I P R -  B n/a H  Free len n/a Off  Once Sep", "simnpo"),
  paper("Plackett-Luce DPO", "", "2305.18290",
        "I P R +-  Pf Lw H  Ref no rKL Off  Once Sep", "plackett_luce"),
  paper("ListMLE, ListNet, ApproxNDCG", "", "2402.01878",
        "I P R +-  Pf Lw A  Ref no rKL Off  Once Sep", "list_mle list_net approx_ndcg",
        notes={"F2": "classical ranking losses, as LiPO compares them"}),
  paper("REINFORCE", "", "2402.14740",
        "E P R +-  Pf Pw H  Ref/Free no rKL On  Once Sep", "reinforce"),
  paper("GRPO", "", "2402.03300",
        "E P R +-  Pf Pw/Lw H/A  Ref no rKL On  It Sep", "grpo",
        notes={"RL2": "the tokens of each completion are averaged"}),
  paper("Dr. GRPO", "", "2503.20783",
        "E P R +-  Pf Pw/Lw H/A  Free no n/a On  It Sep", "dr_grpo"),
  paper("DAPO", "", "2503.14476",
        "E P R +-  Pf Pw/Lw H/A  Free no n/a On  It Sep", "dapo"),
  paper("Batch-normalised token mean (TRL's BNPO)", "", "2503.14476",
        "E P R +-  Pf Pw/Lw H/A  Free no n/a On  It Sep", "bnpo"),
  paper("CISPO", "", "2506.13585",
        "E P R +-  Pf Pw/Lw H/A  Free no n/a On  It Sep", "cispo"),
  paper("GSPO", "", "2507.18071",
        "E P R +-  Pf Pw/Lw H/A  Free no n/a On  It Sep", "gspo",
        notes={"RL2": "the ratio is averaged over length"}),
  paper("ReMax", "", "2310.10505",
        "E P R +-  Pf Pw H  Ref/Free no rKL On  Once Sep", "remax"),
  paper("RAFT", "", "2304.06767",
        "E P R +-  Pf Pw/Lw H  Free no n/a On  It Sep", "raft"),
  paper("IPO-MD", "", "2403.08635",
        "E Pr R +-  Pf Pw A  Ref no rKL On  It Sep", "ipo_md"),
  paper("Online DPO (OAIF)", "", "2402.04792",
        "I P R +-  Pf Pw A  Ref no rKL On  It Sep", "online_dpo"),
  paper("XPO, exploratory", "", "2405.21046",
        "I P R +-  Pf Pw H/A  Ref no rKL On  It Sep", "exploratory_dpo"),
  paper("REINFORCE++", "", "2501.03262",
        "E P R +-  Pf Pw/Lw H/A  Ref no rKL On  It Sep",
        "reinforce_plus_plus reinforce_plus_plus_baseline",
        notes={"RL2": "the tokens of each completion are averaged"}),
  paper("GSPO-token", "", "2507.18071",
        "E P R/T +-  Pf Pw/Lw H/A  Free no n/a On  It Sep", "gspo_token",
        notes={"RM3": "an advantage per token is possible",
               "RL2": "the ratio is averaged over length"}),
  paper("SAPO", "", "2511.20347",
        "E P R +-  Pf Pw/Lw H/A  Free no n/a On  It Sep", "sapo",
        notes={"RL2": "the tokens of each completion are averaged"}),
  paper("GMPO", "", "2507.20673",
        "E P R +-  Pf Pw/Lw H/A  Free no n/a On  It Sep", "gmpo",
        notes={"RL2": "log-ratios are averaged over length"}),
  paper("Lite PPO (Tricks or Traps)", "", "2508.08221",
        "E P R +-  Pf Pw/Lw H/A  Free no n/a On  It Sep", "bnpo",
        recipe="a mean over tokens, rewards scaled over the batch"),
  paper("SPIN", "", "2401.01335",
        "I P R +-  Pf Pw H  Ref* no rKL* On*  It* Sep", "spin",
        notes={"F2": "a demonstration against a sample of the policy",
               "RL4": "samples of the iteration before"}),
  paper("Step-DPO", "", "2406.18629",
        "I P R +-  Pf Pw H/A  Ref* no rKL Off  Once Sep", "step_dpo",
        notes={"RM3": "of one step of reasoning"}),
  paper("DPO-Shift", "", "2502.07599",
        "I P R +-  Pf Pw A  Ref* no rKL Off  Once Sep", "dpo_shift"),
  paper("SimPER", "", "2502.00883",
        "I P R +-  Pf Pw A  Free* len n/a Off  Once Sep", "simper"),
  # Distillation: the teacher's probabilities take the place of feedback.
  paper("Knowledge distillation", "", "1503.02531",
        "I P T +-  B n/a A  Free no n/a Off  Once Sep", "kd",
        notes={"F1": "no label: a teacher's probabilities",
               "RL3": "forward KL to the teacher, none to a reference"}),
  paper("GKD", "", "2306.13649",
        "I P T +-  B n/a A  Free no n/a On  It Sep", "gkd",
        notes={"F1": "no label: a teacher's probabilities",
               "RL2": "the tokens of each completion are averaged",
               "RL3": "generalised JSD to the teacher, none to a reference"}),
  paper("On-policy distillation", "", "2306.13649",
        "I P T +-  B n/a A  Free no n/a On  It Sep", "on_policy_distillation",
        notes={"F1": "no label: a teacher's probabilities",
               "RL3": "reverse KL to the teacher, none to a reference"}),
  paper("MiniLLM", "", "2306.08543",
        "I P T +-  B n/a A  Free len n/a On  It Sep", "minillm",
        notes={"F1": "no label: a teacher's probabilities",
               "RL3": "reverse KL to the teacher, none to a reference"}),
)
# fmt: on


def papers_of(objective: str) -> tuple[taxonomy.Paper, ...]:
  """Returns the rows that use an objective."""
  return tuple(paper for paper in PAPERS if objective in paper.objectives)


def _cell(cell: taxonomy.Cell, name: Callable[[enum.Enum], str]) -> str:
  """Formats a cell: the names of its values, then the mark of its basis."""
  return ("/".join(sorted(map(name, cell.values))) or "n/a") + cell.basis.value


def _question(direction: type[enum.Enum]) -> str:
  """The question of a direction, from its docstring."""
  return (direction.__doc__ or "").partition(": ")[2]


def describe(paper: taxonomy.Paper) -> str:
  """Describes a row in full: question, values, basis and note of each direction."""
  where = f"survey {paper.section}" if paper.section else "not in the survey"
  lines = [f"{paper.name} (arXiv:{paper.arxiv}, {where})"]
  for code, direction in taxonomy.DIRECTIONS.items():
    cell = paper.cells[code]
    note = f" ({cell.note})" if cell.note else ""
    values = _cell(cell, lambda value: value.value)
    lines.append(f"  {code:3}  {values}{note} - {_question(direction)}")
  if paper.recipe:
    lines.append(f"  a recipe: {paper.recipe}")
  return "\n".join(lines)


_ABBREVIATED = {value: short for short, value in taxonomy.SHORT.items()}


def abbreviated(paper: taxonomy.Paper) -> dict[str, str]:
  """Abbreviates a row: direction code -> its values joined by "/", and their basis."""
  return {
    code: _cell(cell, _ABBREVIATED.__getitem__) for code, cell in paper.cells.items()
  }


def render() -> str:
  """Renders every row in abbreviated cells, with a legend."""
  head = ["paper", "section", *taxonomy.DIRECTIONS, "objectives"]
  rows = [head]
  for entry in PAPERS:
    short = abbreviated(entry).values()
    names = " ".join(entry.objectives)
    rows.append([entry.name, entry.section or "-", *short, names])
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = ["survey table (a reconstruction, not the printed one)"]
  for row in rows:
    cells = [f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)]
    lines.append("  " + " ".join(cells).rstrip())
  lines.append("  * stated by the survey, the paper or its code; ? open; else inferred")
  for code, direction in taxonomy.DIRECTIONS.items():
    key = ", ".join(f"{_ABBREVIATED[value]} {value.value}" for value in direction)
    lines.append(f"  {code:3} {_question(direction)} {key}")
  return "\n".join(lines)
