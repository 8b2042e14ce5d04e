"""XLA flags of the suite and of the processes it starts. Imports no JAX."""

from importlib import metadata

# Programs are compiled more often than they are run: no optimisation of machine code,
# and one LLVM module a program.
COMPILE_FAST = (
  "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
)
# The older emitter of fused kernels halves the time to compile. XLA ends the process at
# a flag it does not know, so only versions that are known to have this one get it.
if metadata.version("jaxlib").startswith(("0.8.", "0.9.", "0.10.")):
  COMPILE_FAST += " --xla_cpu_use_fusion_emitters=false"


def devices(number: int) -> str:
  """The flags, with so many virtual CPU devices."""
  return f"{COMPILE_FAST} --xla_force_host_platform_device_count={number}"
