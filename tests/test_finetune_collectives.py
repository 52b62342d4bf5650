import jax
import pytest

from tests.same_numbers import job_of
from tljax.devices import make_mesh
from tljax.finetune.collectives import Collective, collectives
from tljax.finetune.costs import lower_step_on, step_batch

# As XLA writes them, on one line each.
LINES = {
    "%all-reduce.5 = (f32[64]{0}, bf16[8,4]{1,0}, f32[]) all-reduce(%a, %b, %c), channel_id=1, "
    "replica_groups={{0,1,2,3},{4,5,6,7}}, use_global_device_ids=true": ("all-reduce", 64 * 4 + 32 * 2 + 4, 4),
    "%ag = f32[64,256]{1,0} all-gather(%p), channel_id=2, replica_groups=[2,4]<=[8], dimensions={1}": (
        "all-gather", 64 * 256 * 4, 4),
    "%rs = f32[16,256]{1,0:T(8,128)} reduce-scatter(%p), replica_groups=[1,8]<=[8]": ("reduce-scatter", 16 * 1024, 8),
    "%cp = u8[2,3]{1,0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}": ("collective-permute", 6, 8),
    "%s = (f32[16]{0}, f32[128]{0}) all-gather-start(%p), replica_groups=[1,8]<=[8]": ("all-gather", 512, 8),
    "%s = f32[16]{0} all-reduce-start(%p), replica_groups=[1,8]<=[8]": ("all-reduce", 64, 8),
}  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_a_message_is_read(line):
    kind, num_bytes, group_size = LINES[line]
    (found,) = collectives(f"ENTRY main {{\n  {line}\n  %x = f32[2]{{0}} add(%all-reduce.5, %b)\n}}", 8)
    assert found == Collective(kind=kind, num_bytes=num_bytes, group_size=group_size)


def test_a_group_of_one_says_nothing():
    assert collectives("%a = f32[4]{0} all-reduce(%b), replica_groups={{0},{1}}", 2) == []


def test_what_a_ring_sends():
    sent = {
        kind: Collective(kind=kind, num_bytes=800, group_size=8).sent_bytes
        for kind in ("all-reduce", "all-gather", "reduce-scatter", "collective-permute")
    }
    # A scatter's result is an eighth of what goes in; reduce-scatter and all-gather make an all-reduce.
    assert sent == {"all-reduce": 1400, "all-gather": 700, "reduce-scatter": 5600, "collective-permute": 800}


@pytest.mark.parametrize("freeze", [1, "head"])
def test_devices_exchange_the_gradients_of_trained_params_and_nothing_else(freeze):
    """A frozen stage costs no message. Beside gradients go the means of the metrics, and images to their partners."""
    job, mesh = job_of("vit", freeze), make_mesh(jax.devices())
    lowered = lower_step_on(
        mesh, job.body, job.params, job.groups, job.stats, step_batch(job.forward, 8, job.preprocess.shape)
    )
    found = collectives(lowered.compile().as_text(), 8)
    reduced = sum(message.num_bytes for message in found if message.kind == "all-reduce")
    trained = sum(leaf.nbytes for leaf in job.groups.split(job.params)[0].values())
    # Loss, accuracy, and the sum of the weights.
    assert trained < reduced <= trained + 4 * 3
    moved = {message.num_bytes for message in found if message.kind == "collective-permute"}
    assert moved == {16 * 16 * 3 * 4, 2 * 4}
    assert {message.kind for message in found} == {"all-reduce", "collective-permute"}
