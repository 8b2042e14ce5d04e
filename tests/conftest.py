"""Eight virtual CPU devices, strict JAX, one compile cache for the whole suite."""

import os
from pathlib import Path

# Before JAX is imported anywhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in _flags:
  _flags += " --xla_force_host_platform_device_count=8"
if "xla_backend_optimization_level" not in _flags:
  _flags += " --xla_backend_optimization_level=0"  # halves the time to compile
os.environ["XLA_FLAGS"] = _flags.strip()
_CACHE = Path(__file__).parent.parent / ".cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def _strict(request: pytest.FixtureRequest):
  """NaN anywhere is an error, except in tests marked `nonfinite`."""
  debug = request.node.get_closest_marker("nonfinite") is None
  jax.config.update("jax_debug_nans", debug)
  yield
  jax.config.update("jax_debug_nans", False)
