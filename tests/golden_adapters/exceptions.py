"""Golden cases and values that are not compared, with the reasons."""

_ONE_TOO_MANY = (
  "bug: that code's trimming keeps one entry more than the stated fraction"
)
_SINGLE = "that code rounds the batch's mean to float32; two other cases pass at 1e-6"

# Whole cases: a recorded bug, or an unidentified convention.
CASES: dict[str, str] = {
  "pairwise:bco/0174": _SINGLE,
  "pairwise:bco/0175": _SINGLE,
  "pairwise:ties_merge/0311": _ONE_TOO_MANY,
  "pairwise:ties_merge/0312": _ONE_TOO_MANY,
  "pairwise:ties_merge/0314": _ONE_TOO_MANY,
  "pairwise:ties_merge/0316": _ONE_TOO_MANY,
  "token_binary_listwise:unlikelihood_token/with_pad": (
    "bug: that code penalises candidates at padding positions too"
  ),
}

_NEGATED = "the negative of a log-probability that the compared loss is made of"

# Expected values of a method that are not compared; all others and the gradients are.
VALUES: dict[str, dict[str, str]] = {
  "orpo_or_term": {"mean_log_sigmoid_log_odds": "-mean_loss / lambda"},
  "beta_dpo": {"num_selected": "the sum of an input"},
  "bco": {"running_after": "its mean is delta; its variance is unused"},
  "apo_zero_unpaired": {"z0": "0: not part of the loss"},
  "nash_md_loss": {"score": "the negated loss of each row at beta 0"},
  "outcome_advantages_verl": {
    "reinforce_pp": "whitened by a number of tokens plus 1e-8: 2e-9 off"
  },
  "dro_v": {
    "policy_loss": "a surrogate: only its gradient is meaningful",
    "value_loss": "a surrogate: only its gradient is meaningful",
  },
  "tdpo_underflow_bug": {"official_position_kl_is_nan": "a bug of that code"},
  "unlikelihood_token": {
    "loss_sum": "its quotient by sample_size is compared",
    "sample_size": "see loss_sum",
  },
  "cringe_binary": {
    "token_ce": _NEGATED,
    "token_losses": "sums of token_ce and token_ct",
    "per_example_losses": "sums of token_losses",
  },
  "pairwise_cringe": {"chosen_nll_sum": _NEGATED},
  "npo": {"forget_nll_sum": _NEGATED},
  "npo_grad_diff": {"forget_nll_sum": _NEGATED},
  "npo_KL": {"forget_nll_sum": _NEGATED},
  "simnpo": {"forget_nll_sum": _NEGATED},
  "simnpo_grad_diff": {"forget_nll_sum": _NEGATED},
}
