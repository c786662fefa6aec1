"""The commands: parse, call, print. Results go to stdout, progress to stderr, bad input exits with 2."""

import errno
import json
import logging
import os
import socket
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import typer

from sami.errors import InputError, one_line
from sami.recipe import Recipe, load_evaluation, load_recipe, load_writing

# Allocator and thread settings that only count at process start: keeping freed memory, and waiting threads asleep
# rather than spinning, speeds up CPU work.
PROCESS_SETTINGS = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0"
    ":glibc.malloc.trim_threshold=100000000000:glibc.malloc.top_pad=1000000000",
    "TOKENIZERS_PARALLELISM": "false",
}

app = typer.Typer(
    name="sami",
    help="Finetune a language model to follow principles you wrote down, without preference labels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or a packaged recipe's name.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the recipe's.")
]
Output = Annotated[Path | None, typer.Option(help="The run's folder; by default runs/<name of the recipe>.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
Iteration = Annotated[int, typer.Option(min=1, help="Which iteration.")]
Smoke = Annotated[
    bool, typer.Option("--smoke", help="The recipe in miniature: tiny random models, no network, seconds on a CPU.")
]


@app.command(epilog="Example: sami run quickstart training.lr=1e-5 --output runs/lower-rate")
def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Output = None,
    smoke: Smoke = False,
    as_json: Json = False,
) -> None:
    """Run the whole loop; called again, continue where it stopped."""
    if smoke:
        _smoke_run(recipe, overrides, output, as_json)
        return
    pipeline, folder = _pipeline(recipe, overrides, output, trains=True)
    if pipeline.recipe.launch.rank > 0:
        pipeline.assist(pipeline.context.prepared.iterations)
        return
    _finish(pipeline.run(), folder, as_json)


@app.command(epilog="Example: sami plan paper/hh-mistral-7b --gpus 8 --gpu-memory 80")
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Plan for so many GPUs, which need not be here.")] = None,
    gpu_memory: Annotated[float, typer.Option(min=1, help="Memory of each in GiB.")] = 80.0,
    gpu_tflops: Annotated[float, typer.Option(min=1, help="Peak bfloat16 rate of each; by default an A100's.")] = 312.0,
    smoke: Smoke = False,
    as_json: Json = False,
) -> None:
    """Show the resolved recipe, what it will cost and whether it fits; run nothing."""
    resolved = load_recipe(recipe, overrides or [])
    hub = not smoke and _hub_answers()
    if not hub:
        _without_hub()
    _quiet_libraries()
    from sami.costs import estimate as planning

    with ExitStack() as stack:
        if smoke:
            from sami.commands.smoke import smoked

            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sami-smoke-")))
            resolved = stack.enter_context(smoked(resolved, place))
        costs = planning.plan(resolved, planning.Gpus(gpus, gpu_memory, gpu_tflops) if gpus else None, hub=hub)
    _show_plan(costs, as_json)
    if gpus and costs.misfits:
        raise InputError(" ".join(costs.misfits))


@app.command(epilog="Example: sami probe quickstart --queries 24")
def probe(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    queries: Annotated[
        int, typer.Option(min=2, help="Training queries to measure each principle on; half as many fit a temperature.")
    ] = 24,
    as_json: Json = False,
) -> None:
    """Measure, before any training, how far the base model follows each principle.

    It answers training queries under the principle and under its antithesis, alone, and reads the answers again.
    A principle is [bold]worth training[/bold] where the 95 % intervals of column accuracy (chance 0.5) and of the
    column bound (chance 0), also with the principle's own words masked, lie above chance and above the control, two
    sentences that ask for the same, and the recipe's filters keep enough of its contrasts; [bold]weak[/bold] where
    only some of that holds; [bold]not followed[/bold] where neither accuracy nor bound lies above. The method
    amplifies a link that exists, and cannot make one.
    """
    resolved = load_recipe(recipe, overrides or [])
    _tune_process()
    _quiet_libraries()
    from sami.commands import probe as probing

    found = probing.probe(resolved, queries)
    if as_json:
        print(json.dumps(found.as_json(), indent=1, ensure_ascii=False))
        return
    _print(probing.table(found))
    for sentence in probing.sentences(found):
        _print(sentence)


@app.command(
    epilog="Example: sami generate quickstart --iteration 1, or on each of 8 machines "
    "sami generate quickstart --shard 3/8, and then once sami generate quickstart --merge"
)
def generate(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Output = None,
    iteration: Iteration = 1,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Generate only part I of N.")] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Check the parts that are there and put them together.")
    ] = False,
) -> None:
    """Generate one iteration's contrasts with the model of the iteration before."""
    if shard and merge:
        raise InputError("--shard makes a part and --merge puts parts together; give one of them.")
    pipeline, _ = _pipeline(recipe, overrides, output)
    if shard:
        from sami.loop.shards import Shard

        print(pipeline.generate_shard(iteration, Shard.parse(shard)))
    else:
        pipeline.generate(iteration, merge=merge)
        print(pipeline.directory.contrasts(iteration))


@app.command(epilog="Example: sami train quickstart --iteration 1")
def train(recipe: RecipeArgument, overrides: Overrides = None, output: Output = None, iteration: Iteration = 1) -> None:
    """Train one iteration's model on its contrasts."""
    pipeline, _ = _pipeline(recipe, overrides, output, trains=True)
    if pipeline.recipe.launch.rank > 0:
        pipeline.assist([iteration])
        return
    pipeline.train(iteration)
    print(pipeline.directory.model(iteration))


@app.command(epilog="Example: sami evaluate quickstart --json")
def evaluate(recipe: RecipeArgument, overrides: Overrides = None, output: Output = None, as_json: Json = False) -> None:
    """Evaluate base and every trained iteration on held-out queries."""
    pipeline, folder = _pipeline(recipe, overrides, output)
    _finish(pipeline.evaluate(), folder, as_json)


@app.command(
    epilog="Example: sami judge quickstart --judge '{kind: local, model: HuggingFaceTB/SmolLM2-1.7B-Instruct}' "
    "or, for files: sami judge --candidate new.jsonl --baseline old.jsonl --queries queries.jsonl --judge '{…}'"
)
def judge(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE] [KEY=VALUE]...", help="A recipe whose run is judged, and settings."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The run's folder; for files, where verdicts go.")] = None,
    candidate: Annotated[list[Path] | None, typer.Option(help="Responses of a candidate (JSONL).")] = None,
    baseline: Annotated[list[Path] | None, typer.Option(help="Responses it is compared with (JSONL).")] = None,
    queries: Annotated[Path | None, typer.Option(help="The queries that the responses answer.")] = None,
    field: Annotated[str, typer.Option(help="The field of the queries' text.")] = "query",
    principles: Annotated[Path | None, typer.Option(help="Principles that the constitutions are made of.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Judge the first so many queries of the files.")] = None,
    judges: Annotated[
        list[str] | None, typer.Option("--judge", help="In place of evaluation.judges: a kind, or YAML with `kind`.")
    ] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Only measure the judges on known answers.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Use judges that are not above chance.")] = False,
    as_json: Json = False,
) -> None:
    """Ask judges which responses follow the constitution better: of a run, or of files of responses."""
    settings = [f"evaluation.judges=[{', '.join(judges)}]"] if judges else []
    settings += ["evaluation.force=true"] if force else []
    given = arguments or []
    if candidate or baseline:
        if not (candidate and baseline and queries and output):
            raise InputError("Files of responses need --candidate, --baseline, --queries and --output together.")
        if given and "=" not in given[0]:
            raise InputError(f"Give either the recipe {given[0]} or files of responses with --candidate.")
        _quiet_libraries()
        from sami.evaluation import file_comparison

        files = file_comparison.Files(candidate, baseline, queries, field, principles, limit)
        compared = file_comparison.Comparison(files, load_evaluation([*given, *settings]), output)
        if calibrate:
            _calibrated(compared.calibrate(), as_json)
        else:
            _judged(compared.judge(), output, as_json)
        return
    idle = {"--queries": queries, "--principles": principles, "--limit": limit}
    if named := [name for name, value in idle.items() if value is not None]:
        raise InputError(f"{', '.join(named)} has no effect on a run; it goes with --candidate and --baseline.")
    if not given or "=" in given[0]:
        raise InputError("Name the recipe whose run is judged, or files of responses with --candidate and --baseline.")
    pipeline, folder = _pipeline(given[0], [*given[1:], *settings], output)
    if calibrate:
        _calibrated(pipeline.calibrate(), as_json)
    else:
        from sami.report import write_report

        _judged(pipeline.judge(), folder / "evaluation", as_json)
        write_report([folder])


@app.command(epilog="Example: sami winrate runs/quickstart/evaluation/verdicts.jsonl --slope shared")
def winrate(
    verdicts: Annotated[Path, typer.Argument(metavar="VERDICTS.jsonl", help="Judgements, one a line.")],
    as_json: Json = False,
    slope: Annotated[
        Literal["policy", "shared"],
        typer.Option(help="Whether the effect of length is fitted for each policy or shared by those of a judge."),
    ] = "policy",
    export: Annotated[
        Literal["alpaca"] | None,
        typer.Option(help="Print annotations in the format of alpaca_eval instead, as JSON."),
    ] = None,
) -> None:
    """Win rates with intervals, raw and corrected for length, from a file of verdicts."""
    from sami.evaluation import alpaca, comparison, win_rate, win_rate_table
    from sami.evaluation.verdicts import read_verdicts

    if export and (as_json or slope != "policy"):
        raise InputError("--export prints annotations, not win rates, so --json and --slope mean nothing there.")
    judged = read_verdicts(verdicts)
    if export:
        print(json.dumps(alpaca.annotations(judged), indent=1, ensure_ascii=False))
        return
    accuracies = comparison.recorded_accuracies(verdicts, samples=2000, seed=0)
    rates = win_rate.win_rates(judged, slope=slope, judge_accuracy=accuracies)
    if as_json:
        print(json.dumps(rates, indent=1, ensure_ascii=False))
    else:
        for table in win_rate_table.tables(rates):
            _print(table)
        for pair in win_rate.agreement(judged):
            _print(win_rate_table.agreement_sentence(pair))
    for warning in win_rate_table.warnings(rates):
        print(f"warning: {warning}", file=sys.stderr)


@app.command(epilog="Example: sami report runs/quickstart or, to compare: sami report runs/a runs/b --output both.html")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs; several are compared.")],
    output: Annotated[
        Path | None, typer.Option(help="The page; by default RUN/report.html, or comparison.html for several.")
    ] = None,
) -> None:
    """Write the page of a run, or one page that compares several."""
    _quiet_libraries()
    from sami.report import write_report

    print(write_report(runs, output))


@app.command("try", epilog="Example: sami try runs/quickstart 'Why is the sky blue?' --principle pirate")
def try_run(
    run: RunArgument,
    query: Annotated[str | None, typer.Argument(metavar="[QUERY]", help="Without one, a prompt asks for it.")] = None,
    principle: Annotated[
        list[str] | None, typer.Option(help="A principle to answer by, by id; may be repeated.")
    ] = None,
    antithesis: Annotated[list[str] | None, typer.Option(help="A principle whose antithesis to answer by.")] = None,
    constitution: Annotated[str | None, typer.Option(help="A constitution in your own words.")] = None,
    opposite: Annotated[str | None, typer.Option(help="What --constitution is told from; else the bare query.")] = None,
    iteration: Annotated[int | None, typer.Option(min=1, help="Which trained model; by default the last.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer; by default the run's.")] = None,
    as_json: Json = False,
) -> None:
    """Ask base and the trained model, side by side, and see which constitution the answers fit."""
    by_id = bool(principle or antithesis)
    if by_id and constitution is not None:
        raise InputError("Give principles by id or a constitution in your own words, not both.")
    if opposite is not None and constitution is None:
        raise InputError("--opposite belongs to --constitution; principles have opposites of their own.")
    if query is None and (by_id or constitution is not None or as_json):
        raise InputError("Give a query, or leave out the constitution and --json to be asked for both.")
    if query is not None and not by_id and constitution is None:
        raise InputError("Say under which constitution to answer: --principle ID, or --constitution 'a sentence'.")
    _tune_process()
    _quiet_libraries()
    from sami.commands import ask as trial
    from sami.commands import ask_session

    asked = trial.Trial(run, iteration, max_new_tokens)
    if query is None:
        _editable_input()
        ask_session.converse(asked, _console())
        return
    if constitution is not None:
        choice = trial.of_text(constitution, opposite or "")
    else:
        choice = asked.principles(principle or [], antithesis or [])
    if as_json:
        print(json.dumps(asked.ask(query, choice).as_json(), indent=1, ensure_ascii=False))
    else:
        ask_session.show(asked, query, choice, _console())


@app.command(epilog="Example: sami inspect runs/quickstart --contrast 2-00003")
def inspect(
    source: Annotated[str, typer.Argument(metavar="RUN|RECIPE", help="The folder of a run, or a recipe.")],
    overrides: Overrides = None,
    contrast: Annotated[str | None, typer.Option(help="Id of a contrast; by default the first one.")] = None,
    iteration: Annotated[int | None, typer.Option(min=1, help="The trained model that scores; the last.")] = None,
    scores: Annotated[
        bool | None,
        typer.Option(
            "--scores/--no-scores",
            help="Score tokens under each constitution. By default for runs whose weights are here; for a recipe "
            "base answers first.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what the model sees of a contrast: ids, the prompt's end, trained tokens, and which words tell."""
    of_a_run = Path(source).is_dir()
    if of_a_run and overrides:
        raise InputError(f"{overrides[0]!r} has no effect on a run, whose recipe is fixed. Give a recipe instead.")
    if not of_a_run and iteration is not None:
        raise InputError(f"{source} is a recipe, which has no trained model, so --iteration means nothing there.")
    resolved = None if of_a_run else load_recipe(source, overrides or [])
    _tune_process()
    _quiet_libraries()
    from sami.commands import inspect as inspection
    from sami.commands import inspect_view
    from sami.loop.context import Run
    from sami.prepared import prepare

    if resolved is None:
        seen = inspection.of_run(Run.open(source), contrast, iteration=iteration, scores=scores)
    else:
        seen = inspection.of_recipe(prepare(resolved), contrast, scores=bool(scores))
    if as_json:
        print(json.dumps(seen.as_json(), indent=1, ensure_ascii=False))
    else:
        _print(inspect_view.view(seen))


@app.command(epilog="Example: sami push runs/quickstart my-name/everyday-principles --private")
def push(
    run: RunArgument,
    repository: Annotated[str, typer.Argument(metavar="REPO_ID", help="Name on the hub: owner/name.")],
    iteration: Annotated[int | None, typer.Option(min=1, help="Which trained model; by default the last.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Upload a trained model and its card to the Hugging Face hub."""
    _quiet_libraries()
    from sami.commands import push
    from sami.loop.context import Run

    print(push.push(Run.open(run), repository, iteration=iteration, private=private))


@app.command("import-principles", epilog="Example: sami import-principles constitutions/opus --output principles.yaml")
def import_principles(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...",
            help="The reference's constitution files, folders of them, or contrasts.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="The principles file to write; it must not exist.")],
) -> None:
    """Write a principles file from constitutions of the reference implementation."""
    from sami import reference_format

    reference_format.write_principles(reference_format.opposed(reference_format.read_constitutions(sources)), output)
    print(output)


@app.command(
    "write-principles",
    epilog="Example: sami write-principles --task 'summarising Reddit posts' --names concise,comprehensive "
    "--output principles.yaml",
)
def write_principles(
    task: Annotated[str, typer.Option(help="What the responses do, such as 'summarising Reddit posts'.")],
    names: Annotated[
        str | None, typer.Option(help="Adjectives, with commas; without it the writer names them.")
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="How many principles to write without --names; 4 if not given.")
    ] = None,
    writer: Annotated[
        str | None,
        typer.Option(help="Who writes: a model's source, or YAML such as '{url: …, model: …, key_variable: …}'."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the writer's sampling.")] = 0,
    output: Annotated[Path | None, typer.Option(help="The file to write; without it, standard output.")] = None,
) -> None:
    """Have a model write principles with their antitheses, as a file to read and edit."""
    given = {
        "task": task,
        "names": None if names is None else [name.strip() for name in names.split(",")],
        "count": count,
        "writer": _yaml(writer, "--writer"),
        "seed": seed,
    }
    settings = load_writing({key: value for key, value in given.items() if value is not None})
    if output is not None and output.exists():
        raise InputError(f"The file {output} exists. Give another one, or remove it.")
    _tune_process()
    _quiet_libraries()
    from sami.principle_writing import files as principle_files

    if output is None:
        print(principle_files.written(settings), end="")
    else:
        principle_files.write_file(settings, output)
        print(output)


def main() -> None:
    """Entry point: bad input is a message and exit code 2, an interrupt leaves a run that continues."""
    try:
        app()
    except InputError as error:
        _fail(str(error))
    except Exception as error:
        # Libraries wrap the system's errors in their own, so the text counts as well as the number.
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.ENOSPC or "No space left on device" in str(error):
            _fail(f"The disk is full: {error}. Free some space and run the same command; finished steps are kept.")
        if number == errno.ENAMETOOLONG:
            _fail(f"A name is too long for this file system: {error}. Give a shorter path.")
        if number in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
            _fail(f"A file cannot be used: {error}. Choose a folder you may write to with --output.")
        raise


def _pipeline(recipe: str, overrides: list[str] | None, output: Path | None, trains: bool = False) -> tuple[Any, Path]:
    resolved: Recipe = load_recipe(recipe, overrides or [])
    if resolved.launch.rank > 0 and not trains:
        raise InputError(
            f"launch.rank is {resolved.launch.rank}, and other machines than 0 only take part in `sami run` and "
            f"`sami train`. Leave launch.rank out."
        )
    folder = output or Path("runs") / Path(recipe).stem
    _tune_process()
    _quiet_libraries()
    from sami.pipeline import Pipeline

    return Pipeline(resolved, folder), folder


def _smoke_run(recipe: str, overrides: list[str] | None, output: Path | None, as_json: bool) -> None:
    resolved = load_recipe(recipe, overrides or [])
    folder = output or Path("runs") / f"{Path(recipe).stem}-smoke"
    _tune_process()
    _without_hub()
    _quiet_libraries()
    from sami.commands.smoke import smoked
    from sami.pipeline import Pipeline

    with smoked(resolved, folder / ".smoke") as tiny:
        _finish(Pipeline(tiny, folder).run(), folder, as_json)
    print("A smoke run: tiny random models and scripted judges, so the figures mean nothing.", file=sys.stderr)


def _show_plan(costs: Any, as_json: bool) -> None:
    from sami.costs import tables

    if as_json:
        print(json.dumps({"recipe": costs.recipe.model_dump(), **costs.as_json()}, indent=1))
        return
    for table in (
        tables.recipe_table(costs.recipe),
        tables.cost_table(costs),
        tables.memory_table(costs),
    ):
        _print(table)
    if costs.estimated:
        _print(f"note: {costs.estimated}.")
    for warning in [*costs.warnings, *costs.misfits]:
        _print(f"warning: {warning}")


def _yaml(text: str | None, option: str) -> Any:
    import yaml

    try:
        return None if text is None else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"The value of {option} is not YAML: {one_line(error)}.") from None


def _finish(summary: dict[str, Any], folder: Path, as_json: bool) -> None:
    from sami.loop.summary import sentences, table
    from sami.report import write_report

    page = write_report([folder])
    if as_json:
        print(json.dumps(summary, indent=1, ensure_ascii=False))
        return
    _print(table(summary))
    if summary["win_rates"]:
        from sami.evaluation import win_rate_table

        _print(win_rate_table.tables(summary["win_rates"])[0])
        for pair in summary["agreement"]:
            _print(win_rate_table.agreement_sentence(pair))
        for warning in win_rate_table.warnings(summary["win_rates"]):
            print(f"warning: {warning}", file=sys.stderr)
    for sentence in sentences(summary):
        _print(sentence)
    _print(f"All figures: {folder / 'summary.json'}. To read and share: {page}.")


def _judged(value: dict[str, Any], folder: Path, as_json: bool) -> None:
    from sami.evaluation import win_rate_table
    from sami.loop.judged_summary import length_table

    if as_json:
        print(json.dumps(value, indent=1, ensure_ascii=False))
        return
    for table in win_rate_table.tables(value["win_rates"]):
        _print(table)
    if "lengths" in value:
        _print(length_table(value["lengths"]))
    for pair in value["agreement"]:
        _print(win_rate_table.agreement_sentence(pair))
    for warning in win_rate_table.warnings(value["win_rates"]):
        print(f"warning: {warning}", file=sys.stderr)
    if "verdict" in value:
        _print(value["verdict"])
    _print(f"All verdicts: {folder / 'verdicts.jsonl'}.")


def _calibrated(calibrations: list[Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps({c.judge: c.as_json() for c in calibrations}, indent=1))
        return
    for calibration in calibrations:
        _print(calibration.sentence())
    if not calibrations:
        _print("No judge needs calibration: verifiers define the answer, and people's verdicts are given.")


def _tune_process() -> None:
    """Restart Python once with `PROCESS_SETTINGS`; anything that the user set already is left alone."""
    missing = {name: value for name, value in PROCESS_SETTINGS.items() if name not in os.environ}
    if missing and sys.platform == "linux" and sys.argv[0].endswith(("/sami", "/cli.py")):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, "-P", "-m", "sami.cli", *sys.argv[1:]], {**os.environ, **missing})


def _hub_answers() -> bool:
    """Whether the hub can be reached, asked once: its own libraries wait for half a minute before they give up."""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
        return False
    if any(name in os.environ for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # only the proxy knows
    address = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=3).close()
    except OSError:
        return False
    return True


def _without_hub() -> None:
    """Read by the libraries of the hub when they are imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def _quiet_libraries() -> None:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")  # sami has bars of its own
    import transformers

    transformers.utils.logging.disable_progress_bar()
    # Imported by peft, it misses a package for kernels that are not used here.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def _print(what: Any) -> None:
    text = isinstance(what, str)
    _console(soft_wrap=text, markup=not text).print(what)


def _console(**settings: Any) -> Any:
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 120, **settings)


def _editable_input() -> None:
    """Give `input` the arrow keys and a history, where the platform has readline."""
    with suppress(ImportError):
        import readline  # noqa: F401


def _fail(message: str) -> None:
    print(f"sami: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
