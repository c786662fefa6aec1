"""What a run takes from its folder when it is continued."""

from datetime import date

import yaml

from sami.loop import context
from sami.loop.context import Run
from sami.recipe import load_recipe
from tests.support.recipes import write_recipe


class Later(date):
    @classmethod
    def today(cls) -> "Later":
        return cls(2031, 1, 2)


def test_chat_templates_show_the_day_on_which_a_run_began(tmp_path, model_folder, monkeypatch):
    recipe = load_recipe(write_recipe(tmp_path, model_folder("llama", True)))

    def shown(folder, **prompt):
        asked = recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update=prompt)})
        return Run.start(asked, tmp_path / folder).recipe.prompt.date

    with Run.start(recipe, tmp_path / "run").opened():
        pass  # writes the resolved recipe
    began = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["prompt"]["date"]
    monkeypatch.setattr(context, "date", Later)
    assert shown("run") == began == date.today().isoformat()
    assert shown("new") == "2031-01-02"
    assert shown("new", date="2020-02-29") == "2020-02-29"
    recorded = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())
    del recorded["prompt"]["date"]  # a run of an earlier version
    (tmp_path / "run/recipe.yaml").write_text(yaml.safe_dump(recorded))
    assert shown("run") is None
