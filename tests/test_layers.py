"""The direction of imports: a module imports only what stands to its left here."""

import ast

import pytest

from tests.support.places import SOURCE

ORDER = [
    *("errors", "files", "console", "processes", "wording", "text", "principles", "schemes", "recipe", "objective"),
    *("queries", "chat_client", "models", "prompts", "contrasts", "contrast_plan", "filters", "reference_format"),
    *("generation", "principle_writing", "scoring", "training", "evaluation", "prepared", "costs", "loop", "pipeline"),
    *("report", "commands", "__init__", "cli"),
]
MODULES = [path for path in SOURCE.rglob("*.py") if path.name != "vllm_worker.py"]  # runs under another Python


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_imports_only_from_its_left(path):
    own = ORDER.index(path.relative_to(SOURCE).parts[0].removesuffix(".py"))
    imports = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.module]
    ours = [node for node in imports if node.module.split(".")[0] == "sami"]
    rooms = [node.module.split(".")[1:2] or [name.name for name in node.names] for node in ours]
    assert [name for room in rooms for name in room if ORDER.index(name) > own] == []
