from pathlib import Path

from nanorlhf.nanokernels import configs
from nanorlhf.nanokernels.tune import main, tunables

NOT_TUNED = dict.fromkeys(
    ("attention_gluon", "attention_gluon_dq", "attention_gluon_dkdv"),
    "fill shared memory and registers to the brim",
)


def test_every_table_is_tuned_but_those_that_say_why():
    tables = {file.stem for file in Path(configs.__file__).parent.glob("*.json")}
    assert {tunable.table for tunable in tunables([])} == tables - set(NOT_TUNED)


def test_what_is_tried_has_the_fields_of_the_entry_in_use():
    for tunable in tunables([]):
        used = configs.table(tunable.table)[tunable.key]
        assert tunable.candidates, tunable.key
        for candidate in tunable.candidates:
            fields = candidate.keys() ^ used.keys()
            assert not fields - {"persistent"}, f"{tunable.table}[{tunable.key}]: {fields}"


def test_tuning_without_a_gpu_says_that_it_needs_one(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["--out", str(tmp_path / "configs")]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
