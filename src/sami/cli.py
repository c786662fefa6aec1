"""The commands: each parses its options, refuses what cannot work, and calls its module in `sami.commands`.

Results go to stdout, progress to stderr, and bad input exits with 2. Nothing here imports torch before an option is
known to be possible.
"""

from contextlib import suppress
from pathlib import Path

import typer

from sami.commands import ending, environment, options
from sami.commands.environment import PROCESS_SETTINGS
from sami.console import make_output_readable, result_console, show, show_json
from sami.errors import InputError, quoted
from sami.files import parse_yaml, require_creatable
from sami.recipe import Recipe, load_evaluation, load_recipe, load_writing

__all__ = ["PROCESS_SETTINGS", "app", "main"]

app = typer.Typer(
    name="sami",
    help="Finetune a language model to follow principles you wrote down, without preference labels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


# A run, and its steps.


@app.command(epilog="Example: sami run quickstart training.lr=1e-5 --output runs/lower-rate")
def run(
    recipe: options.RecipeArgument,
    overrides: options.Overrides = None,
    output: options.Output = None,
    smoke: options.Smoke = False,
    as_json: options.Json = False,
) -> None:
    """Run the whole loop, or continue it where it stopped."""
    resolved, folder = _of_a_run(recipe, overrides, output, trains=True, suffix="-smoke" if smoke else "")
    environment.start(hub=not smoke)
    from sami.commands import run as command

    (command.smoke if smoke else command.run)(resolved, folder, as_json=as_json)


@app.command(epilog="Example: sami plan paper/hh-mistral-7b --gpus 8 --gpu-memory 80")
def plan(
    recipe: options.RecipeArgument,
    overrides: options.Overrides = None,
    gpus: options.Gpus = None,
    gpu_memory: options.GpuMemory = None,
    gpu_tflops: options.GpuTflops = None,
    smoke: options.Smoke = False,
    as_json: options.Json = False,
) -> None:
    """Show the resolved recipe, what it will cost and whether it fits, without running it."""
    resolved = load_recipe(recipe, overrides or [])
    if gpus is None and (gpu_memory, gpu_tflops) != (None, None):
        raise InputError("--gpu-memory and --gpu-tflops describe the GPUs of --gpus, which is missing. Add --gpus N.")
    hub = not smoke and environment.hub_answers()
    environment.start(tuned=False, hub=hub)
    from sami.commands import plan as command
    from sami.costs.estimate import Gpus

    planned_for = Gpus(gpus, gpu_memory or 80.0, gpu_tflops or 312.0) if gpus else None
    command.show_plan(resolved, planned_for, smoke=smoke, hub=hub, as_json=as_json)


@app.command(epilog="Example: sami probe quickstart --queries 24")
def probe(
    recipe: options.RecipeArgument,
    overrides: options.Overrides = None,
    queries: options.ProbeQueries = 24,
    both_places: options.BothPlaces = False,
    as_json: options.Json = False,
) -> None:
    """Measure, before any training, how far the base model follows each principle.

    The base model answers training queries under each principle and under its antithesis, and then scores the
    answers. A principle is [bold]worth training[/bold] if the 95 % intervals of column accuracy (chance 0.5) and of
    the column bound (chance 0), also with the principle's own words masked, lie above chance and above the control
    (two sentences that ask for the same), and if the recipe's filters keep enough of its contrasts. It is
    [bold]weak[/bold] if only some of this holds, and [bold]not followed[/bold] if neither accuracy nor bound lies
    above. The method amplifies a link that exists; it cannot create one.

    With [bold]--both-places[/bold], the prompts with the constitution in the user's turn and those with it in the
    system turn (prompt.constitution_in) are compared, for models whose chat template has a system role.
    """
    resolved = load_recipe(recipe, overrides or [])
    environment.start()
    from sami.commands import probe as command
    from sami.commands import probe_places

    if both_places:
        probe_places.show_places(probe_places.probe_places(resolved, queries), as_json=as_json)
    else:
        command.show_links(command.probe(resolved, queries), as_json=as_json)


@app.command(
    epilog="Example: sami generate quickstart --iteration 1, or on each of 8 machines "
    "sami generate quickstart --shard 3/8, and then once sami generate quickstart --merge"
)
def generate(
    recipe: options.RecipeArgument,
    overrides: options.Overrides = None,
    output: options.Output = None,
    iteration: options.Iteration = 1,
    shard: options.Shard = None,
    merge: options.Merge = False,
) -> None:
    """Generate one iteration's contrasts with the model of the iteration before."""
    if shard and merge:
        raise InputError("--shard generates a shard and --merge puts shards together. Give one of them.")
    resolved, folder = _of_a_run(recipe, overrides, output)
    environment.start()
    from sami.commands import steps

    steps.generate(resolved, folder, iteration, shard=shard, merge=merge)


@app.command(epilog="Example: sami train quickstart --iteration 1")
def train(
    recipe: options.RecipeArgument,
    overrides: options.Overrides = None,
    output: options.Output = None,
    iteration: options.Iteration = 1,
) -> None:
    """Train one iteration's model on its contrasts."""
    resolved, folder = _of_a_run(recipe, overrides, output, trains=True)
    environment.start()
    from sami.commands import steps

    steps.train(resolved, folder, iteration)


@app.command(epilog="Example: sami evaluate quickstart --json")
def evaluate(
    recipe: options.RecipeArgument,
    overrides: options.Overrides = None,
    output: options.Output = None,
    as_json: options.Json = False,
) -> None:
    """Evaluate the base model and every trained iteration on held-out queries."""
    resolved, folder = _of_a_run(recipe, overrides, output)
    environment.start()
    from sami.commands import steps

    steps.evaluate(resolved, folder, as_json=as_json)


# Judges and reports.


@app.command(
    epilog="Example: sami judge quickstart --judge '{kind: local, model: HuggingFaceTB/SmolLM2-1.7B-Instruct}' "
    "or, for files: sami judge --candidate new.jsonl --baseline old.jsonl --queries queries.jsonl --judge '{…}'"
)
def judge(
    arguments: options.JudgeArguments = None,
    output: options.JudgeOutput = None,
    candidate: options.Candidates = None,
    baseline: options.Baselines = None,
    queries: options.QueriesFile = None,
    field: options.QueriesField = None,
    principles: options.PrinciplesFile = None,
    limit: options.Limit = None,
    judges: options.Judges = None,
    calibrate: options.Calibrate = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Ask judges which responses follow the constitution better, for a run or for files of responses."""
    settings = [f"evaluation.judges=[{', '.join(judges)}]"] if judges else []
    settings += ["evaluation.force=true"] if force else []
    given = arguments or []
    if candidate or baseline:
        if not (candidate and baseline and queries and output):
            raise InputError("Files of responses need --candidate, --baseline, --queries and --output together.")
        if given and "=" not in given[0]:
            raise InputError(f"Give either the recipe {given[0]} or files of responses with --candidate.")
        evaluation = load_evaluation([*given, *settings])
        environment.start(tuned=False)
        from sami.commands import judge as command
        from sami.evaluation.file_comparison import Files

        files = Files(candidate, baseline, queries, field or "query", principles, limit)
        command.of_files(files, evaluation, output, calibrate=calibrate, as_json=as_json)
        return
    idle = {"--queries": queries, "--field": field, "--principles": principles, "--limit": limit}
    if named := [name for name, value in idle.items() if value is not None]:
        raise InputError(f"{', '.join(named)} has no effect on a run. Use it with --candidate and --baseline.")
    if not given or "=" in given[0]:
        raise InputError("Name the recipe whose run to judge, or files of responses with --candidate and --baseline.")
    resolved, folder = _of_a_run(given[0], [*given[1:], *settings], output)
    environment.start()
    from sami.commands import judge as command

    command.of_run(resolved, folder, calibrate=calibrate, as_json=as_json)


@app.command(epilog="Example: sami winrate runs/quickstart/evaluation/verdicts.jsonl --slope shared")
def winrate(
    verdicts: options.Verdicts,
    as_json: options.Json = False,
    slope: options.Slope = "policy",
    export: options.Export = None,
) -> None:
    """Compute win rates with intervals, raw and controlled for length, from a file of verdicts."""
    if export and (as_json or slope != "policy"):
        raise InputError("--export prints annotations instead of win rates. Remove --json and --slope.")
    from sami.commands import winrate as command

    if export:
        command.export(verdicts)
    else:
        command.show_win_rates(verdicts, slope, as_json=as_json)


@app.command(epilog="Example: sami report runs/quickstart or, to compare: sami report runs/a runs/b --output both.html")
def report(
    runs: options.Runs,
    output: options.Page = None,
) -> None:
    """Write the HTML page of a run, or one page that compares several runs."""
    environment.start(tuned=False)
    from sami.report import write_report

    print(write_report(runs, output))


# A closer look at models and data.


@app.command("try", epilog="Example: sami try runs/quickstart 'Why is the sky blue?' --principle pirate")
def try_run(
    run: options.RunArgument,
    query: options.Query = None,
    conversation: options.ConversationFile = None,
    principle: options.ById = None,
    antithesis: options.Against = None,
    constitution: options.OwnConstitution = None,
    opposite: options.Opposite = None,
    iteration: options.Trained = None,
    max_new_tokens: options.MaxNewTokens = None,
    as_json: options.Json = False,
) -> None:
    """Ask the base model and a trained model, side by side, and see which constitution their answers fit."""
    by_id = bool(principle or antithesis)
    options.check_question(query is not None or conversation is not None, by_id, constitution, opposite, as_json)
    environment.start()
    from sami.commands import ask as command
    from sami.commands import ask_session

    asked = query if conversation is None else command.conversation_in(conversation, query)
    trial = command.Trial(run, iteration, max_new_tokens)
    if asked is None:
        _editable_input()
        ask_session.converse(trial, result_console())
        return
    if constitution is not None:
        choice = command.of_text(constitution, opposite or "")
    else:
        choice = trial.principles(principle or [], antithesis or [])
    if as_json:
        show_json(trial.ask(asked, choice).as_json())
    else:
        ask_session.show(trial, asked, choice, result_console())


@app.command(epilog="Example: sami inspect runs/quickstart --contrast 2-00003")
def inspect(
    source: options.RunOrRecipe,
    overrides: options.Overrides = None,
    contrast: options.ContrastId = None,
    iteration: options.Trained = None,
    scores: options.Scores = None,
    as_json: options.Json = False,
) -> None:
    """Show what the model sees of a contrast: token ids, where the prompt ends, what is trained, telling words."""
    of_a_run = Path(source).is_dir()
    if of_a_run and overrides:
        raise InputError(
            f"The setting {quoted(overrides[0])} has no effect on a run, whose recipe is fixed. Give a recipe instead."
        )
    if not of_a_run and iteration is not None:
        raise InputError(f"{source} is a recipe, which has no trained models. Remove --iteration.")
    resolved = None if of_a_run else load_recipe(source, overrides or [])
    environment.start()
    from sami.commands import inspect as command
    from sami.commands import inspect_view
    from sami.loop.context import Run
    from sami.prepared import prepare

    if resolved is None:
        seen = command.of_run(Run.open(source), contrast, iteration=iteration, scores=scores)
    else:
        seen = command.of_recipe(prepare(resolved), contrast, scores=bool(scores))
    if as_json:
        show_json(seen.as_json())
    else:
        show(inspect_view.view(seen))


@app.command(epilog="Example: sami push runs/quickstart my-name/everyday-principles --private")
def push(
    run: options.RunArgument,
    repository: options.Repository,
    iteration: options.Trained = None,
    private: options.Private = False,
) -> None:
    """Upload a trained model and its card to the Hugging Face hub."""
    environment.start(tuned=False)
    from sami.commands import push as command
    from sami.loop.context import Run

    print(command.push(Run.open(run), repository, iteration=iteration, private=private))


# Principles.


@app.command("import-principles", epilog="Example: sami import-principles constitutions/opus --output principles.yaml")
def import_principles(
    sources: options.Sources,
    output: options.NewPrinciples,
) -> None:
    """Write a principles file from constitutions of the reference implementation."""
    from sami.commands import import_principles as command

    command.import_principles(sources, output)


@app.command(
    "write-principles",
    epilog="Example: sami write-principles --task 'summarizing Reddit posts' --names concise,comprehensive "
    "--output principles.yaml",
)
def write_principles(
    task: options.Task,
    names: options.Names = None,
    count: options.Count = None,
    writer: options.Writer = None,
    seed: options.WriterSeed = 0,
    output: options.WrittenOutput = None,
) -> None:
    """Have a model write principles with their antitheses, as a file to read and edit."""
    given = {
        "task": task,
        "names": None if names is None else [name.strip() for name in names.split(",")],
        "count": count,
        "writer": None if writer is None else parse_yaml(writer, "The value of --writer"),
        "seed": seed,
    }
    settings = load_writing({key: value for key, value in given.items() if value is not None})
    if output is not None:
        require_creatable(output)
        if output.exists():
            raise InputError(f"The file {output} exists. Give another one, or remove it.")
    environment.start()
    from sami.commands import write_principles as command

    command.write_principles(settings, output)


def main() -> None:
    """Entry point: bad input is a message and exit code 2, and a stopped command leaves nothing half-written."""
    make_output_readable()
    with ending.explained():
        app()


def _of_a_run(
    recipe: str, overrides: list[str] | None, output: Path | None, *, trains: bool = False, suffix: str = ""
) -> tuple[Recipe, Path]:
    """The resolved recipe of a run, and the run's folder."""
    resolved = load_recipe(recipe, overrides or [])
    if resolved.launch.rank > 0 and not trains:
        raise InputError(
            f"launch.rank is {resolved.launch.rank}, but only rank 0 runs this command: the other ranks take part in "
            f"`sami run` and `sami train`. Remove launch.rank."
        )
    return resolved, output or Path("runs") / f"{Path(recipe).stem}{suffix}"


def _editable_input() -> None:
    """Give `input` the arrow keys and a history, where the platform has readline."""
    with suppress(ImportError):
        import readline  # noqa: F401


if __name__ == "__main__":
    main()
