"""One adapter for each golden method.

An adapter rearranges a case's arrays and names a public factory or function with its
arguments; it holds no arithmetic. It returns what the case expects by the case's own
names (`log x` stands for x), and under `differentiate` the scalar whose gradient the
case records (a case without gradients needs none).
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
# method: (adapter, the files whose every sign its cases guard)
ADAPTERS = {
  method: one for family in _FAMILIES for method, one in family.ADAPTERS.items()
}
