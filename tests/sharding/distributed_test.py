"""Two processes of two devices: the same batch in both."""

import os
import socket
import subprocess
import sys
import textwrap

from tests import xla_flags
from xpo_jax.sharding import distributed

WORKER = """
  import sys

  import jax
  import numpy as np
  from flax import struct

  from xpo_jax.sharding import distributed, place
  from xpo_jax.sharding import mesh as meshes


  @struct.dataclass
  class Batch:
    tokens_MRL: np.ndarray
    weight_MB: np.ndarray


  index = int(sys.argv[1])
  distributed.initialize(sys.argv[2], 2, index)
  # The tensor axis spans both processes: rows are not cut by process.
  across = [jax.devices()[i] for i in (0, 2, 1, 3)]
  mesh = meshes.make_mesh(data=2, tensor=2, devices=across)
  batch = Batch(np.arange(24).reshape(1, 4, 6), np.ones((1, 3)))
  distributed.assert_same(batch, "the batch")
  placed = place.place_batch(mesh, batch)
  parts = {s.data.shape for s in placed.tokens_MRL.addressable_shards}
  total = jax.jit(lambda b: (b.tokens_MRL**2).sum() * b.weight_MB.sum())(placed)
  print("RESULT", jax.device_count(), parts, int(total))
  whole = distributed.to_host(placed)
  same = jax.tree.map(np.array_equal, whole, batch)
  print("AGREED", distributed.agreed(index == 0), distributed.agreed(index == 1))
  print("WHOLE", all(jax.tree.leaves(same)))
  try:
    other = batch.replace(weight_MB=np.full((1, 3), index))
    distributed.assert_same(other, "the batch")
  except AssertionError as error:
    print("REFUSED", "the batch differs between processes" in str(error))
"""


def test_one_process_agrees_with_itself_without_communication(monkeypatch):
  monkeypatch.delattr(distributed.multihost_utils, "broadcast_one_to_all")
  assert distributed.agreed(True) and not distributed.agreed(False)


def test_two_processes_hold_one_batch_and_detect_a_difference(tmp_path):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  worker = tmp_path / "worker.py"
  worker.write_text(textwrap.dedent(WORKER))
  env = os.environ | {"XLA_FLAGS": xla_flags.devices(2), "JAX_PLATFORMS": "cpu"}
  processes = [
    subprocess.Popen(
      [sys.executable, worker, str(index), address],
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  try:
    outputs = [process.communicate(timeout=180) for process in processes]
  finally:
    for process in processes:  # a dead one leaves the other waiting
      process.kill()
  for process, (out, err) in zip(processes, outputs, strict=True):
    assert process.returncode == 0, err
    # Four devices; rows in two parts; three times the sum of squares below 24.
    assert f"RESULT 4 {{(1, 2, 6)}} {3 * sum(n * n for n in range(24))}" in out
    assert "WHOLE True" in out
    assert "AGREED True False" in out  # as process 0 has it
    assert "REFUSED True" in out
