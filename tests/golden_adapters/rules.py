"""Selection, labels, merges, mixtures, self-play: rules outside the losses."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tests.golden_adapters import arrange
from tests.golden_adapters.arrange import Arrays
from xpo_jax import objectives, scored
from xpo_jax.models import merge
from xpo_jax.ops import ai_labels, pairing, preference_games, selection


def _rso_rejection_sampling(h: Arrays, x: Arrays) -> Arrays:
  num, reward = h["num_samples"], x["rewards"]
  # The maximal number of variates; those beyond the recorded ones are unused.
  uniform = jnp.resize(x["uniforms"], (num, len(reward)))
  out = selection.rejection_sample_from(reward, num, h["beta"], uniform)
  return {"accepted": out.index_J, "uniforms_used": out.draws}


def _raft_top_selection(h: Arrays, x: Arrays) -> Arrays:
  index = selection.top_share(x["rewards"], h["alpha"])
  return {"selected": index, "rewards_selected": x["rewards"][index]}


def _rlaif_soft_label_debias(h: Arrays, x: Arrays) -> Arrays:
  p = ai_labels.debiased(x["logprob_tokens_order_ab"], x["logprob_tokens_order_ba"])
  return {"p_first_second": p, "cai_clamped": ai_labels.clamped(p)}


def _direct_rlaif_score(h: Arrays, x: Arrays) -> Arrays:
  score = ai_labels.expected_score(x["score_token_logits"])
  return {"expected_score": score, "normalised": ai_labels.rescaled(score)}


def _last_of_equals(
  choose: Callable, reward: jax.Array, present: jax.Array
) -> pairing.PairIndices:
  """A choice of pairs that takes the last of equal rewards, ours the first."""
  pairs = choose(reward[:, ::-1], present[:, ::-1])
  back = jnp.flip(jnp.arange(reward.shape[1]))
  return pairs._replace(
    chosen_B=back[pairs.chosen_B], rejected_B=back[pairs.rejected_B]
  )


def _rlhflow_pair_selection(h: Arrays, x: Arrays) -> Arrays:
  texts = x["responses"]
  reward, present = arrange.padded(x["rewards"])
  length, _ = arrange.padded([[len(text) for text in row] for row in texts])
  pairs = {
    "random": lambda: pairing.first_two(reward, present),
    "max_random": lambda: pairing.best_first(reward, present),
    "max_max": lambda: _last_of_equals(pairing.best_second, reward, present),
    "max_min": lambda: pairing.best_worst(reward, present),
    "max_min_p": lambda: pairing.best_worst(
      reward, present, length, h["length_penalty"]
    ),
  }[h["choose_type"]]()
  (valid,) = jnp.nonzero(pairs.keep_B)
  return {
    "prompt": [str(b) for b in valid],
    "chosen": [texts[b][pairs.chosen_B[b]] for b in valid],
    "rejected": [texts[b][pairs.rejected_B[b]] for b in valid],
    "margin": pairs.margin_B[valid],
  }


def _sppo_pair_construction(h: Arrays, x: Arrays) -> Arrays:
  score, present = arrange.padded(x["scores"])
  win = preference_games.from_rewards(score)
  rate = preference_games.win_rate(win, present)
  pairs = pairing.best_worst(rate, present)

  def row(b: int) -> Arrays:
    chosen, rejected = pairs.chosen_B[b], pairs.rejected_B[b]
    here = present[b] > 0
    return {
      "prob": win[b][here][:, here],
      "chosen": chosen,
      "rejected": rejected,
      "chosen_probs": win[b, chosen, rejected],
      "chosen_probs_win": rate[b, chosen],
      "chosen_probs_lose": rate[b, rejected],
    }

  return {"rows": [row(b) for b in range(len(rate))]}


def _ties_merge(h: Arrays, x: Arrays) -> Arrays:
  trimmed = [merge.trim(delta, h["K"]) for delta in x["task_deltas"]]
  combine = {"dis-sum": merge.disjoint_sum, "dis-mean": merge.disjoint_mean}
  return {
    "trimmed": jnp.stack(trimmed),
    "elected_sign": merge.elect_sign(trimmed),
    "merged_delta": combine[h["merge_func"]](trimmed),
  }


def _nash_md_mixture_logits(h: Arrays, x: Arrays) -> Arrays:
  mixed = preference_games.mixture(
    x["model_logits"], x["ref_logits"], h["mixture_coef"]
  )
  return {"log_probs": mixed}


def _nash_md_loss(h: Arrays, x: Arrays) -> Arrays:
  win_rate, beta = x["probability"][:, None], h["beta"]
  ref = x["ref_logprobs"][:, None]

  def record(logp: jax.Array, mask: jax.Array) -> scored.Scored:
    return scored.from_token_logps(
      logp[:, None], mask[:, None], ref, reward_BK=win_rate
    )

  def paper(logp: jax.Array) -> jax.Array:
    s = record(logp, x["mask"])
    return s.mean_BK(objectives.nash_md_surrogate(s, beta)).value

  # Masked positions hold 0 and that code adds them up: they have a gradient there.
  s = record(x["model_logprobs"], jnp.ones_like(x["mask"]))
  loss = s.mean_BK(objectives.nash_md_token_local(s, beta)).value
  return {
    "differentiate": loss,
    "loss": loss,
    "kl_div_log": objectives.log_ratio(s)[:, 0],
    "DERIVED_sequence_level_grad": jax.grad(paper)(x["model_logprobs"]),
  }


def _sppo_record(x: Arrays, win_rate: jax.Array) -> scored.Scored:
  logp = arrange.sides(x["policy_chosen_logps"], x["policy_rejected_logps"])
  ref = arrange.sides(x["reference_chosen_logps"], x["reference_rejected_logps"])
  return scored.from_sequence_logps(logp, jnp.ones_like(logp), ref, reward_BK=win_rate)


def _sppo_loss(h: Arrays, x: Arrays) -> Arrays:
  win_rate = {
    "sppo": arrange.sides(x["chosen_probs_win"], x["chosen_probs_lose"]),
    "sppo_single": preference_games.pair_win_rates(x["chosen_probs"]),
  }[h["loss_type"]]
  s = _sppo_record(x, win_rate)
  out = scored.evaluate(objectives.sppo(beta=h["beta"]), s)
  reward = objectives.rewards(s, h["beta"])
  return {
    "differentiate": out.loss,
    "losses": out.per_example_B,
    "chosen_rewards": reward[:, 0],
    "rejected_rewards": reward[:, 1],
  }


def _sppo_hard(h: Arrays, x: Arrays) -> Arrays:
  s = arrange.pair(x)
  s = s.replace(reward_BK=preference_games.pair_win_rates(jnp.ones(len(s.row_B))))
  # That code adds the two squares, the authors' takes their mean.
  o = objectives.mixture((2.0,), (objectives.sppo(beta=h["beta"]),))
  return arrange.outputs(scored.evaluate(o, s))


# method: (adapter, the objective files whose signs its cases check)
ADAPTERS = {
  "rso_rejection_sampling": (_rso_rejection_sampling, ()),
  "raft_top_selection": (_raft_top_selection, ()),
  "rlaif_soft_label_debias": (_rlaif_soft_label_debias, ()),
  "direct_rlaif_score": (_direct_rlaif_score, ()),
  "rlhflow_pair_selection": (_rlhflow_pair_selection, ()),
  "sppo_pair_construction": (_sppo_pair_construction, ()),
  "ties_merge": (_ties_merge, ()),
  "nash_md_mixture_logits": (_nash_md_mixture_logits, ()),
  "nash_md_loss": (_nash_md_loss, ("_nash_md",)),
  "sppo_loss": (_sppo_loss, ("_sppo",)),
  "sppo_hard": (_sppo_hard, ()),
}

# Expected values that no adapter returns.
