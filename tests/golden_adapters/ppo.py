"""Token-level policy gradients: returns, whitening, KL estimators, PPO."""

# method: (adapter, the files whose every sign its cases guard)
ADAPTERS = {}
ELSEWHERE = {}
EXCEPTIONS: dict[str, str] = {}
