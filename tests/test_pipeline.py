"""The loop on a tiny model: what a run leaves, what it does not do twice, and what survives kill -9."""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from sami.contrasts import read_contrasts
from sami.errors import InputError
from sami.evaluation.judges import Question
from sami.evaluation.judges.prompt import prompt
from sami.evaluation.pairs import Pair, from_contrasts
from sami.loop import train
from sami.models import devices, loading
from sami.pipeline import Pipeline, _announce, run, start
from sami.prompts import PromptBuilder
from sami.recipe import Recipe, load_recipe
from sami.report.answers import answers
from sami.report.run_files import read_run
from tests.support.garbage import freeze_libraries
from tests.support.recipes import TOPICS, timeless, write_recipe
from tests.support.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def recipe(finished_run) -> Recipe:
    return load_recipe(finished_run.parent / "recipe" / "tiny.yaml")


@pytest.fixture(scope="module")
def finished(finished_run) -> tuple[Path, dict[str, Any]]:
    """A finished run of two iterations and its summary. Tests read it only."""
    return finished_run, json.loads((finished_run / "summary.json").read_text())


def times_of(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


# What a run leaves.


def test_the_summary_holds_what_the_documentation_says(finished):
    summary = finished[1]
    assert {"policies", "win_rates", "timings", "versions", "comparisons"} <= summary.keys()
    assert [(p["name"], p["iteration"]) for p in summary["policies"]] == [
        ("base", 0),
        ("iteration-1", 1),
        ("iteration-2", 2),
    ]
    figures = {"bound", "low", "high", "base_bound", "base_low", "base_high", "row_accuracy", "column_accuracy"}
    for policy in summary["policies"]:
        for scope in ("information", "information_held_out"):
            assert figures | {"contrasts"} <= policy[scope].keys()
            assert policy[scope]["low"] <= policy[scope]["bound"] <= policy[scope]["high"] <= 0.6932
            assert 0 <= policy[scope]["column_accuracy"] <= 1
        assert policy["information"]["contrasts"] == 9  # 3 queries, each with every principle
        assert policy["information_held_out"]["contrasts"] == 3
        assert set(policy["principles"]) == {"brief", "loud", "kind", "asking"}
        for name, principle in policy["principles"].items():
            assert principle["learned"] is (name != "asking")
            assert principle["contrasts"] == 3
            if name == "kind":
                assert principle["verifier_rate"] is None
            else:
                assert 0 <= principle["verifier_rate"] <= 1
                assert principle["verdicts"] == 6
        assert policy["health"]["responses"] == 24
    assert {"torch", "transformers", "sami", "python"} <= summary["versions"].keys()
    assert summary["contrasts"]["iteration-2"] == {
        "generated": 14,  # 3 steps of 4, and a tenth more
        "kept": 14,
        "used": 12,
        "dropped": {},
    }
    assert summary["training"]["iteration-1"]["steps"] == 2
    assert set(summary["timings"]) == {
        *(f"{kind}-{name}" for kind in ("respond", "score") for name in ("base", "iteration-1", "iteration-2")),
        *(f"{kind}-{n}" for kind in ("generate", "train") for n in (1, 2)),
    }


def test_base_scores_itself_alike_and_forgets_nothing(finished):
    base, first = finished[1]["policies"][:2]
    assert base["health"]["forgetting"] == 0.0
    assert first["health"]["forgetting"] > 1e-3
    assert base["health"]["words_ratio"] == 1.0
    assert base["health"]["failures"] == []
    folder = finished[0]
    scores = json.loads((folder / "evaluation" / "scores" / "base.json").read_text())
    assert scores["policy"] == scores["base"]


def test_metrics_hold_a_line_for_each_step(finished):
    for iteration, steps in ((1, 2), (2, 3)):
        file = finished[0] / f"iteration-{iteration}" / "metrics.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, steps + 1))
        for line in lines:
            assert line["bound"] <= 0.6932
            assert line["learning_rate"] == 3e-3
            assert line["relative_weight_change"] > 1e-4
    # The same contrasts never come twice here, so the rise is seen where the policy scores them itself.
    base, _, last = finished[1]["policies"]
    assert last["information"]["bound"] > base["information"]["bound"] + 0.05


def test_a_run_leaves_nothing_but_what_is_documented(finished):
    folder = finished[0]
    assert {p.name for p in folder.iterdir() if not p.name.startswith(".")} == {
        "recipe.yaml",
        "principles.yaml",
        "iteration-1",
        "iteration-2",
        "evaluation",
        "summary.json",
    }
    assert {p.name for p in (folder / "iteration-1").iterdir()} == {"contrasts.parquet", "model", "metrics.jsonl"}
    assert not [p for p in folder.rglob("*") if p.name.endswith(".tmp")]


def test_the_saved_model_is_the_policy_in_the_recipes_dtype(finished):
    base = tiny_model("llama").state_dict()
    first, second = (load_file(finished[0] / f"iteration-{n}" / "model" / "model.safetensors") for n in (1, 2))
    assert {tensor.dtype for tensor in second.values()} == {torch.float32}
    # Both start from base: two and three Adam steps of 3e-3 reach no further than their sum.
    for weights, steps in ((first, 2), (second, 3)):
        largest = max(float((weights[name] - base[name]).abs().max()) for name in weights)
        assert 3e-3 < largest < steps * 3e-3 * 1.05


# What is generated for.


def test_evaluation_queries_never_occur_in_training_and_iterations_share_none(finished):
    folder = finished[0]
    first, second = ({c.query for c in read_contrasts(folder / f"iteration-{n}" / "contrasts.parquet")} for n in (1, 2))
    held_out = {c.query for c in read_contrasts(folder / "evaluation" / "responses" / "base.parquet")}
    assert (len(first), len(second), len(held_out)) == (4, 4, 3)
    assert not first & second
    assert not held_out & (first | second)


def test_held_out_principles_are_evaluated_and_never_trained_on(finished):
    folder = finished[0]

    def principles(path):
        return {name for c in read_contrasts(folder / path) for one in c.principles for name, _ in one}

    for n in (1, 2):
        assert principles(f"iteration-{n}/contrasts.parquet") == {"brief", "loud", "kind"}
    for policy in ("base", "iteration-1", "iteration-2"):
        assert "asking" in principles(f"evaluation/responses/{policy}.parquet")


def test_all_policies_answer_the_same_queries_under_the_same_constitutions(finished):
    folder = finished[0] / "evaluation" / "responses"
    asked = [
        [(c.id, c.query, c.constitutions, c.prompt_ids) for c in read_contrasts(folder / f"{name}.parquet")]
        for name in ("base", "iteration-1", "iteration-2")
    ]
    assert asked[0] == asked[1] == asked[2]


def test_generated_ids_are_trained_on_as_they_are(finished, chat_tokenizer, recipe):
    prompts = PromptBuilder(chat_tokenizer, recipe.prompt)
    for contrast in read_contrasts(finished[0] / "iteration-1" / "contrasts.parquet"):
        for n, text in enumerate(contrast.constitutions):
            assert contrast.prompt_ids[n] == prompts.training_prompt(contrast.query, [text], text)
            ids = contrast.response_ids[n]
            assert contrast.responses[n] == chat_tokenizer.decode(ids, skip_special_tokens=True)
            assert (ids[-1] == 1) is (contrast.finish_reasons[n] == "stop")


# Run again.


def test_a_second_run_does_nothing_and_gives_the_same_summary(finished, recipe, tmp_path, monkeypatch):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    before = times_of(folder)
    monkeypatch.setattr(loading, "load_model", lambda *_: pytest.fail("a model was loaded"))
    assert run(recipe, folder) == finished[1]
    after = times_of(folder)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed <= {"summary.json", ".lock"}


def test_steps_out_of_order_are_refused(recipe, tmp_path):
    pipeline = Pipeline(recipe, tmp_path / "run")
    with pytest.raises(InputError, match="generate-1"):
        pipeline.train(1)
    with pytest.raises(InputError, match="train-1"):
        pipeline.generate(2)
    with pytest.raises(InputError, match="iteration 3, but the recipe has 2"):
        pipeline.generate(3)


def test_evaluation_before_any_training_covers_base_alone(recipe, tmp_path):
    summary = Pipeline(recipe, tmp_path / "run").evaluate()
    assert [p["name"] for p in summary["policies"]] == ["base"]
    assert summary["comparisons"] == []


def test_queries_that_changed_are_refused(finished, recipe, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    lines = Path(recipe.queries.path).read_text().replace("like", "love")
    (tmp_path / "queries.jsonl").write_text(lines)
    changed = recipe.model_copy(
        update={"queries": recipe.queries.model_copy(update={"path": str(tmp_path / "queries.jsonl")})}
    )
    with pytest.raises(InputError, match=r"other inputs:\n- queries"):
        run(changed, folder)


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("output", "step"),
    [
        ("iteration-1/contrasts.parquet", "generate-1"),
        ("iteration-2/model/model.safetensors", "train-2"),
        ("evaluation/responses/iteration-1.parquet", "respond-iteration-1"),
        ("evaluation/scores/base.json", "score-base"),
        ("iteration-1/metrics.jsonl", "train-1"),
    ],
)
def test_an_output_that_changed_is_refused_by_name(finished, recipe, tmp_path, output, step):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    _flip_a_bit(folder / output)
    with pytest.raises(InputError, match=rf"{step} wrote it.*delete it and .*{step}\.json"):
        run(recipe, folder)


# Settings.


def test_restart_from_previous_continues_with_the_previous_model(tiny_recipe, tmp_path, finished):
    changes = {"training__restart_from": "previous", "training__lr": [3e-3, 1e-5]}
    folder = tmp_path / "run"
    run(tiny_recipe(**changes), folder)
    first, second = (load_file(folder / f"iteration-{n}" / "model" / "model.safetensors") for n in (1, 2))
    # Three steps of 1e-5 from iteration 1's model; base is 3e-3 away.
    assert 1e-5 <= max(float((second[k] - first[k]).abs().max()) for k in first) < 4e-5


def test_three_independent_constitutions_of_two_principles(tiny_recipe, tmp_path):
    changes = {
        "sampling__constitutions": 3,
        "sampling__principles_per_constitution": 2,
        "sampling__scheme": "independent",
        "training__iterations": 1,
        "training__steps": 2,
    }
    summary = run(tiny_recipe(**changes), tmp_path / "run")
    [_, policy] = summary["policies"]
    contrasts = read_contrasts(tmp_path / "run" / "iteration-1" / "contrasts.parquet")
    assert {len(c.responses) for c in contrasts} == {3}
    assert {len(one) for c in contrasts for one in c.principles} == {2}
    assert all(len({frozenset(one) for one in c.principles}) == 3 for c in contrasts)
    assert policy["health"]["responses"] == 36
    assert policy["information_held_out"]["contrasts"] == 3
    assert policy["information"]["high"] <= 1.0987  # log 3


def test_three_independent_constitutions_of_one_principle_can_be_evaluated(tiny_recipe, tmp_path):
    changes = {"sampling__constitutions": 3, "sampling__scheme": "independent"}
    recipe = tiny_recipe(**changes)
    assert {len(p.constitutions) for p in Pipeline(recipe, tmp_path / "run").context.prepared.evaluation_plan()} == {3}


def test_a_model_without_a_chat_template_and_responses_of_one_word_do_not_stop_the_run(tiny_recipe, tmp_path):
    changes = {"training__iterations": 1, "training__steps": 2, "generation__temperature": 1.0}
    changes |= {"generation__max_new_tokens": 1}
    summary = run(tiny_recipe("gpt2", False, **changes), tmp_path / "run")
    json.dumps(summary, allow_nan=False)
    assert [p["name"] for p in summary["policies"]] == ["base", "iteration-1"]


def _talk(topic: str) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": f"You know {topic}."},
        {"role": "user", "content": f"What is {topic}?"},
        {"role": "assistant", "content": "Much, to many."},
        {"role": "user", "content": "Why do people like it?"},
    ]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_conversations_are_answered_scored_and_shown_whole(model_folder, tmp_path, suffix):
    records = [{"id": topic, "prompt": _talk(topic)} for topic in TOPICS]
    if suffix == "jsonl":
        (tmp_path / "talks.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        pq.write_table(pa.Table.from_pylist(records), tmp_path / "talks.parquet")
    changes = {"training__iterations": 1, "training__steps": [2], "queries__field": "prompt"}
    recipe = write_recipe(tmp_path, model_folder("llama", True), queries__path=f"talks.{suffix}", **changes)
    folder = tmp_path / "run"
    run(load_recipe(recipe), folder)
    contrasts = read_contrasts(folder / "iteration-1" / "contrasts.parquet")
    held_out = read_contrasts(folder / "evaluation" / "responses" / "base.parquet")
    decode = tiny_tokenizer().decode
    for contrast in [*contrasts, *held_out]:
        topic = contrast.messages[1]["content"].removeprefix("What is ").removesuffix("?")
        assert contrast.messages == _talk(topic)
        turns = [f"You know {topic}.", f"What is {topic}?", "Much, to many.", "Why do people like it?"]
        assert contrast.query == "System: {}\n\nUser: {}\n\nAssistant: {}\n\nUser: {}".format(*turns)
        before = "<|system|>\n{}<eos>\n<|user|>\n{}<eos>\n<|assistant|>\n{}<eos>\n<|user|>\n{}\n\n".format(*turns)
        for ids, constitution in zip(contrast.prompt_ids, contrast.constitutions, strict=True):
            assert decode(ids) == f"{before}{constitution}<eos>\n<|assistant|>\n"
    shown = answers(read_run(folder))["items"]
    assert [item["query"] for item in shown] == [contrast.query for contrast in held_out]
    policy = from_contrasts("base", held_out, {contrast.query: contrast.id for contrast in held_out}, ["asking"])
    item, response = next(iter(policy.responses.items()))
    question = Question(Pair(item, "a", "b", response, response), "candidate_first")
    assert "\nQ| Assistant: Much, to many.\nQ|" in prompt(question)
    card = (folder / "iteration-1" / "model" / "README.md").read_text(encoding="utf-8")
    assert "3 of the held-out ones are conversations with earlier turns" in card
    assert '"What color is the sky?<eos>\\n"' in card


def test_an_iteration_that_is_resumed_keeps_its_decision_on_the_gradient_cache(tiny_recipe, tmp_path, monkeypatch):
    pipeline = Pipeline(tiny_recipe(), tmp_path / "run")
    pipeline.generate(1)
    contrasts = read_contrasts(pipeline.directory.contrasts(1))
    monkeypatch.setattr("sami.models.devices.free_bytes", lambda: 2_000_000)
    assert train.arguments(pipeline.context, 1, contrasts).gradient_cache
    monkeypatch.setattr("sami.models.devices.free_bytes", lambda: 2**40)
    assert train.arguments(pipeline.context, 1, contrasts).gradient_cache
    assert not train.arguments(pipeline.context, 2, contrasts).gradient_cache


# kill -9. One chain of runs in one folder: each is killed at the first place where none was killed before.


def _run_killed(recipe: Recipe, folder: Path, done: Path, only: str) -> None:
    """Run; die before each rename and after each line of metrics, once over all calls.

    Before an output's rename its temporary file is whole; before the rename of a step's record all the
    outputs of that step are.
    """
    from sami import contrasts, files, pipeline
    from sami.loop import directory
    from sami.models import saving
    from sami.training import metrics_log

    freeze_libraries()

    def die_once(place: str) -> None:
        if only in place and place not in done.read_text().splitlines():
            with done.open("a") as file:
                file.write(place + "\n")
            os.kill(os.getpid(), signal.SIGKILL)

    rename, append = Path.rename, metrics_log.append_json_line

    def deadly_rename(self: Path, target: Path) -> Path:
        name = str(Path(target).relative_to(folder))
        die_once(f"before {name}")
        return rename(self, target)

    def deadly_append(path: Path, value: Any) -> None:
        append(path, value)
        die_once(f"line {value['step']} of {path.parent.name}")

    Path.rename = deadly_rename
    metrics_log.append_json_line = deadly_append
    assert {contrasts.replacing, saving.replacing, directory.replacing, metrics_log.replacing} == {files.replacing}
    pipeline.run(recipe, folder)


@pytest.mark.parametrize(("checkpoint_steps", "only"), [(0, ""), (1, "line")])
def test_a_run_killed_everywhere_ends_with_the_summary_of_one_that_was_not(
    tiny_recipe, tmp_path, checkpoint_steps, only
):
    context = multiprocessing.get_context("forkserver")  # a clean interpreter with everything imported, forked
    context.set_forkserver_preload(["tests.test_pipeline", "sami.training", "sami.generation.transformers_engine"])
    changes = {"training__iterations": 1, "training__steps": 2, "training__checkpoint_steps": checkpoint_steps}
    recipe = tiny_recipe(**changes)
    folder, done = tmp_path / "run", tmp_path / "done"
    done.write_text("")
    exits = []
    while not exits or exits[-1] == -signal.SIGKILL:
        process = context.Process(target=_run_killed, args=(recipe, folder, done, only))
        process.start()
        process.join(timeout=120)
        exits.append(process.exitcode)
        assert len(exits) < 80, done.read_text()
    places = done.read_text().splitlines()
    assert exits[-1] == 0, f"the run after {places[-1]!r} did not continue"
    assert exits[:-1] == [-signal.SIGKILL] * len(places)
    steps = ("respond-base", "score-base", "generate-1", "train-1", "respond-iteration-1", "score-iteration-1")
    outputs = [f".steps/{step}.json" for step in (*steps, "packing", "gradient-cache-1")] + [
        "iteration-1/metrics.jsonl"
    ]
    outputs += ["principles.yaml", "recipe.yaml", "summary.json", "iteration-1/contrasts.parquet", "iteration-1/model"]
    outputs += ["iteration-1/model/README.md", "evaluation/.verdicts.jsonl.recorded.json"]
    for policy in ("base", "iteration-1"):
        outputs += [f"evaluation/responses/{policy}.parquet", f"evaluation/scores/{policy}.json"]
    expected = {f"before {name}" for name in outputs} | {"line 1 of iteration-1", "line 2 of iteration-1"}
    assert set(places) == {place for place in expected if only in place}

    process = context.Process(target=_run_plainly, args=(recipe, tmp_path / "through"))
    process.start()
    process.join(timeout=120)
    killed, through = (json.loads((f / "summary.json").read_text()) for f in (folder, tmp_path / "through"))
    assert timeless(killed) == timeless(through)
    metrics = [
        [{k: v for k, v in json.loads(line).items() if "runtime" not in k} for line in file.read_text().splitlines()]
        for file in (f / "iteration-1" / "metrics.jsonl" for f in (folder, tmp_path / "through"))
    ]
    assert metrics[0] == metrics[1]
    left = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert left == {str(p.relative_to(tmp_path / "through")) for p in (tmp_path / "through").rglob("*") if p.is_file()}


def _run_plainly(recipe: Recipe, folder: Path) -> None:
    freeze_libraries()
    from sami.pipeline import run

    run(recipe, folder)


def test_what_a_killed_process_left_half_written_does_not_matter(finished, recipe, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    for step in ("train-2", "respond-iteration-2", "score-iteration-2"):
        (folder / ".steps" / f"{step}.json").unlink()
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "iteration-2" / "model")
    (folder / "iteration-2" / ".model.tmp").mkdir()
    (folder / "iteration-2" / ".model.tmp" / "model.safetensors").write_bytes(b"half")
    (folder / "evaluation" / "responses" / ".iteration-2.parquet.tmp").write_bytes(b"PAR1")
    (folder / ".steps" / ".train-2.json.tmp").write_text('{"inputs"')
    metrics = folder / "iteration-2" / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-20])  # a line cut in the middle
    checkpoint = folder / "iteration-2" / "checkpoints" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text('{"epoch": 1')
    assert timeless(run(recipe, folder)) == timeless(finished[1])
    assert not [p for p in folder.rglob("*") if p.name.endswith(".tmp") or p.name == "checkpoints"]
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [1, 2, 3]


@pytest.mark.slow
def test_a_recipe_starts_the_processes_that_train(finished, tmp_path, tiny_recipe):
    """Two processes with half of the weights each end with the figures of one, and save an ordinary model."""
    recipe = tiny_recipe(launch__processes=2)
    summary = run(recipe, tmp_path / "run")
    for ours, theirs in zip(summary["policies"], finished[1]["policies"], strict=True):
        assert ours["information"]["bound"] == pytest.approx(theirs["information"]["bound"], abs=1e-3)
    ours, theirs = (
        load_file(folder / "iteration-2/model/model.safetensors") for folder in (tmp_path / "run", finished[0])
    )
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-3
    config = json.loads((tmp_path / "run/iteration-2/model/config.json").read_text())
    assert config["dtype"] == "float32"


@pytest.mark.slow
def test_what_a_process_refuses_is_the_message_of_the_run(tmp_path, tiny_recipe):
    changes = {"launch__processes": 2, "training__explode_above": 1e-9}
    recipe = tiny_recipe(**changes)
    with pytest.raises(InputError, match="gradient norm"):
        run(recipe, tmp_path / "run")


def test_a_run_says_which_records_it_left_out(tmp_path, model_folder, capsys):
    path = write_recipe(tmp_path, model_folder("llama", True), queries__format="hh")
    turns = [f"\n\nHuman: Why do people like {topic}?\n\nAssistant: So." for topic in [*TOPICS, TOPICS[0]]]
    records = [{"chosen": turn, "rejected": turn} for turn in [*turns, "\n\nAssistant: Hello."]]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    _announce(start(load_recipe(path), tmp_path / "run"))
    said = capsys.readouterr().err
    assert "12 of 14 records hold a usable query (dropped: duplicates 1, no human turn 1)" in said


def test_narrow_masters_are_refused_where_the_processor_computes_in_fp32(tmp_path, model_folder, monkeypatch):
    monkeypatch.setattr(devices, "resolve_dtype", lambda dtype: torch.float32)
    file = write_recipe(tmp_path, model_folder("llama", True), model__dtype="auto", training__master_weights="bfloat16")
    with pytest.raises(InputError, match=r"means torch.float32 on this machine.*master_weights is bfloat16"):
        Pipeline(load_recipe(file), tmp_path / "run")
    assert not (tmp_path / "run").exists()
