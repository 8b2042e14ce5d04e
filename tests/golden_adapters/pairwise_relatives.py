"""Contrastive, calibrated, anchored and length-aware relatives of DPO."""

# method: (adapter, the files whose every sign its cases guard)
ADAPTERS = {}
ELSEWHERE = {}
EXCEPTIONS: dict[str, str] = {}
