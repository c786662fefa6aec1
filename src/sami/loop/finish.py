"""The end of a run: its summary, and the cards of its models.

summarize(run)["verdict"]
"""

from typing import Any

from sami.files import write_json
from sami.loop import judge, judged_summary, summary
from sami.loop.context import Run
from sami.loop.directory import policy_name
from sami.loop.evaluate import write_card


def summarize(run: Run) -> dict[str, Any]:
    """Ask the judges about what is evaluated, write summary.json and the cards, and return the summary."""
    policies = [policy_name(i) for i in (0, *run.directory.trained())]
    for policy in policies:
        run.directory.require_intact(f"respond-{policy}")
        run.directory.require_intact(f"score-{policy}")
    value = summary.summarise(run.directory, run.recipe, run.principles, policies)
    baselines = [judge.baseline(run, one) for one in run.recipe.evaluation.baselines]
    value["policies"] += [judged_summary.baseline(one, run.principles, run.recipe) for one in baselines]
    value |= judge.judge(run, policies, baselines)
    if run.recipe.generation.chain_of_thought is not None:
        records = {p["name"]: run.directory.record(f"respond-{p['name']}") for p in value["policies"]}
        value["unsplit"] = {name: record["result"]["unsplit"] for name, record in records.items() if record}
    if value["comparisons"]:
        value["verdict"] = judged_summary.verdict(value["comparisons"][-1], value["win_rates"])
    write_json(run.directory.summary, value)
    for iteration in run.directory.trained():
        write_card(run, value, iteration)
    return value
