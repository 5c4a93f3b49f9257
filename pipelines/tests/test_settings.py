from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from keys import keys
from loader import build
from settings import flatten, override, parse_yaml, plain, read, to_yaml


@dataclass(frozen=True, slots=True, kw_only=True)
class Optim:
    lr: float = 1.0
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self):
        if self.lr < 0:
            raise ValueError(f"lr={self.lr} is below 0; use 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    optim: Optim = field(default_factory=lambda: Optim(lr=0.5, warmup_steps=7))
    dp: int | Literal["auto"] = "auto"
    lag: Literal[0, 1] = 1
    names: tuple[str, ...] = ()
    limit: int | None = 3
    fresh: bool = False
    path: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    title: str
    section: Section = field(default_factory=Section)
    other: Optim = field(default_factory=Optim)


def tree(**section):
    return build(Tree, {"title": "t", "section": section})


def test_values_are_taken_and_the_rest_has_its_defaults():
    built = tree(dp=2, names=["a", "b"], limit=None, path="x/y", fresh=True)
    assert built.section == Section(
        dp=2, names=("a", "b"), limit=None, path=Path("x/y"), fresh=True
    )
    assert built.other == Optim()


def test_a_section_that_sets_one_key_keeps_its_parents_defaults_for_the_others():
    assert tree(optim={"lr": 0.25}).section.optim == Optim(lr=0.25, warmup_steps=7)


def test_scientific_notation_without_a_dot_is_a_number():
    raw = parse_yaml("lr: 5e-6", where="here")
    assert raw == {"lr": "5e-6"}  # what YAML 1.1 makes of it
    assert build(Optim, raw).lr == 5e-6


def test_an_int_is_a_float_but_a_bool_is_neither_an_int_nor_a_float():
    assert build(Optim, {"lr": 2}).lr == 2.0
    with pytest.raises(ValueError, match=r"^lr=True is of type bool; wanted a number$"):
        build(Optim, {"lr": True})
    with pytest.raises(ValueError, match=r"^warmup_steps=True is of type bool; wanted int$"):
        build(Optim, {"warmup_steps": True})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"dp": "many"}, "section.dp='many' is of type str; wanted int | auto"),
        ({"dp": 1.5}, "section.dp=1.5 is of type float; wanted int | auto"),
        ({"lag": 2}, "section.lag=2 is of type int; wanted 0 | 1"),
        ({"lag": True}, "section.lag=True is of type bool; wanted 0 | 1"),
        ({"limit": "x"}, "section.limit='x' is of type str; wanted int"),
        ({"fresh": 1}, "section.fresh=1 is of type int; wanted bool"),
        ({"names": "abc"}, "section.names='abc' is of type str; wanted a list"),
        ({"names": [1]}, "section.names[0]=1 is of type int; wanted str"),
        ({"optim": {"betas": [1]}}, "section.optim.betas=[1] has 1 items; wanted 2"),
        ({"optim": {"lr": "fast"}}, "section.optim.lr='fast' is of type str; wanted a number"),
        ({"optim": None}, "section.optim=None is null; wanted a section of keys"),
        ({"optim": {"lr": -1}}, "section.optim: lr=-1.0 is below 0; use 0 or more"),
    ],
)
def test_a_wrong_value_names_its_key_its_type_and_the_wanted_one(section, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        tree(**section)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("raw", "nearest"),
    [
        ({"section": {"optim": {"warmup_step": 3}}}, "section.optim.warmup_steps"),
        ({"section": {"lagg": 1}}, "section.lag"),
        ({"lag": 1}, "section.lag"),
        ({"optim": {"lr": 1}}, "section.optim"),
        ({"lr": 1}, "section.optim.lr"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(raw, nearest):
    with pytest.raises(ValueError, match=r"^unknown key .*; known: .*; nearest: ") as caught:
        build(Tree, {"title": "t"} | raw)
    assert str(caught.value).endswith(f"nearest: {nearest}")


def test_a_missing_key_without_default_is_named():
    with pytest.raises(ValueError, match="key title has no default; set title="):
        build(Tree, {})


def test_overrides_reach_into_sections_and_leave_the_file_alone():
    raw = {"a": {"b": {"c": 1}}, "d": 2}
    assert override(raw, ["a.b.c=3", "a.x=[1, 2]", "e.f=null"]) == {
        "a": {"b": {"c": 3}, "x": [1, 2]},
        "d": 2,
        "e": {"f": None},
    }
    assert raw == {"a": {"b": {"c": 1}}, "d": 2}


@pytest.mark.parametrize("word", ["a", "=3", "a.=3", ".a=3", "a..b=3"])
def test_a_word_that_is_no_override_is_refused(word):
    with pytest.raises(ValueError, match=r"is no key\.sub=value"):
        override({}, [word])


def test_an_override_inside_a_value_is_refused():
    with pytest.raises(ValueError, match=r"unknown key a\.b\.c; a\.b is a value"):
        override({"a": {"b": 1}}, ["a.b.c=1"])


def test_a_repeated_key_is_refused_with_its_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: 1\nb: {c: 1}\nd:\n  e: 1\n  e: 2\n")
    with pytest.raises(ValueError, match=r"c\.yaml: .* key 'e' on line 5 stands twice"):
        read(path, [])


def test_broken_yaml_names_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: [1,\n")
    with pytest.raises(ValueError, match=r"c\.yaml: not valid YAML"):
        read(path, [])


def test_name_folder_and_seeds_are_filled_in(tmp_path):
    path = tmp_path / "demo.yaml"
    path.write_text("sft: {steps: 1}\nrl: {seed: 9}\n")
    raw = read(path, ["run.seed=4"])
    assert raw["run"] == {"seed": 4, "name": "demo-seed4", "dir": "runs/demo-seed4"}
    assert raw["sft"] == {"steps": 1, "seed": 4}
    assert raw["rl"] == {"seed": 9}
    assert read(path, ["run.name=x"])["run"]["dir"] == "runs/x"
    assert read(path, ["run.dir=/elsewhere"])["run"]["dir"] == "/elsewhere"


def test_a_configuration_survives_yaml():
    built = tree(dp=2, path="x", names=["a"])
    assert build(Tree, parse_yaml(to_yaml(plain(built)), where="here")) == built


def test_keys_list_the_defaults_of_the_place_not_of_the_class():
    listed = dict(keys(Tree))
    assert listed["section.optim.lr"] == "float = 0.5"
    assert listed["other.lr"] == "float = 1.0"
    assert listed["title"] == "str, required"
    assert set(listed) >= set(flatten(plain(Tree(title="t"))))
