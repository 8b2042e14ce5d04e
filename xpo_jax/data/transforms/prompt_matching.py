"""Weights undesirable completions by how likely their prompts are among desirable ones.

Underlying distribution matching (UDM) of BCO: Jung et al. 2024, arXiv:2404.04656. A
logistic regression tells the prompts of desirable completions from those of undesirable
ones; its odds are the ratio of the two densities of prompts.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize, special

from xpo_jax.data.tokenise import Example
from xpo_jax.types import Layout

MIN_RATIO, MAX_RATIO = 0.5, 10.0  # TRL's clip of the ratio
_FEATURES = 256
_MOST = 1024  # prompts of a class that the classifier is fitted on, as in TRL


def weighted(examples: Sequence[Example], tokenizer: Any) -> list[Example]:
  """Adds the column `prompt_weight` of `objectives.bco_udm`; for `Data.transform`.

  1 for desirable completions; p(desirable | x) / p(undesirable | x) for the others,
  clipped to 0.5 and 10. Training and held-out examples have a classifier each.

  The paper's features are a text embedding; here they are the tokens of the prompt:
  counts by token id modulo 256, to unit length.

  Args:
    examples: of layout RATED, with the column `desirable`.
    tokenizer: not read.

  Raises:
    ValueError: another layout, no labels, or only one of the two classes.
  """
  del tokenizer
  layouts = {example.layout for example in examples} - {Layout.RATED}
  if layouts:
    listed = ", ".join(sorted(layout.name for layout in layouts))
    raise ValueError(
      f"prompt weights: the data are {listed} and must be RATED: in a pair both "
      "completions have the same prompt (use bco)"
    )
  lacking = [example.uid for example in examples if "desirable" not in example.fields]
  if lacking:
    raise ValueError(f"prompt weights: {lacking[0]} has no label; give `label`")
  desirable_N = np.array([example.fields["desirable"][0] > 0 for example in examples])
  if desirable_N.all() or not desirable_N.any():
    kind = "desirable" if desirable_N.all() else "undesirable"
    raise ValueError(
      f"prompt weights: all {len(examples)} completions are {kind}; the ratio needs "
      "both kinds (use bco for one)"
    )
  features_NF = np.stack([features(example.prompt) for example in examples])
  weight_N = np.where(desirable_N, 1, ratios(features_NF, desirable_N))
  return [
    dataclasses.replace(
      example,
      fields={**example.fields, "prompt_weight": np.array([weight], np.float32)},
    )
    for example, weight in zip(examples, weight_N, strict=True)
  ]


def features(prompt_P: np.ndarray, size: int = _FEATURES) -> np.ndarray:
  """Counts of a prompt's tokens by id modulo `size`, to unit length, `[F]`."""
  count_F = np.bincount(np.asarray(prompt_P) % size, minlength=size).astype(np.float64)
  return count_F / max(np.linalg.norm(count_F), 1.0)


def ratios(
  features_NF: np.ndarray,
  desirable_N: np.ndarray,
  *,
  low: float = MIN_RATIO,
  high: float = MAX_RATIO,
  ridge: float = 1.0,
) -> np.ndarray:
  """p(desirable | x) / p(undesirable | x) of each prompt, clipped, `[N]`.

  The classes weigh the same in the fit, however many prompts they have, so that the
  odds are the ratio of the densities. Fitted on at most 1024 prompts of a class, evenly
  spaced in the data.

  Args:
    features_NF: features of the prompts.
    desirable_N: class of each; both must occur.
    low, high: bounds of the ratio.
    ridge: L2 penalty on the coefficients, times 1/2; the intercept has none.
  """
  at_N = np.concatenate(
    [_spread(np.flatnonzero(desirable_N == side)) for side in (False, True)]
  )
  coefficient_F, intercept = fit(features_NF[at_N], desirable_N[at_N], ridge)
  logit_N = features_NF @ coefficient_F + intercept
  return np.exp(np.clip(logit_N, np.log(low), np.log(high)))


def fit(
  features_NF: np.ndarray, label_N: np.ndarray, ridge: float = 1.0
) -> tuple[np.ndarray, float]:
  """Logistic regression with balanced classes: coefficients `[F]`, and the intercept.

  Minimises ridge |c|^2 / 2 plus the log-loss summed over examples, each weighted by
  N / (2 * the number of its class): scikit-learn's with class_weight="balanced".
  """
  sign_N = np.where(label_N, 1.0, -1.0)
  number = np.where(label_N, label_N.sum(), (~label_N).sum())
  weight_N = len(label_N) / (2 * number)
  with_1_NF = np.concatenate([features_NF, np.ones((len(label_N), 1))], 1)
  penalty_F = np.append(np.full(features_NF.shape[1], ridge), 0.0)

  def loss(c_F: np.ndarray) -> tuple[float, np.ndarray]:
    margin_N = sign_N * (with_1_NF @ c_F)
    value = -(weight_N * special.log_expit(margin_N)).sum() + penalty_F @ c_F**2 / 2
    slope_N = -weight_N * sign_N * special.expit(-margin_N)
    return value, slope_N @ with_1_NF + penalty_F * c_F

  found = optimize.minimize(loss, np.zeros(len(penalty_F)), jac=True, method="L-BFGS-B")
  return found.x[:-1], float(found.x[-1])


def _spread(index_N: np.ndarray) -> np.ndarray:
  """At most `_MOST` of the indices, evenly spaced."""
  step = max(-(-len(index_N) // _MOST), 1)
  return index_N[::step]
