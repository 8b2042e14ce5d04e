"""Names of slices: those that exist, and refusals that list them."""

import pytest

from xpo_jax.topology import slices


def test_a_name_gives_chip_and_count():
  pod = slices.parse("v5e:16x16")
  assert (pod.chip.name, pod.count, pod.compiled) == ("v5e", 256, True)
  assert slices.parse("v5p:4x4x8").count == 128
  cluster = slices.parse("h100:24")
  assert (cluster.count, cluster.compiled) == (24, False)


@pytest.mark.parametrize(
  "name, message",
  [
    ("v5e:3x5", r"'v5e:3x5' does not exist; allowed: v5e:1x1, .*v5e:16x16"),
    ("v5p:4x4", r"does not exist; allowed: v5p:2x2x1"),
    ("v9:2x2", r"no chip 'v9'; allowed: v5e, v5p, v6e, a100"),
    ("h100", r"'h100' needs a number of GPUs, at least 1, such as h100:8"),
    ("h100:0", r"needs a number of GPUs"),
  ],
)
def test_a_slice_that_does_not_exist_is_refused(name, message):
  with pytest.raises(ValueError, match=message):
    slices.parse(name)


def test_without_libtpu_the_extra_is_named(monkeypatch):
  monkeypatch.setattr(slices.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"needs libtpu.*xpo_jax\[tpu-check\]"):
    slices.devices(slices.parse("v5e:2x2"))
