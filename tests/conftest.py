"""Eight virtual CPU devices, strict JAX, one compile cache for the whole suite."""

import gc
import os
import signal
from pathlib import Path

from tests import xla_flags

# Before JAX is imported anywhere. Of a flag given twice, the last counts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{xla_flags.devices(8)} {os.environ.get('XLA_FLAGS', '')}"
_CACHE = Path(__file__).parent.parent / ".cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# Traced and compiled programs are many objects that stay: to search all of them for
# garbage as often as Python does by default took 5 to 12 % of the time of four files.
gc.freeze()
gc.set_threshold(50_000, 20, 20)
# A shell that runs the tests in the background has them, and their children, ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Each program that JAX's caches hold makes the compilation of the next one slower: at
# 1,200 of them a tiny one takes three times as long, and they hold 1.7 GB.
_MOST_PROGRAMS = 200
_compiled = 0


def _count(event: str, duration: float, **_) -> None:
  global _compiled
  del duration
  _compiled += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count)


_FIRST = Path(__file__).parent / "train"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Puts a folder of long files first that is nearly the last by name: a long file that
  is begun last leaves the other processes with nothing to do."""
  items.sort(key=lambda item: _FIRST not in item.path.parents)


@pytest.fixture(autouse=True, scope="module")
def _few_programs():
  """Drops compiled programs after a module, once there are many; the disk has them."""
  yield
  global _compiled
  if _compiled > _MOST_PROGRAMS:
    jax.clear_caches()
    _compiled = 0


@pytest.fixture(autouse=True)
def _strict(request: pytest.FixtureRequest):
  """NaN anywhere is an error, except in tests marked `nonfinite`."""
  debug = request.node.get_closest_marker("nonfinite") is None
  jax.config.update("jax_debug_nans", debug)
  yield
  jax.config.update("jax_debug_nans", False)
