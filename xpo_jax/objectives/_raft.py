"""RAFT: SFT on the best of the policy's samples."""

import jax

from xpo_jax.objectives import _grpo
from xpo_jax.ops import groups, masked, policy_loss, selection, token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored, State


def raft() -> Objective:
  """RAFT: SFT on the best sample of each prompt.

  L = - sum log pi(y_t | x, y_<t) / number of tokens,   over best-of-K completions

  Paper: Dong et al. 2023, arXiv:2304.06767.
  Departs from the paper: nothing. Its code selects the best fifth of all completions of
    the batch by default, across prompts (`selection.top_share`). The selection is
    `Aux.rows`, 1 or 0 for each completion, and can be replaced. With a KL penalty the
    paper ranks by r - beta log(pi / pi_ref): pass that as reward_BK.
  Reduction: one mean over all tokens of the selected completions. Of ties the first is
    selected; a single completion is selected.

  Returns:
    Objective; layout SAMPLED; stats LOGP; columns reward_BK; reads tokens.
    Terms: `raft`.
    Metrics: reward, frac_informative_prompts (fraction of prompts whose rewards
    differ), reward_kept (mean reward of the selected).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> s = scored.from_token_logps(
    ...   [[[-2.0, -1.0], [-9.0, -9.0]]], [[[1, 1], [1, 1]]], reward_BK=[[1.0, 0.0]]
    ... )
    >>> float(scored.evaluate(objectives.raft(), s).loss)  # (2 + 1) / 2
    1.5
  """

  def prepare(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
    del key
    present_BK = scored.present_BK
    best_B = selection.best_of(scored.reward_BK, present_BK)
    best_BK = jax.nn.one_hot(best_B, present_BK.shape[1], dtype=present_BK.dtype)
    return Aux(best_BK * present_BK), state

  def loss(scored: Scored, aux: Aux) -> Loss:
    selected = scored.replace(present_BK=aux.rows)
    nll_BKT = -masked.zero_padding(scored.logp_BKT, scored.mask_BKT)
    reward_BK = groups.zero_absent(scored.reward_BK, aux.rows)
    metrics = {"reward_kept": selected.mean_BK(reward_BK)} | _grpo.reward_metrics(
      scored
    )
    return Loss({"raft": policy_loss.token_mean(selected, nll_BKT)}, metrics)

  return Objective(
    name="raft",
    hparams={},
    layout=Layout.SAMPLED,
    stats=frozenset({token_stats.LOGP}),
    loss=loss,
    columns=frozenset({"reward_BK"}),
    reads_tokens=True,
    prepare=prepare,
  )
