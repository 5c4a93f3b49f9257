import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parent.parent / "examples" / "train_two_stages.py"


def test_the_example_trains_and_reads_its_checkpoint_back(capsys):
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    out = capsys.readouterr().out
    assert "in 20 steps on 2 stages" in out
    assert "one process reads it back: mean log-probability -" in out
