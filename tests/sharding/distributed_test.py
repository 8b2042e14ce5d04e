"""What several processes share, called by one; `processes_test` has two."""

import subprocess
import sys

import pytest

from xpo_jax.sharding import distributed


def test_one_process_agrees_with_itself_without_communication(monkeypatch):
  monkeypatch.delattr(distributed, "multihost_utils")
  assert distributed.agreed(True) and not distributed.agreed(False)
  assert distributed.gather("a") == ["a"]
  assert distributed.gather_shares(distributed.share(3), [1, 2, 3]) == [1, 2, 3]


@pytest.mark.parametrize("call", [distributed.together, distributed.on_first])
def test_error_of_one_process_is_its_own(call):
  def fail():
    raise FileNotFoundError("gone")

  assert call(lambda: 7) == 7
  with pytest.raises(FileNotFoundError, match="gone"):
    call(fail)


def test_importing_the_trainer_starts_no_backend():
  """`initialize` must come before it, and after imports."""
  code = (
    "from xpo_jax import cli; from xpo_jax.train import loop; "
    "from jax._src import xla_bridge as x; assert not x.backends_are_initialized()"
  )
  subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
