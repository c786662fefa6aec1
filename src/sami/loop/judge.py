"""Judging as steps of a run: baselines' responses, judges asked about every pair, judges measured.

Judging(pipeline).compare(["base", "iteration-1"], baselines=[])
"""

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sami.console import say
from sami.contrasts import read_contrasts, write_contrasts
from sami.errors import InputError
from sami.evaluation.calibration import Calibration
from sami.evaluation.comparison import calibrate_all, every_pair, judge_all
from sami.evaluation.judges import make_judge
from sami.evaluation.pairs import Policy, answering, from_contrasts, from_file
from sami.files import file_hash
from sami.loop.directory import BASE, last_model
from sami.models import devices, loading, saving, sources
from sami.prompts import PromptBuilder
from sami.recipe import Baseline, LocalJudge, Model, load_recipe

if TYPE_CHECKING:
    from sami.pipeline import Pipeline


class Judging:
    """What the recipe's judges and baselines do in one run."""

    def __init__(self, run: "Pipeline") -> None:
        self.run = run

    def calibrate(self) -> list[Calibration]:
        """Measure the judges on base's responses, whose better one is known."""
        run = self.run
        return calibrate_all(run.recipe.evaluation, self._answers(BASE), run.principles, run.directory.evaluation)

    def compare(self, policies: Sequence[str], baselines: Sequence[Policy]) -> dict[str, Any]:
        """Every iteration against base and against the recipe's baselines."""
        base, *candidates = [self._answers(name) for name in policies]
        pairs = every_pair(candidates, [base, *baselines])
        return judge_all(self.run.recipe.evaluation, pairs, base, self.run.principles, self.run.directory.evaluation)

    def check(self) -> None:
        """Refuse judges and baselines that cannot work now, rather than after the training."""
        evaluation = self.run.recipe.evaluation
        for judge in evaluation.judges:
            make_judge(judge, self.run.principles, spent=0.0)
        for baseline in evaluation.baselines:
            if baseline.responses is not None:
                from_file(Path(baseline.responses), None)
            if baseline.run is not None:
                last_model(Path(baseline.run))
            if baseline.train is not None and self.run.recipe.adapter is not None:
                raise InputError(
                    f"The baseline {baseline.name} would train all weights, and the recipe trains an adapter, so "
                    f"the comparison would be unfair. Remove the baseline, or the section `adapter`."
                )
            if baseline.train is not None and importlib.util.find_spec("trl") is None:
                raise InputError(
                    f"The baseline {baseline.name} is trained through TRL, which is not installed: "
                    f"pip install 'sami[baselines]'."
                )
        used = [judge.model for judge in evaluation.judges if isinstance(judge, LocalJudge)]
        for model in used + [baseline.model for baseline in evaluation.baselines if baseline.model is not None]:
            loading.load_config(model)

    def baseline(self, baseline: Baseline) -> Policy:
        """A baseline's responses to the held-out queries and constitutions of this run."""
        if baseline.responses is not None:
            read = from_file(Path(baseline.responses), None)
            return answering(read, self._answers(BASE).responses, baseline.name)
        if baseline.train is not None:
            self._train_baseline(baseline)
            source = sources.derived(self.run.recipe.model, self.run.directory.baseline_model(baseline.name))
        else:
            source = baseline.model or _last_model_of(Path(baseline.run or ""))
        target = self.run.directory.responses(baseline.name)

        def respond() -> dict[str, Any]:
            recipe, tokenizer = self.run.recipe, loading.load_tokenizer(source)
            prompts = PromptBuilder(tokenizer, baseline.prompt or recipe.prompt, recipe.generation.chain_of_thought)
            plan = self.run.evaluation_plan()
            self.run.check_prompts(source, prompts, plan)
            engine = self.run.engine(loading.Weights.of(source, inputs["policy"]), tokenizer)
            label = f"{baseline.name}: answering"
            contrasts = self.run.respond(engine, plan, label, shuffle=False, prompts=prompts)
            write_contrasts(target, contrasts)
            return self.run.unsplit(contrasts)

        inputs = self.run.answering_inputs() | {"policy": sources.fingerprint(source)}
        if baseline.prompt is not None:
            inputs["prompt"] = baseline.prompt.model_dump()
        self.run.directory.step(f"respond-{baseline.name}", inputs, [target], respond)
        return self._answers(baseline.name)

    def _train_baseline(self, baseline: Baseline) -> None:
        """The base model trained on the last iteration's contrasts, with as many steps, in another way."""
        target, last = self.run.directory.baseline_model(baseline.name), self.run.trained()
        if last == 0:
            self.run.directory.require("train-1", "sami train")
        contrasts_file = self.run.directory.contrasts(last)
        inputs = self.run.inputs("training") | {
            "start": self.run.policy_inputs(0),
            "contrasts": file_hash(contrasts_file),
            "train": baseline.train,
        }

        def work() -> dict[str, Any]:
            from sami.evaluation import baselines as trl

            contrasts = read_contrasts(contrasts_file)
            schedule = trl.Schedule(self.run.recipe.training, last, self.run.dtype == torch.bfloat16)
            model, scratch = self.run.load_to_train(0, torch.float32), target.with_name("trainer")
            say(f"{baseline.name}: training by {baseline.train} on the contrasts of iteration {last}")
            if baseline.train == "sft":
                trl.train_sft(model, self.run.tokenizer, contrasts, schedule, scratch)
            else:
                reference = self.run.load_to_train(0, torch.float32)
                trl.train_dpo(model, reference, self.run.tokenizer, contrasts, schedule, scratch)
            saving.save_model(model, self.run.tokenizer, target, self.run.dtype)
            shutil.rmtree(scratch, ignore_errors=True)
            devices.release_memory()
            return {}

        self.run.directory.step(f"train-{baseline.name}", inputs, [target], work)

    def _answers(self, policy: str) -> Policy:
        ids = {query.text: query.id for query in self.run.splits.evaluation}
        contrasts = read_contrasts(self.run.directory.responses(policy))
        return from_contrasts(policy, contrasts, ids, [p.id for p in self.run.held_out])


def _last_model_of(run: Path) -> Model:
    """The last trained model of another run, loaded with the settings of that run's recipe."""
    recipe = run / "recipe.yaml"
    folder = last_model(run)
    return sources.derived(load_recipe(recipe).model, folder) if recipe.is_file() else Model(source=str(folder))
