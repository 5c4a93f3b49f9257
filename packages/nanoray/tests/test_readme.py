import doctest
import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent


def test_the_example_of_the_readme_runs(no_engine):
    (program,) = re.findall(r"```python\n(.*?)```", (PACKAGE / "README.md").read_text(), re.S)
    exec(compile(program, "README.md", "exec"), {"__name__": "readme"})


def test_the_examples_of_the_guide_run(no_engine):
    guide = PACKAGE.parent.parent / "docs" / "nanoray.md"
    if not guide.exists():
        pytest.skip("docs/ is not here: these are the files of the package alone")
    result = doctest.testfile(str(guide), module_relative=False)
    assert result.attempted > 20
    assert result.failed == 0


def test_the_readme_names_every_module():
    text = (PACKAGE / "README.md").read_text()
    modules = (PACKAGE / "src/nanorlhf/nanoray").glob("[a-z]*.py")
    assert [module.name for module in modules if f"`{module.name}`" not in text] == []
