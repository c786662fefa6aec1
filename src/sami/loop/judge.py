"""Judging: baselines' responses, judges calibrated, and judges asked about every pair.

judge(run, ["base", "iteration-1"], [])
"""

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sami.console import say
from sami.contrasts import read_contrasts, write_contrasts
from sami.errors import InputError
from sami.evaluation.calibration import Calibration
from sami.evaluation.comparison import calibrate_all, every_pair, judge_all
from sami.evaluation.judges import Given, make_judge
from sami.evaluation.pairs import Policy, from_contrasts
from sami.evaluation.response_files import answering, from_file
from sami.files import file_hash
from sami.loop.context import Run
from sami.loop.directory import BASE, RunDirectory
from sami.models import devices, loading, saving, sources
from sami.prepared import require_room
from sami.prompts import PromptBuilder
from sami.recipe import Baseline, Model, load_recipe


def calibrate(run: Run) -> list[Calibration]:
    """Measure the judges on base's responses, whose better one is known."""
    settings, date = run.recipe.evaluation, run.recipe.prompt.date
    return calibrate_all(settings, _answers(run, BASE), run.principles, run.directory.evaluation, date)


def judge(run: Run, policies: Sequence[str], baselines: Sequence[Policy]) -> dict[str, Any]:
    """Every iteration against base and against the recipe's baselines."""
    base, *candidates = [_answers(run, name) for name in policies]
    pairs = every_pair(candidates, [base, *baselines])
    date = run.recipe.prompt.date
    return judge_all(run.recipe.evaluation, pairs, base, run.principles, run.directory.evaluation, date)


def check(run: Run) -> None:
    """Refuse judges and baselines that cannot work now, rather than after the training."""
    evaluation = run.recipe.evaluation
    judges = [make_judge(settings, Given(run.principles)) for settings in evaluation.judges]
    for baseline in evaluation.baselines:
        if baseline.responses is not None:
            from_file(Path(baseline.responses), None)
        if baseline.run is not None:
            RunDirectory(baseline.run).last_model()
        if baseline.train is not None and run.recipe.adapter is not None:
            raise InputError(
                f"The baseline {baseline.name} would train all weights while the recipe trains an adapter, so the "
                f"comparison would be unfair. Remove the baseline, or the section `adapter`."
            )
        if baseline.train is not None and importlib.util.find_spec("trl") is None:
            raise InputError(
                f"The baseline {baseline.name} is trained through TRL, which is not installed: "
                f"pip install 'sami[baselines]'."
            )
    used = [judge.model_to_check for judge in judges if judge.model_to_check is not None]
    for model in used + [baseline.model for baseline in evaluation.baselines if baseline.model is not None]:
        loading.load_config(model)
    for baseline in evaluation.baselines:
        _check_prompts(run, baseline)


def _check_prompts(run: Run, baseline: Baseline) -> None:
    """Refuse prompts that the template of a baseline's model cuts or that leave no room, before anything is trained."""
    is_asked = baseline.model is not None or baseline.run is not None
    if is_asked and run.directory.record(f"respond-{baseline.name}") is None:
        source = _source(run, baseline)
        prompts = _prompts(run, baseline, loading.load_tokenizer(source))
        require_room(source, prompts, run.prepared.evaluation_plan(), run.recipe.generation.max_new_tokens)


def baseline(run: Run, baseline: Baseline) -> Policy:
    """A baseline's responses to the held-out queries and constitutions of this run."""
    if baseline.responses is not None:
        read = from_file(Path(baseline.responses), None)
        return answering(read, _answers(run, BASE).responses, baseline.name)
    if baseline.train is not None:
        _train_baseline(run, baseline)
    source = _source(run, baseline)
    target = run.directory.responses(baseline.name)

    def respond() -> dict[str, Any]:
        if baseline.run is not None:
            earlier = RunDirectory(baseline.run)
            earlier.require_intact_model(max(earlier.models()))
        tokenizer = loading.load_tokenizer(source)
        prompts, plan = _prompts(run, baseline, tokenizer), run.prepared.evaluation_plan()
        require_room(source, prompts, plan, run.recipe.generation.max_new_tokens)
        engine = run.engine_of(loading.Weights.of(source, inputs["policy"]), tokenizer)
        label = f"{baseline.name}: answering"
        contrasts = run.respond(engine, plan, label, shuffle=False, prompts=prompts)
        write_contrasts(target, contrasts)
        return run.unsplit(contrasts)

    inputs = run.answering_inputs() | {"policy": sources.fingerprint(source)}
    if baseline.prompt is not None:
        inputs["prompt"] = baseline.prompt.model_dump()
    run.directory.step(f"respond-{baseline.name}", inputs, [target], respond)
    return _answers(run, baseline.name)


def _source(run: Run, baseline: Baseline) -> Model:
    """The model of a baseline that answers by itself."""
    if baseline.train is not None:
        return sources.derived(run.recipe.model, run.directory.baseline_model(baseline.name))
    return baseline.model or _last_model_of(RunDirectory(baseline.run or ""))


def _prompts(run: Run, baseline: Baseline, tokenizer: Any) -> PromptBuilder:
    settings = baseline.prompt or run.recipe.prompt
    if settings.date is None:
        settings = settings.model_copy(update={"date": run.recipe.prompt.date})
    return PromptBuilder(tokenizer, settings, run.recipe.generation.chain_of_thought)


def _train_baseline(run: Run, baseline: Baseline) -> None:
    """The base model trained on the last iteration's contrasts, with as many steps, in another way."""
    target, trained = run.directory.baseline_model(baseline.name), run.directory.trained()
    if not trained:
        run.directory.require("train-1", "sami train")
    last = trained[-1]
    contrasts_file = run.directory.contrasts(last)
    inputs = run.inputs("training") | {
        "start": run.policy_inputs(0),
        "contrasts": file_hash(contrasts_file),
        "train": baseline.train,
    }

    def work() -> dict[str, Any]:
        from sami.evaluation import baselines as trl

        contrasts = read_contrasts(contrasts_file)
        schedule = trl.Schedule(run.recipe.training, last, run.prepared.dtype == torch.bfloat16)
        model, scratch = run.load_to_train(0, torch.float32), target.with_name("trainer")
        say(f"{baseline.name}: training by {baseline.train} on the contrasts of iteration {last}")
        if baseline.train == "sft":
            trl.train_sft(model, run.tokenizer, contrasts, schedule, scratch)
        else:
            reference = run.load_to_train(0, torch.float32)
            trl.train_dpo(model, reference, run.tokenizer, contrasts, schedule, scratch)
        saving.save_model(model, run.tokenizer, target, run.prepared.dtype)
        shutil.rmtree(scratch, ignore_errors=True)
        devices.release_memory()
        return {}

    run.directory.step(f"train-{baseline.name}", inputs, [target], work)


def _answers(run: Run, policy: str) -> Policy:
    ids = {query.text: query.id for query in run.prepared.splits.evaluation}
    contrasts = read_contrasts(run.directory.responses(policy))
    return from_contrasts(policy, contrasts, ids, [p.id for p in run.prepared.held_out])


def _last_model_of(directory: RunDirectory) -> Model:
    """The last trained model of another run, loaded with the settings of that run's recipe."""
    folder = directory.last_model()
    if not directory.recipe.is_file():
        return Model(source=str(folder))
    return sources.derived(load_recipe(directory.recipe).model, folder)
