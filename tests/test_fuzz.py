"""Recipes, principles, queries and verdicts of every kind of damage: each is read or refused in a sentence, at once."""

import json
import random
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from sami.errors import InputError
from sami.evaluation.verdicts import read_verdicts
from sami.evaluation.win_rate import agreement, win_rates
from sami.principles import load_principles
from sami.queries import load_queries
from sami.recipe import PACKAGED_RECIPES, load_evaluation, load_recipe, load_writing

INPUTS = 2500  # of each of the four kinds
CPU_SECONDS = 5.0
LONGEST_MESSAGE = 6000  # twenty problems of a recipe, a few hundred characters each

BOMB = "&a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(8)
)
# Text that is put anywhere into a file.
PIECES = [
    *(
        '"',
        "'",
        "[",
        "]",
        "{",
        "}",
        ":",
        ": ",
        ",",
        "- ",
        "#",
        " #",
        "&a ",
        "*a",
        "!!int ",
        "!!python/name:os.system ",
        "<<",
    ),
    *(
        "\0",
        "\\u0000",
        "\\ud800",
        "\u202e",
        "\u2028",
        "\x1b[2J",
        "\ufeff",
        "[/INST]",
        "[/red]",
        "\r",
        "\t",
        "\n",
        "\n\n",
    ),
    *("9" * 5000, "[" * 5000, "{" * 5000, "- " * 3000, "-" * 5000, "{a: " * 500, "x" * 100_000, "𝟙", "½", "²", "٣"),
    *("1e999", "-1e999", ".inf", ".nan", "NaN", "Infinity", "0x" + "f" * 3000, "1:" * 2000 + "1", "2020-13-45", "0o9"),
]
# Values that take another's place.
VALUES = [
    *(
        None,
        True,
        False,
        "",
        " ",
        "x",
        0,
        1,
        -1,
        2,
        17,
        2**32 - 1,
        2**32,
        2**63,
        10**40,
        10**4000,
        0.5,
        -0.0,
        1e-320,
        1e308,
    ),
    *(float("inf"), float("nan"), [], {}, [[]], [1], ["a", "a"], [None], {"": ""}, {"kind": "x"}, {"kind": ["local"]}),
    *(
        "\0",
        "\ud800",
        "\u202e",
        "a" * 5000,
        "../" * 2000,
        "/dev/zero",
        "/dev/stdin",
        "~nobody",
        "{{",
        "{% for %}",
        "..",
        ".",
    ),
    *(
        "[/red]",
        "\x1b[2J",
        "9" * 5000,
        "1" * 400,
        "½",
        "²",
        "pypi:x",
        "pypi:==/",
        "http://[",
        "https://a:b@c",
        "(" * 200,
    ),
    *([1] * 5000, {f"k{n}": n for n in range(2000)}, ["x" * 1000] * 50, {"model": {"model": {"model": "x"}}}),
]
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
EVERYDAY = PACKAGED_RECIPES / "principles" / "everyday.yaml"
VERDICT = {
    **{"query_id": "q0", "candidate": "a", "baseline": "b", "judge": "j", "order": "candidate_first", "score": 1},
    **{"candidate_chars": 5, "baseline_chars": 9, "candidate_tokens": 2, "baseline_tokens": 3, "raw": "A", "cost": 0.0},
    **{"principles": [["brief", True]], "learned": True, "constitution_id": "c", "key": "k"},
}


def nested(depth: int) -> Any:
    value = "x"
    for _ in range(depth):
        value = [value]
    return value


def place(value: Any, rng: random.Random) -> tuple[Any, Any]:
    """A random container inside a value, and a key or index in it."""
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    inner = value[key]
    return place(inner, rng) if isinstance(inner, dict | list) and inner and rng.random() < 0.8 else (value, key)


def changed(value: Any, rng: random.Random) -> Any:
    """A copy with some values replaced, keys renamed, and entries added, doubled or removed."""
    copy = json.loads(json.dumps(value))
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        if not copy:
            break
        container, key = place(copy, rng)
        match rng.randrange(6):
            case 0:
                del container[key]
            case 1 if isinstance(container, dict):
                container[rng.choice(["", "x", "kind", "id", "\ud800", "a" * 3000, "0", str(key) + "s"])] = (
                    container.pop(key)
                )
            case 1 | 2 if isinstance(container, list):
                container.append(container[key])
            case 3:
                container[key] = nested(rng.choice((3, 99, 150)))
            case _:
                container[key] = rng.choice(VALUES)
    return copy


def damaged(text: str, rng: random.Random) -> bytes:
    """The bytes of a text with pieces put in, cut out, doubled and replaced."""
    for _ in range(rng.choice((0, 0, 1, 2, 4))):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.choice((0, 0, 1, 5, 50, 5000)))
        middle = rng.choice(("", rng.choice(PIECES), text[start:end] * 2, chr(rng.randrange(0xD7FF))))
        text = text[:start] + middle + text[end:]
    content = text.encode("utf-8", "surrogatepass")
    if content and rng.random() < 0.1:
        at = rng.randrange(len(content))
        content = content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
    return content


def as_yaml(value: Any, rng: random.Random) -> str:
    if rng.random() < 0.02:
        return f"a: {BOMB}" + yaml.safe_dump({"principles": "x"})
    try:
        return yaml.dump(value, Dumper=_DUMPER, allow_unicode=rng.random() < 0.5, sort_keys=False)
    except ValueError:  # an integer that Python does not print
        return "steps: " + "9" * 5000


def as_lines(values: list[Any], rng: random.Random) -> str:
    lines = []
    for value in values:
        try:
            lines.append(json.dumps(value, ensure_ascii=rng.random() < 0.5))
        except (ValueError, RecursionError):
            lines.append("9" * 5000)
    return rng.choice(("\n", "\n", "\r\n", "\n\n")).join(lines)


def a_recipe(file: Path, rng: random.Random) -> None:
    sources = sorted(PACKAGED_RECIPES.rglob("*.yaml"))
    recipe = yaml.safe_load(rng.choice([s for s in sources if s.parent.name != "principles"]).read_text())
    file.write_bytes(damaged(as_yaml(changed(recipe, rng), rng), rng))
    keys = [
        "training.steps",
        "model",
        "evaluation.judges",
        "principles",
        "x",
        "training.lr.0",
        "",
        "generation.vllm.memory",
    ]
    overrides = [
        damaged(f"{rng.choice(keys)}={as_yaml(rng.choice(VALUES), rng)}", rng).decode("utf-8", "surrogateescape")
        for _ in range(rng.choice((0, 0, 1, 3)))
    ]
    match rng.randrange(10):
        case 0:
            load_evaluation(overrides)
        case 1:
            load_writing(changed({"task": "x", "names": ["a", "b"], "writer": {"kind": "local"}, "seed": 1}, rng))
        case _:
            load_recipe(file, overrides)


def principles(file: Path, rng: random.Random) -> None:
    value = yaml.safe_load(EVERYDAY.read_text())
    file.write_bytes(damaged(as_yaml(changed(value, rng), rng), rng))
    for principle in load_principles(file):
        principle.follows("An answer. 1. One\n2. Two", True)


def queries(file: Path, rng: random.Random) -> None:
    rows = [
        changed({"query": f"Why {n}?", "id": n, "messages": [{"role": "user", "content": "x"}]}, rng) for n in range(9)
    ]
    text = as_lines(rows, rng)
    if rng.random() < 0.4:
        file = file.with_suffix(rng.choice((".csv", ".tsv", ".txt")))
        text = "query,id\n" + "\n".join(f'"Why {n}?",{n}' for n in range(9))
    else:
        file = file.with_suffix(".jsonl")
    file.write_bytes(damaged(text, rng))
    load_queries(str(file), format=rng.choice(("text", "text", "hh", "tldr")))


def verdicts(file: Path, rng: random.Random) -> None:
    rows = [changed({**VERDICT, "query_id": f"q{n}", "score": n % 2}, rng) for n in range(rng.randrange(1, 9))]
    file.with_suffix(".jsonl").write_bytes(damaged(as_lines(rows, rng), rng))
    read = read_verdicts(file.with_suffix(".jsonl"))
    win_rates(read)
    agreement(read)


@contextmanager
def at_once() -> Iterator[None]:
    """Fail after seconds of this process's own time, however busy the machine is."""

    def late(*_: Any) -> NoReturn:
        raise TimeoutError(f"more than {CPU_SECONDS:g} s of CPU time")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def fault(read: Callable[[Path, random.Random], None], file: Path, seed: int) -> str | None:
    """Where an input ends in anything but a value or a refusal of ordinary length; None where it does not."""
    try:
        with at_once():
            read(file, random.Random(seed))
    except InputError as error:
        return None if len(str(error)) < LONGEST_MESSAGE else f"a message of {len(str(error))} characters"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}: {str(error)[:200]}"
    return None


@pytest.mark.slow
@pytest.mark.parametrize("read", [a_recipe, principles, queries, verdicts], ids=lambda read: read.__name__)
def test_damaged_input_is_read_or_refused_at_once(read, tmp_path):
    faults = {}
    for seed in range(INPUTS):
        if (found := fault(read, tmp_path / "input.yaml", seed)) is not None:
            faults.setdefault(found, seed)
    assert not faults, "\n".join(f"seed {seed}: {found}" for found, seed in faults.items())
