"""Principles files that a model wrote: the principles, for a person to edit, and how they were written."""

from pathlib import Path

import yaml

from sami.console import say
from sami.errors import InputError
from sami.files import replacing, require_creatable
from sami.principle_writing.questions import NAMES, OPENINGS, PROMPTS, Ask, write_principles
from sami.principle_writing.writers import make_ask
from sami.principles import Principle, load_principles
from sami.recipe import WrittenPrinciples
from sami.recipe.writing import identifier, parted

HEADER = """\
# Principles that a model wrote. Read and edit them before you train on them: only their words were checked, not their
# meaning. `sami probe` measures which of them a model follows. `written` is a record that nothing reads.
"""


def write_file(settings: WrittenPrinciples, target: Path, ask: Ask | None = None) -> list[Principle]:
    """Have principles written into a new file, which is complete or absent.

    Args:
        ask: replaces the writer that the settings describe.

    Raises:
        InputError: the file exists or cannot be created, or the writer writes nothing usable.
    """
    if target.exists():
        raise InputError(
            f"The file {target} exists and may contain principles that someone edited. Give another file, or remove it."
        )
    require_creatable(target)
    text = written(settings, ask)
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
        return load_principles(temporary)


def written(settings: WrittenPrinciples, ask: Ask | None = None) -> str:
    """The text of such a file. Arguments and errors as in `write_file`."""
    count = settings.count or NAMES
    principles = write_principles(
        ask or make_ask(settings.writer), settings.task, settings.names, settings.seed, count=count
    )
    say(f"{len(principles)} principles written by {settings.writer.label}")
    content = {
        "written": {
            "task": settings.task,
            **({} if settings.names is None else {"names": settings.names}),
            "writer": settings.writer.model_dump(exclude_none=True),
            "seed": settings.seed,
            "prompts": PROMPTS if settings.names is None else {k: v for k, v in PROMPTS.items() if k != "names"},
            "openings": OPENINGS if settings.names is None else {k: v for k, v in OPENINGS.items() if k != "names"},
        },
        "principles": [{"id": p.id, "definition": p.definition, "antithesis": p.antithesis} for p in principles],
    }
    return HEADER + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def require_written(principles: str | WrittenPrinciples) -> None:
    """Refuse a recipe whose principles a model has yet to write.

    Raises:
        InputError: it is one.
    """
    if isinstance(principles, WrittenPrinciples):
        raise InputError(
            "The recipe has a model write its principles, so there are none to look at yet. Write them with "
            "`sami write-principles … --output FILE`, and give the recipe with principles=FILE."
        )


def placeholders(settings: WrittenPrinciples) -> list[Principle]:
    """Placeholders in the right number, for what is planned before the writer is asked."""
    names = [parted(name)[0] for name in settings.names or ()] or [
        f"principle-{number}" for number in range(1, (settings.count or NAMES) + 1)
    ]
    return [
        Principle(
            id=identifier(name),
            definition=f"Responses should be {name} from the first word to the last, and in every respect.",
            antithesis=f"Responses should be the opposite of {name} from the first word to the last.",
        )
        for name in names
    ]
