import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open

from nanorlhf.nanotron import (
    AdamWConfig,
    CheckpointError,
    Engine,
    Mesh,
    Microbatch,
    ModelConfig,
    Qwen3,
    init_checkpoint,
    merge_checkpoint,
    next_token_loss,
)
from nanorlhf.nanotron.testing import run_ranks
from nanorlhf.nanotron.weights import HFWeights, write_weights

OPTIMIZER = AdamWConfig(lr=1e-2, weight_decay=0.1)


def batch(seed):
    rng = np.random.default_rng(seed)
    return [
        Microbatch.from_sequences([rng.integers(0, 32, size=n) for n in rng.integers(2, 9, size=3)])
        for _ in range(4)
    ]


def train(rank, model, layout, options):
    """Load, take steps on batches numbered by the engine's own count, save."""
    torch.set_num_threads(1)
    mesh = Mesh(**layout)
    source = Qwen3.from_pretrained(model, mesh, dtype=options.get("dtype", torch.float64))
    engine = Engine(source, optimizer=OPTIMIZER, zero=options.get("zero", 1))
    state = engine.load(options["load"]) if "load" in options else {"batches": 0}
    for _ in range(options["steps"]):
        engine.train_step(batch(state["batches"])[mesh.dp_rank :: mesh.dp], next_token_loss)
        state["batches"] += 1
    if "save" in options:
        engine.save(options["save"], state=state)
    return engine.steps, {name: weight.clone() for name, weight in engine.weights()}


def merged(ranks):
    return {name: weight for _, weights in ranks for name, weight in weights.items()}


def size(layout):
    return layout.get("dp", 1) * layout.get("pp", 1) * layout.get("tp", 1)


@pytest.mark.parametrize(
    ("first", "second", "zero"),
    [
        ({}, {}, 1),
        ({"dp": 2, "tp": 2}, {"pp": 2}, 1),
        ({"pp": 2}, {"dp": 2, "tp": 2}, 1),
        ({"tp": 2}, {"dp": 2}, 0),
    ],
)
def test_continuing_at_another_layout_equals_never_stopping(
    tmp_path, tiny_dir, first, second, zero
):
    whole = train(0, tiny_dir, {}, {"steps": 4})[1]
    saved = tmp_path / "step_2"
    options = {"steps": 2, "save": saved, "zero": zero}
    run_ranks(train, size(first), tiny_dir, first, options)
    ranks = run_ranks(train, size(second), tiny_dir, second, {"steps": 2, "load": saved})
    assert {steps for steps, _ in ranks} == {4}
    torch.testing.assert_close(merged(ranks), whole, rtol=1e-9, atol=1e-12)


def test_bfloat16_training_resumes_from_its_master_weights(tmp_path, tiny_dir):
    options = {"dtype": torch.bfloat16}
    whole = train(0, tiny_dir, {}, {**options, "steps": 4})[1]
    saved = tmp_path / "step_2"
    train(0, tiny_dir, {}, {**options, "steps": 2, "save": saved})
    again = train(0, tiny_dir, {}, {**options, "steps": 2, "load": saved})[1]
    assert {weight.dtype for weight in whole.values()} == {torch.bfloat16}
    torch.testing.assert_close(again, whole, rtol=0, atol=0)


def test_several_writers_leave_one_index_and_nothing_temporary(tmp_path, tiny_dir):
    layout, saved = {"dp": 2, "tp": 2}, tmp_path / "step"
    run_ranks(train, 4, tiny_dir, layout, {"steps": 0, "save": saved})
    assert [entry.name for entry in tmp_path.iterdir()] == ["step"]
    index = json.loads((saved / "model.safetensors.index.json").read_text())
    held = {}
    for file in saved.glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            held |= {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            assert {index["weight_map"][name] for name in handle.keys()} == {file.name}  # noqa: SIM118
    assert held.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == sum(
        t.numel() * t.element_size() for t in held.values()
    )
    want = dict(Engine(Qwen3.from_pretrained(tiny_dir, Mesh()), optimizer=None).weights())
    torch.testing.assert_close(held, {name: w.double() for name, w in want.items()})


def test_saving_replaces_an_older_checkpoint_and_returns_the_state(tmp_path, tiny_dir):
    engine = Engine(Qwen3.from_pretrained(tiny_dir, Mesh()), optimizer=OPTIMIZER)
    engine.save(tmp_path / "last", state={"step": 1})
    engine.save(tmp_path / "last", state={"step": 2, "rng": [1, 2]})
    assert engine.load(tmp_path / "last") == {"step": 2, "rng": [1, 2]}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last"]


def test_fresh_weights_do_not_depend_on_the_directory_or_the_layout(tmp_path, tiny_config):
    init_checkpoint(tiny_config, tmp_path / "a", seed=5)
    model = Qwen3(ModelConfig.from_dict(tiny_config), Mesh(), seed=5)
    read = Qwen3.from_pretrained(tmp_path / "a", Mesh())
    assert torch.equal(model.flat.data, read.flat.data)
    other = Qwen3(ModelConfig.from_dict(tiny_config), Mesh(), seed=6)
    assert not torch.equal(model.flat.data, other.flat.data)


def test_a_large_model_is_written_in_several_files_and_rewritten_in_one(tmp_path, tiny_dir):
    with HFWeights(tiny_dir) as files:
        weights = {name: files.tensor(name) for name in files.names}
    write_weights(weights.items(), tmp_path, max_bytes=4000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    with HFWeights(tmp_path) as files:
        torch.testing.assert_close({name: files.tensor(name) for name in files.names}, weights)
    write_weights({"only": torch.ones(2)}.items(), tmp_path)
    with HFWeights(tmp_path) as files:
        assert files.names == ["only"]


def test_merging_casts_the_weights_and_keeps_what_inference_needs(tmp_path, tiny_dir):
    engine = Engine(Qwen3.from_pretrained(tiny_dir, Mesh()), optimizer=OPTIMIZER)
    engine.save(tmp_path / "step")
    merge_checkpoint(tmp_path / "step", tmp_path / "out", dtype=torch.bfloat16)
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["dtype"], config["eos_token_id"]) == ("bfloat16", 3)
    out = Qwen3.from_pretrained(tmp_path / "out", Mesh(), dtype=torch.bfloat16)
    assert torch.equal(out.flat.data, engine.model.flat.data.bfloat16())
    with pytest.raises(ValueError, match="merging in place would destroy"):
        merge_checkpoint(tmp_path / "out", tmp_path / "out")


def test_a_value_head_starts_at_zero_on_a_language_model(tiny_dir):
    critic = Qwen3.from_pretrained(tiny_dir, Mesh(), head="value")
    values = Engine(critic, optimizer=None).forward(batch(0))[0].values
    assert not values.any()


def test_directories_without_config_weights_or_state_are_named(tmp_path, tiny_dir, tiny_config):
    with pytest.raises(CheckpointError, match=r"nowhere: no config\.json there"):
        Qwen3.from_pretrained(tmp_path / "nowhere", Mesh())
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text(json.dumps(tiny_config))
    with pytest.raises(CheckpointError, match=r"bare: no weights there; looked for model\.safe"):
        Qwen3.from_pretrained(bare, Mesh())
    engine = Engine(Qwen3.from_pretrained(tiny_dir, Mesh()), optimizer=OPTIMIZER)
    with pytest.raises(CheckpointError, match=r"no trainer_state\.json"):
        engine.load(tiny_dir)
    Engine(engine.model, optimizer=None).save(tmp_path / "weights_only")
    with pytest.raises(CheckpointError, match="no optimizer state"):
        engine.load(tmp_path / "weights_only")


def test_weights_that_do_not_fit_the_config_are_named(tmp_path, tiny_dir, tiny_config):
    for change, message in (
        ({"intermediate_size": 32}, r"mlp\.gate_proj\.weight has shape \(24, 16\)"),
        ({"num_hidden_layers": 3}, r"11 tensors are missing, first model\.layers\.2\."),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**tiny_config, **change}))
        (tmp_path / "model.safetensors").write_bytes((tiny_dir / "model.safetensors").read_bytes())
        with pytest.raises(CheckpointError, match=message):
            Qwen3.from_pretrained(tmp_path, Mesh())
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.st"}}')
    with pytest.raises(CheckpointError, match=r"names gone\.st, which is not there"):
        Qwen3.from_pretrained(tmp_path, Mesh())


def save_into_a_file(rank, model, path):
    engine = Engine(Qwen3.from_pretrained(model, Mesh(dp=2)), optimizer=OPTIMIZER)
    try:
        engine.save(path / "step")
    except CheckpointError as error:
        return str(error)
    return "saved"


def test_when_one_rank_cannot_write_every_rank_hears_of_it(tmp_path, tiny_dir):
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    for message in run_ranks(save_into_a_file, 2, tiny_dir, blocked):
        assert message.startswith("the checkpoint was not written: rank 0: ")


def test_tokenizer_files_outlive_the_directory_they_were_loaded_from(tiny_dir, tmp_path):
    source = shutil.copytree(tiny_dir, tmp_path / "source")
    (source / "tokenizer.json").write_text("{}")
    model = Qwen3.from_pretrained(source, Mesh())
    shutil.rmtree(source)  # as a resumed run's old checkpoints are, when newer ones replace them
    Engine(model, optimizer=None).save(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").read_text() == "{}"


def test_a_damaged_file_of_weights_is_named(tiny_dir, tmp_path):
    broken = shutil.copytree(tiny_dir, tmp_path / "broken")
    weights = next(broken.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"{weights.name} is no whole safetensors file"):
        Qwen3.from_pretrained(broken, Mesh())
