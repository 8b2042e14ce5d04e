"""The golden runner takes a folder of new cases: what the committed ones do not reach.

The cases are written here, from the formulas of the public codes that `source` names,
in NumPy and float64; gradients are central differences.
"""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
RNG = np.random.default_rng(0)


def _gradient(f, x):
  """Central differences: about nine digits in float64."""
  x, out, step = np.asarray(x, float), np.zeros(np.shape(x)), 1e-6
  for at in np.ndindex(x.shape):
    up, down = x.copy(), x.copy()
    up[at], down[at] = up[at] + step, down[at] - step
    out[at] = (f(up) - f(down)) / (2 * step)
  return out


def _softplus(x):
  return np.logaddexp(0, x)


def _case(method, hparams, inputs, expected, rtol=1e-10):
  return {
    "method": method,
    "source": {"repo": None},
    "hyperparams": hparams,
    "inputs": inputs,
    "expected": expected,
    "rtol": rtol,
    "compare": "all",
    "notes": "",
  }


def _kl_penalty(kind):
  """verl: k3 clipped at 20 nats and at 10; a + has k2's gradient."""
  logp, mask = -RNG.exponential(size=(2, 4)), np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
  ref = logp + RNG.normal(size=(2, 4))
  ref[0, 0], ref[0, 1] = logp[0, 0] + 30, logp[0, 1] + 2.9  # both clips; none
  u = ref - logp
  inside = np.clip(u, -20, 20)
  kl = np.clip(np.exp(inside) - inside - 1, -10, 10)
  slope = np.where((np.exp(inside) - inside - 1 < 10) & (abs(u) < 20), 1 - np.exp(u), 0)
  slope = logp - ref if kind.endswith("+") else slope
  inputs = {"logprob": logp, "ref_logprob": ref, "mask": mask}
  expected = {"kl": kl, "grads": {"logprob": slope * mask}}
  return _case("kl_penalty_verl", {"kind": kind}, inputs, expected)


def _policy_loss():
  """verl: a sum over tokens, a mean over the completions that have any."""
  old, mask = -RNG.exponential(size=(3, 4)), np.ones((3, 4))
  mask[1, 2:], mask[2] = 0, 0
  logp, advantage = old + 0.4 * RNG.normal(size=(3, 4)), RNG.normal(size=(3, 4))

  def loss(logp):
    rho = np.exp(logp - old)
    worse = np.maximum(-advantage * rho, -advantage * np.clip(rho, 0.8, 1.3))
    token = np.where(advantage < 0, np.minimum(worse, -3.0 * advantage), worse)
    return (token * mask).sum() / 2

  hparams = {"clip_ratio": 0.2, "clip_ratio_high": 0.3, "clip_ratio_c": 3.0}
  hparams["loss_agg_mode"] = "seq-mean-token-sum"
  inputs = {"log_prob": logp, "old_log_prob": old, "advantages": advantage}
  expected = {"loss": loss(logp), "grads": {"log_prob": _gradient(loss, logp)}}
  return _case("ppo_policy_loss_verl", hparams, inputs | {"mask": mask}, expected, 1e-6)


def _pair_selection(kind):
  """RLHFlow on groups of 4, 3 and 2; integer rewards, of which some tie."""
  rewards = [[1, 5, 5, 2], [3, 1, 2], [4, 4]]
  texts = [[f"{b}{'x' * k}" for k in range(len(row))] for b, row in enumerate(rewards)]
  out = {"prompt": [], "chosen": [], "rejected": [], "margin": []}
  for b, row in enumerate(rewards):
    order, best = np.argsort(row, kind="stable"), int(np.argmax(row))
    i, j = {
      "random": (0, 1),
      "max_random": (best, int(best == 0)),
      "max_max": (order[-1], order[-2]),
      "max_min": (best, int(np.argmin(row))),
    }[kind]
    if row[i] == row[j]:
      continue
    i, j = (i, j) if row[i] > row[j] else (j, i)
    out["prompt"].append(str(b))
    out["chosen"].append(texts[b][i])
    out["rejected"].append(texts[b][j])
    out["margin"].append(float(row[i] - row[j]))
  inputs = {"rewards": rewards, "responses": texts}
  return _case("rlhflow_pair_selection", {"choose_type": kind}, inputs, out)


def _sppo_pairs():
  """SPPO's pairs of groups of 3 and 2: best and worst win rate, ties with itself."""
  scores, rows = [[0.4, -1.0, 1.2], [0, 2]], []
  for row in scores:
    s = np.array(row, float)
    prob = 1 / (1 + np.exp(s - s[:, None]))
    rate = prob.mean(1)
    i, j = int(rate.argmax()), int(rate.argmin())
    rows.append({"prob": prob, "chosen": i, "rejected": j, "chosen_probs": prob[i, j]})
    rows[-1] |= {"chosen_probs_win": rate[i], "chosen_probs_lose": rate[j]}
  return _case("sppo_pair_construction", {}, {"scores": scores}, {"rows": rows})


def _xpo():
  names = ("model_logprobs_model_data", "model_logprobs_ref_data")
  names += ("ref_logprobs_ref_data", "ref_logprobs_model_data")
  x = {name: -RNG.exponential(size=(3, 4)) for name in names}
  won, beta, alpha = np.array([1, 0, 1]), 0.3, 0.05

  def parts(x):
    u = x[names[0]].sum(1) - x[names[3]].sum(1), x[names[1]].sum(1) - x[names[2]].sum(1)
    dpo = _softplus(-beta * np.where(won, u[0] - u[1], u[1] - u[0]))
    return dpo, alpha * x[names[1]].sum(1)

  def loss_of(name):
    return lambda value: np.add(*parts(x | {name: value})).mean()

  dpo, bonus = parts(x)
  expected = {"loss": (dpo + bonus).mean(), "dpo_losses": dpo, "xpo_losses": bonus}
  expected["grads"] = {name: _gradient(loss_of(name), x[name]) for name in names[:2]}
  hparams = {"beta": beta, "alpha": alpha, "loss_type": "sigmoid"}
  return _case("xpo_loss", hparams, x | {"chosen_mask": won}, expected, 1e-6)


def _outcome_advantages():
  """Groups of 3 and 2 whose rows alternate."""
  group, T, gamma = np.array([0, 1, 0, 1, 0]), 3, 0.9
  mask = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 0]])
  reward = np.round(RNG.normal(size=(5, T)), 3) * mask
  score, baseline = reward.sum(1), RNG.normal(size=5)
  grpo, centred, rloo = np.zeros((3, 5))
  for g in (0, 1):
    own = group == g
    s = score[own]
    centred[own] = s - s.mean()
    grpo[own] = (s - s.mean()) / (s.std(ddof=1) + 1e-6)
    rloo[own] = s - (s.sum() - s) / (len(s) - 1)
  later, discounted = np.zeros((2, 5, T))
  for t in reversed(range(T)):
    after = [x[:, t + 1] if t + 1 < T else 0 for x in (later, discounted)]
    later[:, t] = reward[:, t] + after[0]
    discounted[:, t] = reward[:, t] + gamma * after[1]
  rows = {"grpo": grpo, "dr_grpo": centred, "rloo": rloo}
  expected = {name: x[:, None] * mask for name, x in rows.items()}
  expected["remax"] = (later - baseline[:, None]) * mask
  expected |= {
    "remax_returns": later * mask,
    "reinforce_pp_returns": discounted * mask,
  }
  inputs = {"token_rewards": reward, "mask": mask, "group_index": group}
  inputs |= {"reward_baselines": baseline}
  hparams = {"grpo_eps": 1e-6, "rpp_gamma": gamma}
  return _case("outcome_advantages_verl", hparams, inputs, expected)


def _kwise():
  """Lists of 2 and 3; rank 0 is the best."""
  rewards, ranks = [[0.3, -0.2], [1.0, 0.2, 0.5]], [[1, 0], [2, 0, 1]]
  per_prompt = []
  for r, rank in zip(rewards, ranks, strict=True):
    pairs = [(i, j) for i in range(len(r)) for j in range(len(r)) if rank[i] < rank[j]]
    per_prompt.append(np.mean([_softplus(r[j] - r[i]) for i, j in pairs]))
  expected = {"loss": np.mean(per_prompt), "per_prompt": per_prompt}
  inputs = {"rewards": rewards, "rank": ranks}
  return _case("rm_kwise_instructgpt", {}, inputs, expected)


def _list_mle():
  """allRank on three columns, one of them padding; integer grades."""
  scores, labels = RNG.normal(size=(2, 3)), np.array([[0, 2, 1], [1, 3, -1]])

  def loss(scores):
    total = []
    for s, label in zip(scores, labels, strict=True):
      s = s[np.argsort(-label)][: (label >= 0).sum()]
      sums = np.cumsum(np.exp(s - s.max())[::-1])[::-1]
      total.append((np.log(sums + 1e-10) - (s - s.max())).sum())
    return np.mean(total)

  inputs = {"scores": scores, "labels": labels}
  expected = {"loss": loss(scores), "grad_scores": _gradient(loss, scores)}
  return _case("ltr_listMLE", {}, inputs, expected, 1e-6)


def _lambda_loss(scheme):
  """allRank's weights of pairs, natural logarithm, sum over the pairs."""
  scores, labels = RNG.normal(size=(2, 3)), np.array([[0, 2, 1], [1, 3, -1]])

  def loss(scores):
    total = 0.0
    for s, y in zip(scores, labels, strict=True):
      s, y = s[y >= 0], y[y >= 0].astype(float)
      order = np.argsort(-s)
      s, y, at = s[order], y[order], np.arange(1, len(s) + 1)
      ideal = ((2.0 ** np.sort(y)[::-1] - 1) / np.log2(1 + at)).sum()
      gain, discount = (2.0**y - 1) / ideal, np.log2(1 + at)
      far = abs(at[:, None] - at)
      swap = abs(gain[:, None] - gain)
      near = abs(1 / np.log2(1 + np.maximum(far, 1)) - 1 / np.log2(2 + far))
      lambda_rank = swap * abs(1 / discount[:, None] - 1 / discount)
      weight = {
        "ndcgLoss1": np.tile((gain / discount)[:, None], (1, len(s))),
        "ndcgLoss2PP": 10 * swap * near + lambda_rank,
        "rankNetWeightedByGTDiff": abs(y[:, None] - y),
        "rankNetWeightedByGTDiffPowed": abs(y[:, None] ** 2 - y**2),
      }[scheme]
      counted = (y[:, None] > y) | (scheme == "ndcgLoss1")
      total += (weight * _softplus(s - s[:, None]))[counted].sum()
    return total

  inputs = {"scores": scores, "labels": labels}
  expected = {"loss": loss(scores), "grad_scores": _gradient(loss, scores)}
  hparams = {"weighing_scheme": f"{scheme}_scheme", "reduction_log": "natural"}
  return _case("ltr_lambdaLoss", hparams, inputs, expected, 1e-6)


def _bco():
  """BCO's first step: the state is written as integers."""
  x = {
    f"{role}_{side}_logps": -RNG.exponential(size=n)
    for side, n in (("chosen", 2), ("rejected", 3))
    for role in ("policy", "ref")
  }
  up, down = (
    0.1 * (x[f"policy_{side}_logps"] - x[f"ref_{side}_logps"])
    for side in ("chosen", "rejected")
  )
  delta = np.concatenate([up, down]).mean()
  losses = np.concatenate([_softplus(delta - up), _softplus(down - delta)])
  expected = {"per_example_losses": losses, "mean_loss": losses.mean(), "delta": delta}
  hparams = {"beta": 0.1, "running_before": {"mean": 0, "count": 0}}
  return _case("bco", hparams, x, expected)


def _beta_dpo():
  """A state of integers, which the moving averages leave at once."""
  x = {
    f"{role}_{side}_logps": -RNG.exponential(size=4)
    for role in ("policy", "ref")
    for side in ("chosen", "rejected")
  }
  ratio = [x[f"policy_{s}_logps"] - x[f"ref_{s}_logps"] for s in ("chosen", "rejected")]
  gap, selected = ratio[0] - ratio[1], np.array([1.0, 0.0, 1.0, 1.0])
  mean, std = 0.9 * 1 + 0.1 * gap.mean(), 0.9 * 2 + 0.1 * gap.std(ddof=1)
  used = max(1e-3, 0.1 * (1 + 0.6 * ((selected * gap).sum() / 3 - mean)))
  losses = _softplus(-used * gap)
  expected = {
    "mean_loss": (selected * losses).sum() / 3,
    "gap_mean": [mean],
    "gap_std": [std],
    "beta_used": [used],
    "sampling_weights_unnormalised": np.exp(-0.5 * ((gap - mean) / std) ** 2),
  }
  hparams = {"beta": 0.1, "a": 0.6, "ema_gamma": 0.9}
  hparams["state_before"] = {"gap_mean": [1], "gap_std": [2]}
  return _case("beta_dpo", hparams, x | {"selected_mask": selected}, expected)


def _controller():
  """The adaptive KL controller on whole numbers."""
  seen, beta, values = [[12, 64], [3, 64], [7, 64]], 0.2, []
  for kl, steps in seen:
    beta *= 1 + np.clip(kl / 6 - 1, -0.2, 0.2) * steps / 1000
    values.append(beta)
  hparams = {"init": 0.2, "target": 6, "horizon": 1000, "clip": 0.2}
  inputs, expected = {"kl_and_nsteps": seen}, {"values": values}
  return _case("adaptive_kl_controller", hparams, inputs, expected)


def _gae():
  """Whole rewards and values."""
  reward, value = np.array([[0, 1, 2], [1, 0, 0]]), np.array([[1, 0, 1], [2, 1, 0]])
  advantage, after = np.zeros((2, 3)), 0
  for t in reversed(range(3)):
    ahead = value[:, t + 1] if t < 2 else 0
    after = reward[:, t] + 0.9 * ahead - value[:, t] + 0.9 * 0.8 * after
    advantage[:, t] = after
  white = (advantage - advantage.mean()) / np.sqrt(advantage.var(ddof=1) + 1e-8)
  inputs = {"token_rewards": reward, "values": value, "mask": np.ones((2, 3), int)}
  expected = {"advantages_whitened": white, "returns": advantage + value}
  return _case("gae_verl", {"gamma": 0.9, "lam": 0.8}, inputs, expected)


def _numbers(x):
  """Arrays as lists, for JSON."""
  if isinstance(x, dict):
    return {key: _numbers(value) for key, value in x.items()}
  if isinstance(x, list):
    return [_numbers(value) for value in x]
  return np.asarray(x).tolist() if isinstance(x, (np.ndarray, np.generic)) else x


def test_a_folder_of_new_cases_runs_and_a_wrong_value_fails_alone(tmp_path):
  cases = [_kl_penalty(kind) for kind in ("k3", "k3+", "low_var_kl")]
  cases += [_pair_selection(kind) for kind in ("random", "max_max", "max_min")]
  cases += [
    _sppo_pairs(),
    _policy_loss(),
    _xpo(),
    _outcome_advantages(),
    _kwise(),
    _list_mle(),
  ]
  names = ("ndcgLoss1", "ndcgLoss2PP", "rankNetWeightedByGTDiff")
  cases += map(_lambda_loss, (*names, "rankNetWeightedByGTDiffPowed"))
  cases += [_bco(), _beta_dpo(), _controller(), _gae()]
  wrong = copy.deepcopy(cases[-1])
  wrong["expected"]["returns"][0, 0] += 1e-6
  for i, case in enumerate([*cases, wrong]):
    case["id"] = f"{i:02d}" if case is not wrong else "wrong"
  new = {"meta": {}, "cases": _numbers([*cases, wrong])}
  (tmp_path / "new.json").write_text(json.dumps(new), encoding="utf-8")

  command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider"]
  done = subprocess.run(
    [*command, "-p", "no:xdist", "tests/golden_test.py"],
    cwd=ROOT,
    env=os.environ | {"XPO_GOLDEN": str(tmp_path)},
    capture_output=True,
    text=True,
    timeout=600,
  )
  failed = [x for x in done.stdout.splitlines() if x.startswith("FAILED")]
  assert len(failed) == 1 and "new:wrong" in failed[0], done.stdout + done.stderr


def test_a_folder_without_cases_is_an_error_that_names_it(tmp_path):
  done = subprocess.run(
    [sys.executable, "-c", "from tests import golden_cases"],
    cwd=ROOT,
    env=os.environ | {"XPO_GOLDEN": str(tmp_path)},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode
  assert f"XPO_GOLDEN={tmp_path}: no *.json there" in done.stderr
