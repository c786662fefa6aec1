"""The notebook runs from top to bottom, and its stored output has results and no paths of a machine."""

import json
import re
from importlib.util import find_spec

import pytest

from tests.support.places import DOCS

NOTEBOOK = DOCS / "method.ipynb"


def test_the_stored_output_has_results_and_no_paths_of_a_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert not re.search(r"/(?:tmp|home|root|work|Users)/", text)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("nbclient") is None, reason="nbclient is not installed: pip install 'sami[notebook]'")
def test_the_notebook_runs(tmp_path, model_folder, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("SAMI_NOTEBOOK_MODEL", str(model_folder("llama", True)))
    monkeypatch.setenv("SAMI_NOTEBOOK_RATE", "3e-3")  # a lower rate would be lost to rounding on random weights
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output
    )
    assert "step 6: loss" in printed
    assert "bound" in printed
