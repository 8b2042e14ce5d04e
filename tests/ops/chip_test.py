"""Options of the compiler, by the kind of device."""

import jax
import jax.numpy as jnp
import pytest

from xpo_jax.ops.tpu import chip


@pytest.mark.parametrize("kind", ["TPU v5 lite", "TPU v5p", "TPU v6e"])
def test_fusions_take_half_of_the_smallest_vmem(kind):
  (kibibytes,) = map(int, chip.compiler_options(kind).values())
  assert kibibytes * 2 == 64 * 1024


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H200", "TPU v4", "TPU v3"])
def test_other_devices_compile_as_by_default(kind):
  options = chip.compiler_options(kind)
  assert not options
  double = jax.jit(lambda x: 2 * x, compiler_options=options)
  assert jax.jit(lambda x: double(x) + 1)(jnp.float32(3)) == 7  # may be nested
