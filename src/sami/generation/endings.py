"""Where a response ends: one rule for the ids of every engine."""

from collections.abc import Collection, Sequence

from transformers import GenerationConfig, PreTrainedTokenizerBase

from sami.contrasts import FinishReason
from sami.generation import Completion


def end_tokens(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids that end a response: the tokenizer's EOS, and the model's own where it names more."""
    ids = config.eos_token_id
    return {tokenizer.eos_token_id, *(ids if isinstance(ids, list) else [ids] if ids is not None else [])}


def completion(
    row: list[int], stop: Sequence[str], eos_ids: Collection[int], tokenizer: PreTrainedTokenizerBase
) -> Completion:
    """Cut generated ids at the first end token or stop string; what stands after it is padding."""
    finish: FinishReason = "length"
    end = next((at for at, token in enumerate(row) if token in eos_ids), None)
    ids, eos = row, tokenizer.eos_token_id
    if end is not None:
        ids, eos, finish = row[:end], row[end], "stop"
    # A stop string may be a special token's, so those count in the search.
    text = _text(ids, tokenizer, skip_special_tokens=False)
    found = [at for string in stop if (at := text.find(string)) >= 0]
    if found:
        eos, finish = tokenizer.eos_token_id, "stop"
        while len(_text(ids, tokenizer, skip_special_tokens=False)) > min(found):
            ids = ids[:-1]
    kept = [*ids, eos] if finish == "stop" else ids
    return Completion(token_ids=kept, text=_text(ids, tokenizer, skip_special_tokens=True), finish_reason=finish)


def _text(ids: list[int], tokenizer: PreTrainedTokenizerBase, *, skip_special_tokens: bool) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False))
