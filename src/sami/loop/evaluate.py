"""Evaluation of one policy: its held-out responses, and the figures measured on them.

evaluate(run, 0)    # base
"""

from typing import Any

from transformers import PreTrainedModel

from sami.console import bar, say
from sami.contrasts import Contrast, read_contrasts, write_contrasts
from sami.evaluation.score import measure
from sami.files import file_hash, write_json
from sami.generation import SamplingSettings
from sami.generation.transformers_engine import TransformersEngine
from sami.loop import model_card, summary, summary_text
from sami.loop.context import Run
from sami.loop.directory import policy_name
from sami.loop.results import Summary
from sami.models import devices


def evaluate(run: Run, iteration: int) -> None:
    """Respond and score by one policy, unless that is done; its card and its line in trackers come with it."""
    policy = policy_name(iteration)
    responses, scores = run.directory.responses(policy), run.directory.scores(policy)

    def respond() -> dict[str, Any]:
        planned = run.prepared.evaluation_plan()
        contrasts = run.respond(run.engine(iteration), planned, f"{policy}: answering", shuffle=False)
        write_contrasts(responses, contrasts)
        counts = run.unsplit(contrasts)
        if counts.get("unsplit"):
            say(f"{policy}: {counts['unsplit']} of {len(contrasts)} contrasts hold reasoning without an answer")
        return counts

    def score() -> dict[str, Any]:
        write_json(scores, _score(run, iteration, read_contrasts(responses)))
        return {}

    answering = run.answering_inputs() | {"policy": run.policy_inputs(iteration)}
    run.directory.step(f"respond-{policy}", answering, [responses], respond)
    scoring = {"responses": file_hash(responses), "policy": run.policy_inputs(iteration)}
    fresh = run.directory.record(f"score-{policy}") is None
    run.directory.step(f"score-{policy}", scoring, [scores], score)
    _report(run, iteration, fresh)


def _report(run: Run, iteration: int, fresh: bool) -> None:
    """Show the policy's figures in a line; hand them to the trackers if they are new; write its card if it has none."""
    policies = [policy_name(i) for i in range(iteration + 1)]
    done = summary.summarize(run.directory, run.recipe, run.principles, policies)
    say(summary_text.headline(done.policies[-1]))
    if fresh:
        run.trackers.evaluated(done.policies[-1])
    if iteration > 0 and not (run.directory.model(iteration) / model_card.FILE).is_file():
        write_card(run, done, iteration)


def write_card(run: Run, value: Summary, iteration: int) -> None:
    """Write the model card of an iteration from a summary."""
    model_card.write(
        run.directory.model(iteration),
        value,
        iteration,
        name=run.directory.folder.resolve().name,
        recipe=run.recipe,
        principles=run.principles,
        prompts=run.prompts,
        tokenizer=run.tokenizer,
    )


def _score(run: Run, iteration: int, contrasts: list[Contrast]) -> dict[str, Any]:
    """Log-prob matrices by the policy and by the base model, verdicts and health of one policy."""
    share_prefix = run.packing(contrasts)
    devices.release_memory()
    base = run.load(0)
    policy = None if iteration == 0 else run.load(iteration)
    total = len(contrasts) * (1 if policy is None else 2)
    with bar(f"{policy_name(iteration)}: scoring", total, "contrasts") as update:
        return measure(
            policy,
            base,
            contrasts,
            tokenizer=run.tokenizer,
            prompts=run.prompts,
            principles=run.principles,
            plain_answers=[] if policy is None else _plain_answers(run, base),
            health_queries=run.recipe.evaluation.health_queries,
            batch_size=2 * run.recipe.training.micro_batch_size,  # no gradients, so twice the contrasts fit
            share_prefix=share_prefix,
            on_contrasts=update,
        )


def _plain_answers(run: Run, base: PreTrainedModel) -> list[tuple[list[int], list[int]]]:
    """The base model's answers without a constitution, on which forgetting is measured."""
    queries = run.prepared.splits.evaluation[: run.recipe.evaluation.health_queries]
    asked = [run.prompts.training_prompt(q.text, [], "") for q in queries]
    settings = SamplingSettings(
        max_new_tokens=run.recipe.generation.max_new_tokens, stop=run.prompts.stop, end_id=run.prompts.end_id
    )
    # The model is in memory already, and the answers are few: a process of its own is not worth its start here.
    engine = TransformersEngine(base, run.tokenizer, run.recipe.generation.batch_size)
    answers = engine.generate(asked, settings)
    return [(prompt, answer.token_ids) for prompt, answer in zip(asked, answers, strict=True)]
