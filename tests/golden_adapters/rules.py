"""Selection, labels, controllers, merges: the rules around a loss."""

# method: (adapter, the files whose every sign its cases guard)
ADAPTERS = {}
ELSEWHERE = {}
EXCEPTIONS: dict[str, str] = {}
