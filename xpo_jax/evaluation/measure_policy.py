"""Measures a policy on held-out prompts: reward, KL, length, diversity.

Samples are drawn without truncation, at temperature 1 or at that of the run: this is
the distribution whose KL is estimated. Values are stored per prompt and completion, so
that two policies can be compared prompt by prompt.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from xpo_jax.data import records
from xpo_jax.evaluation import bootstrap, sequence_logps
from xpo_jax.models import generate, sample, transformer
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.sharding import distributed
from xpo_jax.types import Array, Params

RewardFn = Callable[[Sequence[str]], np.ndarray]  # full texts -> one reward each


class Draws(NamedTuple):
  """Samples of one policy on the evaluation prompts, P prompts by K completions.

  Attributes:
    prompts: P prompt texts.
    texts: P tuples of K completion texts.
    tokens: P tuples of K completions as ids, without the stop token.
    reward_PK: true reward of prompt plus completion, or None.
    kl_PK: sum over visited positions of KL(policy || ref) over the vocabulary, nats.
    log_ratio_PK: log policy - log reference of the completion, nats.
    length_PK: tokens, the stop token included.
    ended_PK: True where the completion ended with EOS.
  """

  prompts: tuple[str, ...]
  texts: tuple[tuple[str, ...], ...]
  tokens: tuple[tuple[tuple[int, ...], ...], ...]
  reward_PK: np.ndarray | None
  kl_PK: np.ndarray
  log_ratio_PK: np.ndarray
  length_PK: np.ndarray
  ended_PK: np.ndarray


class Report(NamedTuple):
  """Measures of a policy and its reference on the same prompts.

  Attributes:
    policy, reference: samples of each.
    measures: name -> Interval of the policy: reward, kl, kl_plain, length, no_eos,
      distinct_1, distinct_2, win_rate_vs_reference, win_rate_vs_chosen.
    reference_measures: the same of the reference.
    differences: policy minus reference, paired over prompts: reward, length.
    chosen: chosen completion of each prompt, or None.
  """

  policy: Draws
  reference: Draws
  measures: Mapping[str, bootstrap.Interval]
  reference_measures: Mapping[str, bootstrap.Interval]
  differences: Mapping[str, bootstrap.Interval]
  chosen: tuple[str, ...] | None = None


class EvalSetup(NamedTuple):
  """Setup of an evaluation: prompts, reference, sampling, reward.

  Attributes:
    model: the architecture, shared by policy and reference.
    ref_params: `{"lm": ...}` of the reference.
    prompts: token ids of P prompts, BOS included.
    tokenizer: decodes; its EOS ends a completion.
    config: how completions are drawn: how many, how long, at which temperature.
      Log-probs and KLs of policy and reference are taken at that temperature too.
    reward: maps full texts (prompt plus completion) to rewards; None leaves them out.
    batch: prompts decoded at once; the text of a completion does not depend on it.
    row_P: number of each prompt, which its samples depend on; None: 0 to P - 1.
  """

  model: transformer.Model
  ref_params: Params
  prompts: Sequence[np.ndarray]
  tokenizer: Any
  config: GenerationConfig
  reward: RewardFn | None = None
  batch: int = 64
  row_P: Sequence[int] | None = None


def policy_report(
  setup: EvalSetup,
  params: Params,
  key: Array,
  *,
  reference: Draws | None = None,
  chosen: Sequence[str] | None = None,
) -> Report:
  """Samples a policy on held-out prompts and measures it against its reference.

  Args:
    setup: prompts, reference and sampling.
    params: `{"lm": ...}` of the policy.
    key: of the sampling.
    reference: the reference's own samples on the same prompts (`draw` with
      `setup.ref_params`), where several policies share them; None draws them.
    chosen: a completion of each prompt to compare with, or None.

  Returns:
    Report; every interval is over prompts.

  Raises:
    ValueError: see `draw`; `reference` or `chosen` of other prompts.
  """
  policy = draw(setup, params, key)
  reference = draw(setup, setup.ref_params, key) if reference is None else reference
  if reference.prompts != policy.prompts:
    raise ValueError("reference: drawn on other prompts than the policy; draw it anew")
  if chosen is not None and len(chosen) != len(setup.prompts):
    raise ValueError(
      f"chosen: {len(chosen)} completions for {len(setup.prompts)} prompts"
    )
  chosen_P = None
  if setup.reward is not None and chosen is not None:
    whole = [p + c for p, c in zip(policy.prompts, chosen, strict=True)]
    chosen_P = _rewards(setup.reward, whole)
  report = beside(policy, reference, chosen_P)
  return report._replace(chosen=None if chosen is None else tuple(chosen))


def beside(
  policy: Draws, reference: Draws, chosen_P: np.ndarray | None = None
) -> Report:
  """Compares the samples of a policy and its reference on the same prompts.

  Args:
    policy: samples of the policy, with or without rewards.
    reference: samples of the reference.
    chosen_P: rewards of a completion of each prompt to compare with, or None.
  """
  against, against_ref = {}, {}
  differences = {"length": (policy.length_PK, reference.length_PK)}
  if policy.reward_PK is not None:
    differences["reward"] = (policy.reward_PK, reference.reward_PK)
    against["reference"] = reference.reward_PK
    if chosen_P is not None:
      against["chosen"] = against_ref["chosen"] = chosen_P
  return Report(
    policy=policy,
    reference=reference,
    measures=measure(policy, against),
    reference_measures=measure(reference, against_ref),
    differences={
      name: bootstrap.paired_bootstrap(per_prompt(a), per_prompt(b))
      for name, (a, b) in differences.items()
    },
  )


def draw_over_processes(setup: EvalSetup, params: Params, key: Array) -> Draws:
  """Samples as `draw`, a share of the prompts on each process; all return all samples.

  The parameters are of this process alone.
  """
  if jax.process_count() == 1:
    return draw(setup, params, key)
  own = distributed.share(len(setup.prompts))
  part = setup._replace(
    prompts=setup.prompts[own], row_P=range(len(setup.prompts))[own]
  )
  drawn = distributed.together(lambda: draw(part, params, key))
  rows = list(map(list, zip(*map(_plain, drawn), strict=False)))
  prompts, texts, tokens, reward_PK, *arrays = zip(
    *distributed.gather_shares(own, rows), strict=True
  )
  kl_PK, log_ratio_PK, length_PK, ended_PK = map(np.array, arrays)
  return Draws(
    prompts=prompts,
    texts=tuple(
      tuple(
        text if ended else records.Cut(text)
        for text, ended in zip(texts_K, ended_K, strict=True)
      )
      for texts_K, ended_K in zip(texts, ended_PK, strict=True)
    ),
    tokens=tuple(tuple(map(tuple, tokens_K)) for tokens_K in tokens),
    reward_PK=None if reward_PK[0] is None else np.array(reward_PK),
    kl_PK=kl_PK,
    log_ratio_PK=log_ratio_PK,
    length_PK=length_PK,
    ended_PK=ended_PK,
  )


def _plain(column: Any) -> Iterable[Any]:
  """A field of `Draws` by prompt as plain data."""
  if column is None:
    return itertools.repeat(None)
  return column.tolist() if isinstance(column, np.ndarray) else column


def draw(setup: EvalSetup, params: Params, key: Array) -> Draws:
  """Samples completions and measures each of them.

  Args:
    setup: prompts, reference and sampling.
    params: `{"lm": ...}` of the policy.
    key: of the sampling.

  Returns:
    Draws.

  Raises:
    ValueError: no prompts, an empty prompt, or rewards of the wrong shape.
  """
  model, prompts = setup.model, setup.prompts
  if not len(prompts) or not all(len(prompt) for prompt in prompts):
    raise ValueError(f"prompts: {len(prompts)} given; need at least one, none empty")
  batch = min(setup.batch, len(prompts))
  drawn = generate.generate(
    model,
    params["lm"],
    prompts,
    tokenizer=setup.tokenizer,
    config=setup.config,
    key=key,
    row_B=setup.row_P,
    batching=generate.Batching(batch),
  )
  policy, ref = {"lm": params["lm"]}, {"lm": setup.ref_params["lm"]}
  arrays = sequence_logps.PaddedTexts(
    *sample.pad(prompts), drawn.tokens_BKT, drawn.mask_BKT, drawn.mask_BKT
  )
  parts = [
    jax.device_get(
      sequence_logps.statistics(
        model, policy, ref, arrays.rows(indices), setup.config.temperature
      )
    )
    for indices in generate.batch_indices(len(prompts), batch)
  ]
  stats = jax.tree.map(lambda *x: np.concatenate(x)[: len(prompts)], *parts)
  length_PK, ended_PK = drawn.length_BK.astype(np.int64), drawn.ended_BK
  tokens = tuple(
    tuple(tuple(t[:n].tolist()) for t, n in zip(t_KT, n_K, strict=True))
    for t_KT, n_K in zip(drawn.tokens_BKT, length_PK - ended_PK, strict=True)
  )
  whole = [
    prompt + text
    for prompt, texts in zip(drawn.prompts, drawn.texts_BK, strict=True)
    for text in texts
  ]
  reward_PK = None
  if setup.reward is not None:
    reward_PK = _rewards(setup.reward, whole).reshape(length_PK.shape)
  log_ratio_PK = stats["logp_BK"] - stats["ref_logp_BK"]
  return Draws(
    prompts=drawn.prompts,
    texts=drawn.texts_BK,
    tokens=tokens,
    reward_PK=reward_PK,
    kl_PK=stats["kl_BK"].astype(np.float64),
    log_ratio_PK=log_ratio_PK.astype(np.float64),
    length_PK=length_PK,
    ended_PK=ended_PK,
  )


def measure(
  draws: Draws, against: Mapping[str, np.ndarray] | None = None
) -> dict[str, bootstrap.Interval]:
  """Computes the measures of one policy, each over prompts.

  Args:
    draws: the policy's samples.
    against: name -> rewards `[P]` or `[P, K']` of other completions of the same
      prompts; adds `win_rate_vs_<name>`.

  Returns:
    Measure -> Interval. Distinct-n is a property of the whole set of samples and has
    no interval; compare it between equal numbers of samples.
  """
  columns = {
    "reward": draws.reward_PK,
    "kl": draws.kl_PK,
    "kl_plain": draws.log_ratio_PK,
    "length": draws.length_PK,
    "no_eos": ~draws.ended_PK,
  }
  out = {
    name: bootstrap.bootstrap_mean(per_prompt(x_PK))
    for name, x_PK in columns.items()
    if x_PK is not None
  }
  rows = [row for rows in draws.tokens for row in rows]
  nan = math.nan
  for n in (1, 2):
    value = distinct(rows, n)
    out[f"distinct_{n}"] = bootstrap.Interval(value, nan, nan, nan, len(draws.tokens))
  for name, reward in (against or {}).items():
    rate_P = win_rate(draws.reward_PK, reward)
    out[f"win_rate_vs_{name}"] = bootstrap.bootstrap_mean(rate_P)
  return out


def per_prompt(x_PK: np.ndarray) -> np.ndarray:
  """Averages over each prompt's completions: the values that are resampled."""
  return np.asarray(x_PK, np.float64).mean(-1)


def win_rate(reward_PK: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Computes the fraction of pairs of completions that the policy wins; a tie is half.

  Args:
    reward_PK: rewards of the policy's completions.
    other: rewards of the other completions, `[P]` or `[P, K']`.

  Returns:
    Win rate of each prompt, `[P]`.
  """
  other = np.asarray(other, np.float64)
  other = other[:, None] if other.ndim == 1 else other
  gap = np.asarray(reward_PK, np.float64)[:, :, None] - other[:, None, :]
  return ((gap > 0) + 0.5 * (gap == 0)).mean((1, 2))


def distinct(rows: Sequence[Sequence[int]], n: int) -> float:
  """Computes distinct n-grams over all n-grams of all rows; 0 where there are none."""
  grams = [tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)]
  return len(set(grams)) / len(grams) if grams else 0.0


def accuracy(
  score_N2: np.ndarray, cluster: np.ndarray | None = None
) -> bootstrap.Interval:
  """Computes the fraction of pairs whose chosen column 0 scores higher; a tie is half.

  Scores are log-ratios (the implicit reward), a reward model's values, or the true
  rewards, whose accuracy on noisy labels is the optimum.

  Args:
    score_N2: scores of N pairs.
    cluster: prompt of each pair, `[N]`: pairs of one prompt are resampled together;
      None: every pair has a prompt of its own.
  """
  gap_N = np.asarray(score_N2)[:, 0] - np.asarray(score_N2)[:, 1]
  return bootstrap.bootstrap_mean((gap_N > 0) + 0.5 * (gap_N == 0), cluster)


def _rewards(reward: RewardFn, texts: Sequence[str]) -> np.ndarray:
  value = np.asarray(reward(texts), np.float64)
  if value.shape != (len(texts),) or not np.isfinite(value).all():
    raise ValueError(
      f"reward: got shape {value.shape} for {len(texts)} texts, or a value that is "
      "not finite; it must return one number per text"
    )
  return value
