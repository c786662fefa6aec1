"""Evaluation as steps of a run: a policy's held-out responses, and the figures measured on them.

Evaluation(pipeline).evaluate(0)
"""

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from sami.console import bar, say
from sami.contrasts import Contrast, read_contrasts, write_contrasts
from sami.evaluation.score import measure
from sami.files import file_hash, write_json
from sami.generation import SamplingSettings
from sami.generation.transformers_engine import TransformersEngine
from sami.loop import model_card, summary, summary_text
from sami.loop.directory import policy_name
from sami.models import devices

if TYPE_CHECKING:
    from sami.pipeline import Pipeline


class Evaluation:
    """What one run's policies answer to held-out queries, and how that is scored."""

    def __init__(self, run: "Pipeline") -> None:
        self.run = run

    def evaluate(self, iteration: int) -> None:
        """Respond and score by one policy, unless that is done; its card and its line for trackers come along."""
        policy = policy_name(iteration)
        generation = self.run.answering_inputs() | {"policy": self.run.policy_inputs(iteration)}
        responses = self.run.directory.responses(policy)

        def respond() -> dict[str, Any]:
            engine = self.run.engine(self.run.weights(iteration), self.run.tokenizer)
            contrasts = self.run.respond(engine, self.run.evaluation_plan(), f"{policy}: answering", shuffle=False)
            write_contrasts(responses, contrasts)
            counts = self.run.unsplit(contrasts)
            if counts.get("unsplit"):
                say(f"{policy}: {counts['unsplit']} of {len(contrasts)} contrasts hold reasoning without an answer")
            return counts

        def score() -> dict[str, Any]:
            figures = self._score(iteration, read_contrasts(responses))
            write_json(self.run.directory.scores(policy), figures)
            return {}

        self.run.directory.step(f"respond-{policy}", generation, [responses], respond)
        scoring = {"responses": file_hash(responses), "policy": self.run.policy_inputs(iteration)}
        fresh = self.run.directory.record(f"score-{policy}") is None
        self.run.directory.step(f"score-{policy}", scoring, [self.run.directory.scores(policy)], score)
        policies = [policy_name(i) for i in range(iteration + 1)]
        done = summary.summarise(self.run.directory, self.run.recipe, self.run.principles, policies)
        say(summary_text.headline(done.policies[-1]))
        if fresh:
            self.run.trackers.evaluated(done.policies[-1].as_json())
        if iteration > 0 and not (self.run.directory.model(iteration) / model_card.FILE).is_file():
            self.run.write_card(done, iteration)

    def _score(self, iteration: int, contrasts: list[Contrast]) -> dict[str, Any]:
        """Log-prob matrices by the policy and by the base model, verdicts and health of one policy."""
        share_prefix = self.run.packing(contrasts)
        devices.release_memory()
        base = self.run.load(0)
        policy = None if iteration == 0 else self.run.load(iteration)
        total = len(contrasts) * (1 if policy is None else 2)
        with bar(f"{policy_name(iteration)}: scoring", total, "contrasts") as update:
            return measure(
                policy,
                base,
                contrasts,
                tokenizer=self.run.tokenizer,
                prompts=self.run.prompts,
                principles=self.run.principles,
                plain_answers=[] if policy is None else self._plain_answers(base),
                health_queries=self.run.recipe.evaluation.health_queries,
                batch_size=2 * self.run.recipe.training.micro_batch_size,  # no gradients, so twice the contrasts fit
                share_prefix=share_prefix,
                on_contrasts=update,
            )

    def _plain_answers(self, base: PreTrainedModel) -> list[tuple[list[int], list[int]]]:
        """The base model's answers without a constitution, the ground on which forgetting is measured."""
        queries = self.run.splits.evaluation[: self.run.recipe.evaluation.health_queries]
        asked = [self.run.prompts.training_prompt(q.text, [], "") for q in queries]
        settings = SamplingSettings(
            max_new_tokens=self.run.recipe.generation.max_new_tokens, stop=self.run.prompts.stop
        )
        # The model is in memory already, and few are asked for: no process is worth its start here.
        engine = TransformersEngine(base, self.run.tokenizer, self.run.recipe.generation.batch_size)
        answers = engine.generate(asked, settings)
        return [(prompt, answer.token_ids) for prompt, answer in zip(asked, answers, strict=True)]
