"""The arguments and options of the commands: their types, limits and help texts."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sami.errors import InputError
from sami.recipe.sections import MOST_SEED

# Shared by several commands.

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a recipe that comes with sami.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the recipe's.")
]
Output = Annotated[Path | None, typer.Option(help="Folder of the run; by default runs/<name of the recipe>.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
Iteration = Annotated[int, typer.Option(min=1, help="Which iteration.")]
Trained = Annotated[int | None, typer.Option(min=1, help="Which iteration's model; by default the last one's.")]
Smoke = Annotated[
    bool, typer.Option("--smoke", help="The recipe in miniature: tiny random models, no network, seconds on a CPU.")
]

# sami plan

Gpus = Annotated[int | None, typer.Option(min=1, max=100_000, help="Plan for this many GPUs instead of this machine.")]
GpuMemory = Annotated[
    float | None, typer.Option(min=1, max=1_000_000, help="Memory of each GPU in GiB; by default 80.")
]
GpuTflops = Annotated[
    float | None,
    typer.Option(min=1, max=1_000_000, help="Peak bfloat16 rate of each GPU; by default 312, as an A100 has."),
]

# sami probe

ProbeQueries = Annotated[
    int,
    typer.Option(min=2, help="Training queries to measure each principle on; half as many more fit a temperature."),
]

BothPlaces = Annotated[
    bool,
    typer.Option("--both-places", help="Probe twice: with the constitution in the user's turn and in the system turn."),
]

# sami generate

Shard = Annotated[str | None, typer.Option(metavar="I/N", help="Generate only shard I of N.")]
Merge = Annotated[bool, typer.Option("--merge", help="Check the shards that exist and merge them.")]

# sami judge

JudgeArguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RECIPE] [KEY=VALUE]...", help="The recipe of the run to judge, and settings."),
]
JudgeOutput = Annotated[
    Path | None, typer.Option(help="Folder of the run; for files, the folder that the verdicts are written to.")
]
Candidates = Annotated[list[Path] | None, typer.Option(help="Responses of a candidate (JSONL).")]
Baselines = Annotated[list[Path] | None, typer.Option(help="Responses to compare them with (JSONL).")]
QueriesFile = Annotated[Path | None, typer.Option(help="Queries that the responses answer.")]
QueriesField = Annotated[str | None, typer.Option(help="Field that holds a query's text; by default query.")]
PrinciplesFile = Annotated[Path | None, typer.Option(help="Principles that the constitutions consist of.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Judge only this many queries, the first ones.")]
Judges = Annotated[
    list[str] | None, typer.Option("--judge", help="Replaces evaluation.judges: a kind, or YAML with `kind`.")
]
Calibrate = Annotated[bool, typer.Option("--calibrate", help="Only measure the judges on pairs with known answers.")]
Force = Annotated[bool, typer.Option("--force", help="Use judges that are not better than chance.")]

# sami winrate

Verdicts = Annotated[Path, typer.Argument(metavar="VERDICTS.jsonl", help="A file of judgments, one a line.")]
Slope = Annotated[
    Literal["policy", "shared"],
    typer.Option(help="Fit the effect of length for each policy, or once for all policies of a judge."),
]
Export = Annotated[
    Literal["alpaca"] | None,
    typer.Option(help="Print the judgments in the format of alpaca_eval instead, as JSON."),
]

# sami report

Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folder of a run; several are compared.")]
Page = Annotated[
    Path | None, typer.Option(help="File to write; by default RUN/report.html, or comparison.html for several.")
]

# sami try

Query = Annotated[str | None, typer.Argument(metavar="[QUERY]", help="Leave it out to be asked for it.")]
ConversationFile = Annotated[
    Path | None,
    typer.Option(
        "--conversation",
        help="JSON file with the messages (role, content) of a conversation. QUERY is its next turn; without one, its "
        "last user turn is answered.",
    ),
]
ById = Annotated[list[str] | None, typer.Option(help="Id of a principle to answer by; may be repeated.")]
Against = Annotated[list[str] | None, typer.Option(help="Id of a principle to answer against; may be repeated.")]
OwnConstitution = Annotated[str | None, typer.Option(help="A constitution in your own words.")]
Opposite = Annotated[
    str | None, typer.Option(help="Constitution to contrast with --constitution; by default the bare query.")
]
MaxNewTokens = Annotated[
    int | None, typer.Option(min=1, max=1_000_000, help="Longest answer in tokens; by default the run's.")
]

# sami inspect

RunOrRecipe = Annotated[str, typer.Argument(metavar="RUN|RECIPE", help="Folder of a run, or a recipe.")]
ContrastId = Annotated[str | None, typer.Option(help="Id of a contrast; by default the first one.")]
Scores = Annotated[
    bool | None,
    typer.Option(
        "--scores/--no-scores",
        help="Score tokens under each constitution. The default for runs whose weights are on this machine; for "
        "a recipe, the base model answers first.",
        show_default=False,
    ),
]

# sami push

Repository = Annotated[str, typer.Argument(metavar="REPO_ID", help="Repository on the hub: owner/name.")]
Private = Annotated[bool, typer.Option("--private", help="Make a new repository private.")]

# sami import-principles

Sources = Annotated[
    list[Path],
    typer.Argument(
        metavar="SOURCE...",
        help="Constitution files of the reference implementation, folders of them, or its contrasts.",
    ),
]
NewPrinciples = Annotated[Path, typer.Option(help="Principles file to write; it must not exist.")]

# sami write-principles

Task = Annotated[str, typer.Option(help="What the responses do, such as 'summarizing Reddit posts'.")]
Names = Annotated[str | None, typer.Option(help="Adjectives separated by commas; by default the writer chooses them.")]
Count = Annotated[int | None, typer.Option(help="How many principles to write without --names; by default 4.")]
Writer = Annotated[
    str | None,
    typer.Option(help="Who writes: a model's source, or YAML such as '{url: …, model: …, key_variable: …}'."),
]
WriterSeed = Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of the writer's sampling.")]
WrittenOutput = Annotated[Path | None, typer.Option(help="File to write; by default standard output.")]


def check_question(has_query: bool, by_id: bool, constitution: str | None, opposite: str | None, as_json: bool) -> None:
    """Refuse options of `sami try` that exclude or miss each other."""
    if by_id and constitution is not None:
        raise InputError("Give principles by id or a constitution in your own words, not both.")
    if opposite is not None and constitution is None:
        raise InputError("--opposite belongs to --constitution, which is missing. Principles have their own opposites.")
    if not has_query and (by_id or constitution is not None or as_json):
        raise InputError("Give a query, or remove the constitution and --json to be asked for both.")
    if has_query and not by_id and constitution is None:
        raise InputError("Choose a constitution to answer under: --principle ID, or --constitution 'a sentence'.")
