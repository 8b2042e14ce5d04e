"""Index of the objectives: the single table of their names, one paper per file.

May be imported from `testing` onwards; imports `ops` and `types` alone. Reading names,
summaries and papers imports no JAX; `objectives.dpo` or `get("dpo")` does, on first
use.
"""

import ast
import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

NAMES = (
  "sft",
  "nll",
  "dpo",
  "robust_dpo",
  "dpo_norm",
  "rso",
  "ipo",
  "ipo_avg",
  "dpop",
  "gpo",
  "f_dpo",
  "chi_po",
  "r_dpo",
  "exo",
  "exo_list",
  "beta_dpo",
  "simpo",
  "slic",
  "cpo",
  "arpo",
  "alphapo",
  "apo_zero",
  "apo_down",
  "nca",
  "infonca",
  "aot",
  "aot_unpaired",
  "discopop",
  "wpo",
  "ld_dpo",
  "sampo",
  "orpo",
  "token_dpo",
  "tdpo1",
  "tdpo2",
  "kto",
  "dro",
  "unlikelihood",
  "cringe",
  "pairwise_cringe",
  "npo",
  "simnpo",
  "retain_kl",
  "d2o",
  "apo_zero_unpaired",
  "bco",
  "plackett_luce",
  "list_mle",
  "list_net",
  "lipo",
  "approx_ndcg",
  "rrhf",
  "pro",
  "bradley_terry",
  "kwise",
  "preference_model",
  "token_reward",
  "ppo",
  "reinforce",
  "rloo",
  "remax",
  "grpo",
  "dr_grpo",
  "dapo",
  "bnpo",
  "cispo",
  "gspo",
  "raft",
  "nash_md",
  "ipo_md",
  "sppo",
  "dno",
  "online_dpo",
  "exploratory_dpo",
  "reinforce_plus_plus",
  "reinforce_plus_plus_baseline",
  "gspo_token",
  "sapo",
  "gmpo",
  "spin",
  "step_dpo",
  "dpo_shift",
  "simper",
  "bco_udm",
  "kd",
  "gkd",
  "on_policy_distillation",
  "minillm",
)

# Building blocks importable from here: no objectives with a paper of their own.
_PARTS = {
  "mixture": "_mixture",
  "entropy_bonus": "_entropy_bonus",
  "odds_ratio": "_orpo",
  "gamma_from_ratio": "_simpo",
  "ipo_distance": "_ipo",
  "exo_divergence": "_exo",
  "rejection": "_arpo",
  "reward_targets": "_infonca",
  "nca_loss": "_nca",
  "nca_list": "_nca",
  "bco_pair": "_bco",
  "wpo_weight": "_wpo",
  "down_weighted": "_ld_dpo",
  "down_sample": "_sampo",
  "sequential_kl": "_tdpo1",
  "tdpo_rewards": "_tdpo1",
  "dro_half_square": "_dro",
  "token_unlikelihood": "_unlikelihood",
  "token_contrast": "_cringe",
  "beta_dpo_coupling": "_beta_dpo",
  "lipo_softmax": "_lipo",
  "penalised_reward": "_reinforce",
  "rloo_advantages": "_rloo",
  "overlong_penalty": "_dapo",
  "nash_md_surrogate": "_nash_md",
  "nash_md_token_local": "_nash_md",
  "best_against_worst": "_online_dpo",
  "exploration": "_exploratory_dpo",
  "soft_bradley_terry": "_bradley_terry",
  "margin_bradley_terry": "_bradley_terry",
  "pointwise": "_pointwise",
  "preference": "_preference_model",
  "token_regression": "_token_reward",
  "log_ratio": "_rewards",
  "rewards": "_rewards",
  "seq_logp": "_rewards",
  "avg_logp": "_rewards",
  "token_rewards": "_rewards",
}
# The file of each importable name.
HOME = {name: f"_{name}" for name in NAMES} | _PARTS


def __getattr__(name: str) -> Any:
  """Imports a factory on first access (PEP 562)."""
  if name not in HOME:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return vars(importlib.import_module(f"{__name__}.{HOME[name]}"))[name]


def __dir__() -> list[str]:
  return sorted({*globals(), *HOME})


def get(name: str) -> Callable:
  """Returns the factory of an objective.

  Raises:
    ValueError: no such objective; suggests the closest name.
  """
  _check_name(name)
  return __getattr__(name)


def build(name: str, hparams: Mapping[str, Any] | None = None) -> Any:
  """Builds the objective `name` with hyperparameters from a configuration.

  Raises:
    ValueError: no such objective, a hyperparameter it does not have, or a value out of
      range.
  """
  factory = get(name)
  hparams = hparams or {}
  allowed = inspect.signature(factory).parameters
  for hparam in hparams:
    if hparam not in allowed:
      known = f"its hyperparameters: {', '.join(allowed) or 'none'}"
      meant = _did_you_mean(hparam, allowed)
      raise ValueError(f"{name} has no hyperparameter {hparam!r}{meant}; {known}")
  return factory(**hparams)


def docstring(name: str) -> str:
  """Reads the documentation page of an objective from its file, without importing it.

  Raises:
    ValueError: no such objective.
  """
  _check_name(name)
  source = Path(__file__).with_name(f"_{name}.py").read_text(encoding="utf-8")
  for node in ast.parse(source).body:
    if isinstance(node, ast.FunctionDef) and node.name == name:
      return ast.get_docstring(node)
  raise LookupError(f"_{name}.py has no function {name}")


def summary(name: str) -> str:
  """Returns the first line of the documentation page."""
  return docstring(name).partition("\n")[0]


def arxiv(name: str) -> str:
  """Returns the arXiv number of the objective's paper."""
  return re.search(r"arXiv:(\d{4}\.\d{4,5})", docstring(name)).group(1)


def _check_name(name: str) -> None:
  if name not in NAMES:
    meant = _did_you_mean(name, NAMES)
    raise ValueError(f"no objective {name!r}{meant}; known: {', '.join(NAMES)}")


def _did_you_mean(name: str, known: Iterable[str]) -> str:
  close = difflib.get_close_matches(str(name).lower(), list(known), n=1, cutoff=0.5)
  return f" (did you mean {close[0]!r}?)" if close else ""
