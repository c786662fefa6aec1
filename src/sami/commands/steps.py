"""`sami generate`, `sami train` and `sami evaluate`: the steps of a run, one at a time."""

from pathlib import Path

from sami.commands.run import finish
from sami.loop.shards import Shard
from sami.pipeline import Pipeline
from sami.recipe import Recipe


def generate(recipe: Recipe, folder: Path, iteration: int, *, shard: str | None = None, merge: bool = False) -> None:
    """Generate the contrasts of an iteration, or one shard of them, or merge the shards."""
    pipeline = Pipeline(recipe, folder)
    if shard:
        print(pipeline.generate_shard(iteration, Shard.parse(shard)))
    else:
        pipeline.generate(iteration, merge=merge)
        print(pipeline.directory.contrasts(iteration))


def train(recipe: Recipe, folder: Path, iteration: int) -> None:
    """Train the model of an iteration; on a machine of a higher rank, along with machine 0."""
    pipeline = Pipeline(recipe, folder)
    if recipe.launch.rank > 0:
        pipeline.assist([iteration])
        return
    pipeline.train(iteration)
    print(pipeline.directory.model(iteration))


def evaluate(recipe: Recipe, folder: Path, *, as_json: bool = False) -> None:
    """Evaluate base and every trained iteration."""
    finish(Pipeline(recipe, folder).evaluate(), folder, as_json=as_json)
