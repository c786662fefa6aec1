"""Where a response ends: one rule for the ids of every engine."""

from collections.abc import Collection

from transformers import GenerationConfig, PreTrainedTokenizerBase

from sami.contrasts import FinishReason
from sami.generation import Completion, SamplingSettings
from sami.prompts.chat_template import end_of_turn


def end_tokens(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids that end a response: the tokenizer's EOS, those of the model, and the chat template's end of turn.

    The last matters for finetuned base models: ChatML ends turns with `<|im_end|>` where EOS is `<|endoftext|>`.
    """
    ids = config.eos_token_id
    found = {tokenizer.eos_token_id, *(ids if isinstance(ids, list) else [] if ids is None else [ids])}
    turn = end_of_turn(tokenizer).token_id
    return found if turn is None else found | {turn}


def completion(
    row: list[int], settings: SamplingSettings, end_ids: Collection[int], tokenizer: PreTrainedTokenizerBase
) -> Completion:
    """Cut generated ids at the first end token or stop string; whatever follows it is padding."""
    finish: FinishReason = "length"
    ids, closing = row, tokenizer.eos_token_id if settings.end_id is None else settings.end_id
    end = next((at for at, token in enumerate(row) if token in end_ids), None)
    # A stop string may be the text of a special token, so the search includes those.
    text = _text(row[:end], tokenizer, skip_special_tokens=False)
    found = [at for string in settings.stop if (at := text.find(string)) >= 0]
    if end is not None:
        ids, finish = row[:end], "stop"
        closing = closing if found else row[end]
    if found:
        finish = "stop"
        while len(_text(ids, tokenizer, skip_special_tokens=False)) > min(found):
            ids = ids[:-1]
    kept = [*ids, closing] if finish == "stop" else ids
    return Completion(token_ids=kept, text=_text(ids, tokenizer, skip_special_tokens=True), finish_reason=finish)


def _text(ids: list[int], tokenizer: PreTrainedTokenizerBase, *, skip_special_tokens: bool) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False))
