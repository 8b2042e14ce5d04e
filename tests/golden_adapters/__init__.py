"""One adapter for each golden method.

An adapter rearranges the arrays of a case and calls a public factory or function; it
holds no arithmetic. It returns the expected values under the names of the case
(`log x` stands for x), and under `differentiate` the scalar whose gradient the case
records (none in a case without gradients).
"""

from tests.golden_adapters import (
  binary,
  listwise,
  on_policy,
  pairwise,
  pairwise_relatives,
  ppo,
  reward_models,
  rules,
  token_level,
)

_FAMILIES = (
  pairwise,
  pairwise_relatives,
  token_level,
  binary,
  listwise,
  reward_models,
  ppo,
  on_policy,
  rules,
)
# method: (adapter, the objective files whose signs its cases check)
ADAPTERS = {
  method: one for family in _FAMILIES for method, one in family.ADAPTERS.items()
}
