import pathlib
import re

PACKAGE = pathlib.Path(__file__).parent.parent


def test_the_example_of_the_readme_runs(no_engine):
    (program,) = re.findall(r"```python\n(.*?)```", (PACKAGE / "README.md").read_text(), re.S)
    exec(compile(program, "README.md", "exec"), {"__name__": "readme"})


def test_the_readme_names_every_module():
    text = (PACKAGE / "README.md").read_text()
    modules = (PACKAGE / "src/nanorlhf/nanoray").glob("[a-z]*.py")
    assert [module.name for module in modules if f"`{module.name}`" not in text] == []
