"""The end of a run: its summary, and the cards of its models.

summarize(run)["verdict"]
"""

from typing import Any

from sami.files import write_json
from sami.loop import judge, summary
from sami.loop.context import Run
from sami.loop.directory import policy_name
from sami.loop.evaluate import write_card


def summarize(run: Run) -> dict[str, Any]:
    """Ask the judges about what is evaluated, write summary.json and the cards, and return its value."""
    policies = [policy_name(i) for i in (0, *run.directory.trained())]
    for policy in policies:
        run.directory.require_intact(f"respond-{policy}")
        run.directory.require_intact(f"score-{policy}")
    baselines = [judge.baseline(run, one) for one in run.recipe.evaluation.baselines]
    judged = judge.judge(run, policies, baselines)
    value = summary.summarize(run.directory, run.recipe, run.principles, policies, baselines=baselines, judged=judged)
    write_json(run.directory.summary, value.as_json())
    for iteration in run.directory.trained():
        write_card(run, value, iteration)
    return value.as_json()
