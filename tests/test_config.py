"""Configuration: what is wrong is said at once, in the user's words; what is set goes through one pure override."""

import copy
from typing import Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from cxrdist.cli.main import run
from cxrdist.config import Config, load_yaml, override, parse_settings, read_yaml, write_yaml
from cxrdist.errors import UsageError, UserError, nearest, of_setting, unknown
from cxrdist.findings import LabelPolicy
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.pretrain.config import PretrainConfig
from cxrdist.seeds import Purpose, derive, stream

WRONG = {
    "optm": {"lr": 1},
    "findings": "effusion",
    "labels": {"uncertain_by_finding": {"effusion": "twos"}},
    "eval_labels": {"uncertan": "ones"},
    "input": {"augment": {"rotat": 3, "zoom": [1.1, 0.9], "flip": "maybe"}, "fit": "padd"},
    "model": 4,
    "optim": {"lr": "fast", "clip": -1, "betas": [0.9, 1.5], "weight_decay": float("inf")},
    "train": {"steps": 0.5, "zero_stage": 4, "global_batch_size": "many"},
}
SAID = [
    "`shards` is required, got nothing.",
    "`optm` is unknown. Did you mean 'optim'? Known here: shards, findings,",
    "`findings` must be a list, got 'effusion'.",
    "`labels.uncertain_by_finding.effusion` must be 'ignore', 'zeros' or 'ones', got 'twos'.",
    "`eval_labels.uncertan` is unknown. Did you mean 'uncertain'?",
    "`input.augment.rotat` is unknown. Did you mean 'rotate'?",
    "`input.augment.zoom` must be two positive numbers in rising order, got [1.1, 0.9].",
    "`input.augment.flip` must be true or false, got 'maybe'.",
    "`input.fit` must be 'pad', 'crop' or 'squash', got 'padd'.",
    "`model` must be a mapping, got 4.",
    "`optim.lr` must be a number, got 'fast'.",
    "`optim.clip` must be greater than or equal to 0, got -1.",
    "`optim.betas` must be two numbers in [0, 1), got [0.9, 1.5].",
    "`optim.weight_decay` must be a finite number, got inf.",
    "`train.steps` must be a whole number, got 0.5.",
    "`train.zero_stage` must be 0, 1, 2 or 3, got 4.",
    "`train.global_batch_size` must be a whole number, got 'many'.",
]

trees = st.recursive(
    st.integers() | st.text(max_size=3) | st.none() | st.lists(st.integers(), max_size=2),
    lambda values: st.dictionaries(st.text("abc", min_size=1, max_size=2), values, max_size=3),
    max_leaves=8,
).filter(lambda tree: isinstance(tree, dict))
dotted = st.lists(st.text("abc", min_size=1, max_size=2), min_size=1, max_size=3).map(".".join)


def test_all_wrong_names_and_values_are_said_at_once_in_plain_words():
    with pytest.raises(UsageError) as caught:
        FinetuneConfig.build(WRONG, where="run.yaml")
    lines = str(caught.value).splitlines()
    for said in SAID:
        assert any(line.startswith(said) for line in lines), said
    assert len(lines) == len(SAID)
    assert all(line.endswith("[in run.yaml]") for line in lines)
    assert caught.value.exit_code == 2
    for jargon in ("http", "pydantic", "Input should", "instance of", "<class", "value_error", "Value error"):
        assert jargon not in str(caught.value)


def test_wrong_configuration_ends_the_command_with_code_2(tmp_path, monkeypatch, capsys):
    path = tmp_path / "run.yaml"
    write_yaml({"shards": "s", "optim": {"lrr": 1}}, path)
    monkeypatch.setattr("sys.argv", ["cxrdist", "train", str(path), "--set", "optim.clip=-1"])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "`optim.lrr` is unknown. Did you mean 'lr'?" in said
    assert "`optim.clip` must be greater than or equal to 0, got -1." in said
    assert "Traceback" not in said


def test_unknown_and_repeated_findings_are_refused():
    with pytest.raises(UsageError, match=r"got 'efusion'\. Did you mean 'effusion'\?"):
        FinetuneConfig.build({"shards": "s", "findings": ["efusion"]}, where="x")
    with pytest.raises(UsageError, match="must name each finding once, got effusion twice"):
        FinetuneConfig.build({"shards": "s", "findings": ["effusion", "edema", "effusion"]}, where="x")


def test_a_pretraining_needs_shards():
    with pytest.raises(UsageError, match="`shards` must have at least 1 entry, got"):
        PretrainConfig.build({"shards": []}, where="x")


class Circle(Config):
    kind: Literal["circle"] = "circle"
    radius: float = 1.0


class Square(Config):
    kind: Literal["square"] = "square"
    side: float = 1.0


class Drawing(Config):
    shape: Circle | Square = Field(discriminator="kind")


def test_choice_between_models_is_told_in_plain_words():
    assert Drawing.build({"shape": {"kind": "square", "side": 2}}, where="x").shape == Square(side=2)
    with pytest.raises(UsageError, match=r"`shape` must have a 'kind' of 'circle', 'square', got .*'star'"):
        Drawing.build({"shape": {"kind": "star"}}, where="x")
    with pytest.raises(UsageError, match=r"`shape` must have a 'kind', got"):
        Drawing.build({"shape": {"side": 2}}, where="x")
    with pytest.raises(UsageError, match=r"`shape.radus` is unknown\. Did you mean 'radius'\?"):
        Drawing.build({"shape": {"kind": "circle", "radus": 2}}, where="x")


def test_a_configuration_is_frozen():
    config = LabelPolicy()
    with pytest.raises(ValidationError, match="frozen"):
        config.uncertain = "ones"


def test_the_resolved_configuration_reads_back_equal(tmp_path):
    config = FinetuneConfig.build({"shards": "s", "optim": {"lr": 3e-4}, "train": {"steps": 7}}, where="x")
    write_yaml(config.tree(), tmp_path / "config.yaml")
    assert FinetuneConfig.read(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("-1E5", -1e5),
        ("1.e+2", 100.0),
        ("7", 7),
        ("[1e-3, 2, x]", [1e-3, 2, "x"]),
        ("{lr: 1e-3}", {"lr": 1e-3}),
        ("null", None),
        ("", None),
        ("true", True),
        ("vit_tiny", "vit_tiny"),
        ("'3e-4'", "3e-4"),
        ("1e5x", "1e5x"),
        ("a=b", "a=b"),
        ("nan", "nan"),
    ],
)
def test_a_setting_is_read_as_yaml_with_numbers_as_people_type_them(text, value):
    (parsed,) = parse_settings([f"a.b={text}"]).values()
    assert parsed == value
    assert type(parsed) is type(value)


def test_settings_without_value_or_yaml_are_all_refused():
    with pytest.raises(UsageError) as caught:
        parse_settings(["lr", "=3", "a=[1", "b=2"])
    assert len(str(caught.value).splitlines()) == 3


@settings(max_examples=40)
@given(trees, st.dictionaries(dotted, trees | st.integers(), max_size=3))
def test_override_changes_neither_argument_and_shares_nothing_with_them(tree, changes):
    tree_before, changes_before = copy.deepcopy(tree), copy.deepcopy(changes)
    changed = override(tree, changes)
    _spoil(changed)
    assert tree == tree_before
    assert changes == changes_before


@settings(max_examples=40)
@given(trees, dotted, st.integers())
def test_override_sets_the_named_value_and_keeps_the_others(tree, name, value):
    changed = override(tree, {name: value})
    first, *rest = name.split(".")
    node = changed
    for part in (first, *rest):
        node = node[part]
    assert node == value
    assert {key: changed[key] for key in tree if key != first} == {key: tree[key] for key in tree if key != first}
    assert override(changed, {name: value}) == changed


def test_override_merges_mappings_and_replaces_the_rest():
    tree = {"a": {"x": 1, "y": [1, 2]}, "b": 3}
    assert override(tree, {"a": {"y": [3]}, "c.d": 4}) == {"a": {"x": 1, "y": [3]}, "b": 3, "c": {"d": 4}}
    assert override(tree, {"a": 5, "b.c": 6}) == {"a": 5, "b": {"c": 6}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: [1\n", "at line 3 "),
        ("a: 1\na: 2\n", "'a' twice at line 2 "),
        ("x: {lr: 1, lr: 2}", "'lr' twice at line 1 "),
        ("- 1\n", "must hold a mapping, got list"),
        ("", "must hold a mapping, got nothing"),
        ("a: !!python/object:os.system {}", "must be YAML"),
    ],
)
def test_a_file_that_is_no_mapping_in_yaml_is_refused_with_its_line(tmp_path, text, said):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"\[in run\.yaml\]") as caught:
        read_yaml(path)
    assert said in str(caught.value)


def test_missing_and_undecodable_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match="must exist"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(UsageError, match="must be YAML"):
        read_yaml(tmp_path / "bytes.yaml")


def test_merge_keys_and_anchors_of_yaml_still_work():
    assert load_yaml("a: &a {x: 1e-1}\nb: {<<: *a, y: 2}")["b"] == {"x": 0.1, "y": 2}


def test_on_and_no_are_words_and_true_and_false_are_not():
    assert load_yaml("on: [no, Yes, off]\nb: [true, False]") == {"on": ["no", "Yes", "off"], "b": [True, False]}


def test_the_nearest_name_is_offered_only_when_it_is_near():
    assert nearest("lerning", ["learning", "rate"]) == " Did you mean 'learning'?"
    assert nearest("xyz", ["learning"]) == ""
    assert unknown("A fit", "crp", ["crop", "pad"]) == "A fit must be one of crop, pad, got 'crp'. Did you mean 'crop'?"


def test_streams_of_other_seeds_purposes_and_counters_are_unrelated_and_repeatable():
    draws = {
        tuple(stream(seed, purpose, counter).integers(0, 2**32, 2).tolist())
        for seed in (0, 1)
        for purpose in Purpose
        for counter in (0, 1)
    }
    assert len(draws) == 4 * len(Purpose)
    assert derive(3, Purpose.MASK, 1, 2) == derive(3, Purpose.MASK, 1, 2) < 2**63


def _spoil(tree):
    for value in tree.values():
        if isinstance(value, dict):
            _spoil(value)
        elif isinstance(value, list):
            value.append("spoiled")
    tree["spoiled"] = True


def test_an_empty_mapping_clears_what_was_there():
    assert override({"model": {"args": {"depth": 2}, "backbone": "x"}}, {"model.args": {}}) == {
        "model": {"args": {}, "backbone": "x"}
    }


@pytest.mark.parametrize("size", [2.5, "automatic", True, 0, [4]])
def test_a_micro_batch_is_a_number_or_auto(size):
    with pytest.raises(UsageError, match=r"`train\.micro_batch_size` must be a whole number of at least 1, auto or"):
        FinetuneConfig.build({"shards": "x", "train": {"micro_batch_size": size}}, where="t")


def test_a_debug_size_is_applied_before_settings_and_checked_though_unused(tmp_path):
    file = tmp_path / "run.yaml"
    text = "shards: a\nseed: 1\noptim: {lr: 0.1}\ndebug: {seed: 2, optim.lr: 0.5}\n"
    file.write_text(text, encoding="utf-8")
    assert FinetuneConfig.read(file) == FinetuneConfig.read(file).model_copy(update={"seed": 1})
    small = FinetuneConfig.read(file, ["seed=3"], debug=True)
    assert (small.seed, small.optim.lr) == (3, 0.5)
    file.write_text(text.replace("optim.lr: 0.5", "optim.rl: 0.5"), encoding="utf-8")
    with pytest.raises(UsageError, match=r"`optim.rl` is unknown.*\[in run.yaml, with --debug\]"):
        FinetuneConfig.read(file)


def test_a_debug_size_that_is_not_there_is_no_debug_size(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("shards: a\n", encoding="utf-8")
    with pytest.raises(UsageError, match="`--debug` needs a file with a section `debug`, got none"):
        FinetuneConfig.read(file, debug=True)
    file.write_text("shards: a\ndebug: 3\n", encoding="utf-8")
    with pytest.raises(UsageError, match="`debug` must be a mapping, got 3"):
        FinetuneConfig.read(file, debug=True)


def test_a_setting_need_not_fit_the_debug_size(tmp_path):
    file = tmp_path / "run.yaml"
    text = "shards: [a]\nmethod: {name: moco_v2}\ndebug: {method.queue: 64, train.global_batch_size: 32}\n"
    file.write_text(text, encoding="utf-8")
    assert PretrainConfig.read(file, ["train.global_batch_size=1024"]).train.global_batch_size == 1024
    with pytest.raises(UsageError, match=r"`method.queue` must hold the keys of a global batch, got 64 for 1024"):
        PretrainConfig.read(file, ["train.global_batch_size=1024"], debug=True)


@pytest.mark.parametrize("text", ["{a:1}", "{b: 2, a:1}", "{b: {a:1}}"])
def test_a_flow_mapping_without_a_space_is_refused(tmp_path, text):
    with pytest.raises(UsageError, match="`--set x` must be a YAML value, got 'a:1' without a space after its colon"):
        parse_settings([f"x={text}"])
    (tmp_path / "run.yaml").write_text(f"x: {text}")
    with pytest.raises(UsageError, match="must be YAML, got 'a:1' without a space after its colon at line 1"):
        read_yaml(tmp_path / "run.yaml")


@pytest.mark.parametrize("text", ["{a: 1}", "{'a:1'}", "{a, b: }", "[a:1]"])
def test_other_flow_values_are_read(text):
    assert parse_settings([f"x={text}"])["x"] == yaml.safe_load(text)


def test_an_error_says_of_which_setting_it_is_once():
    with pytest.raises(UsageError, match=r"^`a\.b`: It must exist, got 'c'\.$"), of_setting("a.b"):
        raise UsageError("It must exist, got 'c'.")
    with pytest.raises(UserError, match=r"^`a\.b` must exist\.$"), of_setting("a.b"):
        raise UserError("`a.b` must exist.")
