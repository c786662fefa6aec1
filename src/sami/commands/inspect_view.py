"""An inspection in a terminal: tokens with their ids, a mark where prompts end, and colors for telling tokens.

It can be read without colors: each token is followed by its id in small digits.
"""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from sami.commands.inspect import Inspection, Response, Token
from sami.console import visible

_SMALL = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_SHADES = ("white on grey30", "white on grey42")
_FULL = 2.0  # difference in nats that is shown in the full color
_FAINT = 0.1  # share of the full color below which there is none
_MOST_WORDS = 6
_ENDS = {
    "stop": "ends by itself",
    "length": "cut off at the token limit",
    "unsplit": "reasoning and answer could not be separated",
}


def view(seen: Inspection) -> RenderableType:
    """The whole contrast, top to bottom."""
    return Group(*_parts(seen))


def letter(constitution: int) -> str:
    """A for the first constitution of a contrast, B for the second."""
    return chr(ord("A") + constitution)


def _parts(seen: Inspection) -> Iterator[RenderableType]:
    yield Text(f"contrast {visible(seen.id)} ({seen.place})", style="bold")
    yield _head(seen)
    for number, prompt in enumerate(seen.prompts):
        name = letter(number)
        yield Rule(f"prompt {name}: {len(prompt)} tokens, not trained", align="left", style="blue")
        yield _flow(prompt)
        if number < len(seen.responses):
            response = seen.responses[number]
            if response.reasoning:
                yield Rule(f"reasoning before response {name}: not trained, not scored", align="left", style="dim")
                yield Text(visible(response.reasoning), style="dim")
            yield Rule(f"▸ response {name}: {_trained(response)}", align="left", style="green")
            yield _told(response, seen.scorers) if seen.scorers else _flow([(t.id, t.text) for t in response.tokens])
            yield _table(response, seen)
            if seen.scorers:
                yield _words(response, seen.scorers)
        else:
            yield Text(f"▸ response {name} starts here", style="green")


def _head(seen: Inspection) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column()
    grid.add_row("query", "", Text(visible(seen.query)))
    for number, text in enumerate(seen.constitutions):
        names = " ".join(name if positive else f"-{name}" for name, positive in seen.principles[number])
        grid.add_row(letter(number), Text(names, style="cyan"), Text(visible(text)))
    return grid


def _trained(response: Response) -> str:
    trained = sum(token.trained for token in response.tokens)
    end = _ENDS[response.finish_reason]
    leaked = sum(token.leaked for token in response.tokens)
    masked = f", {leaked} leaked" if leaked else ""
    return f"{len(response.tokens)} tokens, {trained} trained{masked}, {end}"


def _flow(pairs: Sequence[tuple[int, str]]) -> Text:
    """Tokens in order, each with its id."""
    flow = Text()
    for at, (token, text) in enumerate(pairs):
        flow.append(_shown(text), style=_SHADES[at % 2])
        flow.append(str(token).translate(_SMALL), style="dim")
        if text.endswith("\n"):
            flow.append("\n")
    return flow


def _told(response: Response, scorers: Sequence[str]) -> Text:
    """The text of a response, green where a token points to its own constitution and red where to another."""
    flow = Text()
    for token in response.tokens:
        flow.append(visible(token.text), style=_heat(response.difference(token, scorers[-1])))
    return flow


def _heat(difference: float) -> str:
    strength = min(abs(difference) / _FULL, 1.0)
    if strength < _FAINT:
        return ""
    level = round(40 + 130 * strength)
    return f"white on rgb(0,{level},60)" if difference > 0 else f"white on rgb({level},0,40)"


def _table(response: Response, seen: Inspection) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("", justify="right", style="dim")
    table.add_column("id", justify="right")
    table.add_column("token")
    table.add_column("loss")
    for scorer in seen.scorers:
        for number in range(len(seen.constitutions)):
            table.add_column(f"{scorer}: {letter(number)}", justify="right", style="dim")
        rest = letter(1 - response.constitution) if len(seen.constitutions) == 2 else "others"
        table.add_column(f"{letter(response.constitution)} - {rest}", justify="right")
    for at, token in enumerate(response.tokens):
        cells: list[Text] = [Text(str(at)), Text(str(token.id)), Text(_shown(token.text)), _loss(token)]
        for scorer in seen.scorers:
            cells += [Text(f"{value:.2f}") for value in token.logprobs[scorer]]
            difference = response.difference(token, scorer)
            cells.append(Text(f"{difference:+.2f}", style=_heat(difference)))
        table.add_row(*cells)
    return table


def _loss(token: Token) -> Text:
    if not token.trained:
        return Text("masked", style="yellow")
    return Text("trained, leak" if token.leaked else "trained", style="yellow" if token.leaked else "")


def _words(response: Response, scorers: Sequence[str]) -> Text:
    """The most telling words, according to each scorer."""
    lines = []
    for scorer in scorers:
        ordered = sorted(response.words, key=lambda word, by=scorer: -word.difference[by])  # type: ignore[misc]
        told = [w for w in ordered[:_MOST_WORDS] if w.difference[scorer] > 0]
        listed = ", ".join(f"{visible(word.text)} {word.difference[scorer]:+.2f}" for word in told)
        lines.append(f"words that point to {letter(response.constitution)} by {scorer} (nats): {listed or 'none'}")
    return Text("\n".join(lines))


def _shown(text: str) -> str:
    return visible(text.replace("\n", "↵"))
