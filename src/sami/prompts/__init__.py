"""(constitution, query) to token ids, through the model's chat template or a plain template.

Two templates, as in the paper: the one to generate with may show a worked example and ask for reasoning, the one
to train with does neither. Prompts are ids from here on: nothing downstream joins text and tokenizes it again.

    templates        default templates and those of a recipe
    chat_template    what a tokenizer's chat template does with turns
    control          text that never becomes a control token
    builder          the prompts of a run
    check            refuses prompts that do not show what they should
"""

from sami.prompts.builder import PromptBuilder, question_prompt
from sami.prompts.templates import PLAIN_STOP, PLAIN_SYSTEM

__all__ = ["PLAIN_STOP", "PLAIN_SYSTEM", "PromptBuilder", "question_prompt"]
