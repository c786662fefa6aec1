"""`sami try` in a terminal: answers side by side as they are generated, and a prompt for the next question."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sami.commands.ask import Choice, Told, Trial, of_principles, of_text
from sami.console import visible
from sami.errors import InputError
from sami.loop.directory import BASE
from sami.principles import Principle
from sami.queries import Asked, Conversation
from sami.queries.conversation import as_asked

# Reads one line, in which the editing keys of the terminal work.
Ask = Callable[[str], str]
Exchange = tuple[Conversation, str]
"""What was asked, and the trained model's answer to it."""


def show(trial: Trial, query: Asked, choice: Choice, console: Console) -> Told:
    """Ask once, and show the question, both answers as they grow, and which constitution they fit."""
    console.print(_asked(query, choice))
    texts = dict.fromkeys(trial.policies, "")
    if console.is_terminal:
        with Live(_side_by_side(texts), console=console, refresh_per_second=12) as live:

            def grow(policy: str, text: str) -> None:
                texts[policy] = text
                live.update(_side_by_side(texts))

            told = trial.ask(query, choice, grow)
            live.update(_side_by_side(_texts(told), _reasoning(told)), refresh=True)
    else:
        told = trial.ask(query, choice)
        console.print(_side_by_side(_texts(told), _reasoning(told)))
    against = "under its opposite" if told.opposite else "given the bare query"
    console.print(Text(f"Log-prob of an answer under the constitution minus that {against}, in nats per token:"))
    console.print(fit_table(told))
    console.print(Text(fit_sentence(told)))
    return told


def converse(trial: Trial, console: Console, ask: Ask = input) -> None:
    """Ask for constitutions and queries until the input ends.

    A query that starts with + continues the conversation so far, in which the answers are those of the trained model.
    Both models see the same conversation, so that their answers can be compared.
    """
    console.print(Text(f"{trial.run.directory.folder}: {BASE} and {trial.policy}, {trial.run.recipe.model.source}"))
    console.print(_principles(trial.known))
    console.print(
        Text(
            "A constitution is a list of principles by number or id (2 pirate), with - before an id for its "
            "antithesis (-pirate),\nor a sentence of your own. A query that starts with + continues the conversation "
            f"with the answer of {trial.policy}.\nAn empty line goes back, Ctrl-D ends.",
            style="dim",
        )
    )
    while (line := _line(ask, "constitution> ")) is not None:
        if not line:
            continue
        try:
            choice = read_choice(line, trial.known)
        except InputError as error:
            console.print(Text(str(error), style="red"))
            continue
        so_far: Exchange | None = None
        while query := _line(ask, "query> "):
            try:
                so_far = _exchange(trial, query, so_far, choice, console)
            except InputError as error:
                console.print(Text(str(error), style="red"))
            except KeyboardInterrupt:
                console.print(Text("stopped", style="dim"))
        if query is None:
            break


def _exchange(trial: Trial, line: str, so_far: Exchange | None, choice: Choice, console: Console) -> Exchange:
    """Ask what a line asks that was typed after other questions."""
    continues = line.startswith("+")
    text = line.removeprefix("+").strip()
    if continues and so_far is None:
        raise InputError("There is no conversation to continue yet. Ask a query without + first.")
    asked = so_far[0].followed_by(so_far[1], text) if continues and so_far else Conversation((), text)
    told = show(trial, as_asked(asked), choice, console)
    return asked, next(one.text for one in told.answers if one.policy == trial.policy)


def read_choice(line: str, known: Sequence[Principle]) -> Choice:
    """The constitution in a line that was typed: numbers and ids of principles, or a sentence.

    Raises:
        InputError: a single word that is not a principle, or a number beyond the list.
    """
    ids = {principle.id for principle in known} | {str(number) for number in range(1, len(known) + 1)}
    words = line.split()
    if len(words) > 1 and not all(word.removeprefix("-") in ids for word in words):
        return of_text(line)
    names: dict[bool, list[str]] = {True: [], False: []}
    for word in words:
        name = word.removeprefix("-")
        numbered = name.isdecimal() and 1 <= int(name) <= len(known)
        names[not word.startswith("-")].append(known[int(name) - 1].id if numbered else name)
    return of_principles(known, names[True], names[False])


def fit_table(told: Told) -> Table:
    """For each answer and scorer, the log-prob under the constitution minus that under its opposite."""
    shown = Table()
    scorers = [answer.policy for answer in told.answers]
    shown.add_column("answer of")
    for scorer in scorers:
        shown.add_column(f"scored by {scorer}", justify="right")
    for answer in told.answers:
        shown.add_row(answer.policy, *(_signed(answer.fit[scorer]) for scorer in scorers))
    return shown


def fit_sentence(told: Told) -> str:
    """Whose answer fits the constitution better, according to the model that was not trained."""
    base, trained = told.answers
    gain = trained.fit[BASE] - base.fit[BASE]
    if base.text == trained.text:
        return f"Both answers are the same. Its fit under the base model is {trained.fit[BASE]:+.3f} nats per token."
    better = "better" if gain > 0 else "no better"
    return (
        f"According to the frozen base model, the answer of {trained.policy} fits the constitution {better} than the "
        f"answer of base: {trained.fit[BASE]:+.3f} against {base.fit[BASE]:+.3f} nats per token."
    )


def _texts(told: Told) -> dict[str, str]:
    return {answer.policy: answer.text for answer in told.answers}


def _reasoning(told: Told) -> dict[str, str]:
    return {answer.policy: answer.reasoning for answer in told.answers}


def _signed(value: float) -> Text:
    return Text(f"{value:+.3f}", style="green" if value > 0 else "red")


def _asked(query: Asked, choice: Choice) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    grid.add_row("query", Text(visible(str(query))))
    grid.add_row("constitution", Text(visible(choice.constitution.text)))
    grid.add_row("opposite", Text(visible(choice.opposite.text) or "none: the bare query"))
    return grid


def _side_by_side(texts: dict[str, str], reasoning: Mapping[str, str] = MappingProxyType({})) -> RenderableType:
    grid = Table.grid(expand=True)
    for _ in texts:
        grid.add_column(ratio=1)
    styles = ["blue", "green"]
    panels = [
        Panel(_written(text, reasoning.get(name, "")), title=name, title_align="left", border_style=style)
        for (name, text), style in zip(texts.items(), styles, strict=True)
    ]
    grid.add_row(*panels)
    return grid


def _written(text: str, reasoning: str) -> Text:
    """An answer, below its reasoning if there is any."""
    answer = Text(visible(text))
    return Text.assemble((f"reasoning, not scored:\n{visible(reasoning)}\n\n", "dim"), answer) if reasoning else answer


def _principles(known: Sequence[Principle]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="cyan")
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_column(style="dim")
    for number, principle in enumerate(known, start=1):
        held_out = " (held out)" if principle.held_out else ""
        cells = (principle.id, f"{principle.definition}{held_out}", f"– {principle.antithesis}")
        table.add_row(str(number), *(Text(visible(cell)) for cell in cells))
    return table


def _line(ask: Ask, prompt: str) -> str | None:
    """One line without spaces around it; None at the end of the input."""
    try:
        return ask(prompt).strip()
    except (EOFError, KeyboardInterrupt):
        return None
