"""XLA flags of the suite and of the processes it starts. Imports no JAX."""

from importlib import metadata


def compile_fast(jaxlib: str) -> str:
  """Flags for programs that are compiled more often than they are run.

  No optimisation of machine code, and one LLVM module a program.

  Args:
    jaxlib: its version. XLA ends the process at a flag that it does not know.
  """
  flags = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
  # The older emitter of fused kernels halves the time to compile.
  if jaxlib.startswith(("0.8.", "0.9.", "0.10.")):
    flags += " --xla_cpu_use_fusion_emitters=false"
  return flags


COMPILE_FAST = compile_fast(metadata.version("jaxlib"))


def devices(number: int) -> str:
  """The flags, with so many virtual CPU devices."""
  return f"{COMPILE_FAST} --xla_force_host_platform_device_count={number}"
