"""Two real processes with two devices each: one checkpoint, one choice, one agreement."""

from pathlib import Path

from toys import run_two, xla_flags

PROGRAM = """
import sys
from pathlib import Path
port, number, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
sys.path.insert(0, str(Path(sys.argv[4])))
from soda_jax.parallel import hosts
hosts.start(f"localhost:{port}", 2, number)
import jax, numpy as np
import checkpoint_states as states
from soda_jax.checkpoints import Checkpointer
from soda_jax.errors import UserError
from soda_jax.parallel import mesh

assert jax.process_count() == 2 and not hosts.is_single_process() and hosts.is_primary() == (number == 0)
assert hosts.any_process(number == 1) and hosts.gather_json(number) == [0, 1]
assert hosts.broadcast_json({"from": number}) == {"from": 0}

everywhere = mesh.make_mesh({"fsdp": 4})
now = [0.0]
with Checkpointer(folder, every_steps=1, every_minutes=1, clock=lambda: now[0]) as checkpointer:
    for step in (1, 2):
        checkpointer.maybe_save(step, jax.jit(lambda: states.state(everywhere, step))(), {"n": step})
    checkpointer.wait()
    now[0] = 100.0 if number == 0 else 0.0
    checkpointer._every_steps = None
    assert not checkpointer.due(3) and checkpointer.due(10)  # the clock of process 0 decides
if number == 0:
    states.flip_bit(states.largest_file(folder / "2"))
hosts.barrier("damaged")
other = mesh.make_mesh({"data": 2, "tensor": 2})
expected = jax.jit(lambda: states.state(other, 1))()
with Checkpointer(folder, every_steps=1) as checkpointer:
    state, metadata, report = checkpointer.restore(states.abstract(expected))
    assert (report.step, metadata["n"], report.skipped[0][0]) == (1, 1, 2), report
for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
    for mine, want in zip(a.addressable_shards, b.addressable_shards, strict=True):
        np.testing.assert_array_equal(np.asarray(mine.data), np.asarray(want.data))
try:
    checkpointer.reader.choose(7)
    raise SystemExit("step 7 was found")
except UserError as error:
    assert "7: there is no such checkpoint" in str(error)
print("agreed")
"""


def test_invariant_8_two_processes_save_choose_and_restore_alike(tmp_path):
    flags = {"XLA_FLAGS": xla_flags(2)}
    here = str(Path(__file__).parent)
    codes, printed = run_two(PROGRAM, str(tmp_path), here, environment=flags, timeout=120)
    assert codes == [0, 0] and all("agreed" in text for text in printed), printed
    # Only process 0 prints the report.
    assert "checkpoint 2 skipped" in printed[0] and "skipped" not in printed[1]
