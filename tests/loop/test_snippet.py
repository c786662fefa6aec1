"""The code in a model card ends answers where the chat template does, even if EOS is another token."""

from sami.loop import model_card
from sami.principles import load_principles
from sami.prompts import PromptBuilder
from sami.recipe import load_recipe
from tests.support import chat_templates as given
from tests.support.tiny import EOS


def test_the_code_of_a_card_names_both_ends():
    tokenizer = given.tokenizer_with(given.CHATML)
    recipe = load_recipe("quickstart")
    principles = load_principles(recipe.principles)
    code = model_card._snippet(principles, PromptBuilder(tokenizer, recipe.prompt), tokenizer, recipe, False)
    assert f"do_sample=False, eos_token_id=[{tokenizer.convert_tokens_to_ids('<|im_end|>')}, {EOS}])" in code
