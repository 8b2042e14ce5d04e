"""Group baselines, GRPO and its variants, self-play."""

# method: (adapter, the files whose every sign its cases guard)
ADAPTERS = {}
ELSEWHERE = {}
EXCEPTIONS: dict[str, str] = {}
