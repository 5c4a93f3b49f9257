import itertools

import pytest
import torch

from nanorlhf.nanotron import ModelConfig
from nanorlhf.nanotron.flat import plan_layout
from nanorlhf.nanotron.spec import param_table, split_layers

SMALL = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def config(**changes):
    return ModelConfig(**{**SMALL, **changes})


@pytest.mark.parametrize("pp", [1, 2, 3, 5])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_each_tensor_stands_in_the_table_once_and_on_the_stage_of_its_layer(pp, tied, bias):
    table = param_table(config(tie_word_embeddings=tied, attention_bias=bias), pp=pp)
    names = [spec.name for spec in table]
    assert len(set(names)) == len(names) == 2 + (not tied) + 5 * (11 + 4 * bias)
    for stage, layers in enumerate(split_layers(config(), pp=pp)):
        for layer in layers:
            rows = [s for s in table if s.name.startswith(f"model.layers.{layer}.")]
            assert {spec.stages for spec in rows} == {(stage,)}


def test_only_query_and_key_norms_have_partial_gradients():
    partial = {s.name.split(".", 3)[-1] for s in param_table(config()) if s.grad == "partial_tp"}
    assert partial == {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}


def test_a_tied_embedding_lives_on_both_ends_and_a_value_head_unties_it():
    tied = config(tie_word_embeddings=True)
    assert param_table(tied, pp=3)[0].stages == (0, 2)
    assert param_table(tied, pp=1)[0].stages == (0,)
    value = param_table(tied, pp=3, head="value")
    assert value[0].stages == (0,)
    assert {s.name for s in value if s.optional} == {"score.weight", "score.bias"}


@pytest.mark.parametrize("tp", [1, 2])
def test_slices_of_all_tp_ranks_rebuild_every_tensor(tp):
    for spec in param_table(config(attention_bias=True)):
        full = torch.arange(torch.Size(spec.shape).numel()).view(spec.shape)
        parts = [full[spec.local_slices(tp, rank)] for rank in range(tp)]
        assert all(part.shape == spec.local_shape(tp) for part in parts)
        joined = parts[0] if spec.shard_dim is None else torch.cat(parts, dim=spec.shard_dim)
        assert torch.equal(joined, full)


@pytest.mark.parametrize("pp", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("vocab", [16, 50_000])
def test_no_other_split_has_a_faster_slowest_stage(pp, vocab):
    def by_definition(c):
        layer = c.hidden_size * (12 * c.head_dim + 3 * c.intermediate_size)
        head = c.vocab_size * c.hidden_size / layer

        def best(layers, stages):
            if stages == 1:
                return layers + head
            return min(max(n, best(layers - n, stages - 1)) for n in range(1, layers - stages + 2))

        return best(c.num_hidden_layers, pp), head

    c = config(num_hidden_layers=9, vocab_size=vocab)
    counts = [len(layers) for layers in split_layers(c, pp=pp)]
    cost, head = by_definition(c)
    assert sum(counts) == 9
    assert max([*counts[:-1], counts[-1] + head]) == pytest.approx(cost)


@pytest.mark.parametrize("dp", [1, 2, 3])
@pytest.mark.parametrize("bucket", [100, 1 << 25])
def test_the_flat_layout_holds_every_tensor_once_in_aligned_buckets(dp, bucket):
    table = param_table(config(tie_word_embeddings=True, attention_bias=True), pp=2)
    stage = [spec for spec in table if 0 in spec.stages]
    layout = plan_layout(stage, dp=dp, tp=2, bucket=bucket)
    taken = sorted((slot.start, slot.stop) for slot in layout.slots)
    assert {slot.spec.name for slot in layout.slots} == {spec.name for spec in stage}
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(taken))
    assert [b.start for b in layout.buckets] == [0, *(b.stop for b in layout.buckets[:-1])]
    assert layout.buckets[-1].stop == layout.size >= taken[-1][1]
    assert all((b.stop - b.start) % (64 * dp) == 0 for b in layout.buckets)
    for slot in layout.slots:
        inside = [b for b in layout.buckets if b.start < slot.stop and slot.start < b.stop]
        assert {b.tied for b in inside} == {len(slot.spec.stages) > 1}
        assert (slot.start < layout.partial) == (slot.spec.grad == "partial_tp")


def test_fused_tensors_are_neighbours():
    layout = plan_layout(param_table(config(attention_bias=True)), dp=1, tp=1)
    for suffix in ("weight", "bias"):
        name = f"model.layers.3.self_attn.qkv_proj.{suffix}"
        q, k, v = (slot for slot in layout.slots if slot.spec.module_name == name)
        assert [s.spec.name.split(".")[-2] for s in (q, k, v)] == ["q_proj", "k_proj", "v_proj"]
        assert (q.stop, k.stop) == (k.start, v.start)
