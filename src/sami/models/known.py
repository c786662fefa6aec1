"""What is known of models without their files: the shapes of some by name, and the family of more.

`sami plan` counts with a shape where no hub is reachable; `--smoke` builds a tiny model of a family. A shape is the
model's published configuration, so a plan from it counts the same weights as one from the hub.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from sami.errors import InputError, one_line
from sami.models.sources import is_gguf_file, resolve_source
from sami.recipe import Model

TokenizerKind = Literal["sentencepiece", "byte-level"]

_MISTRAL_7B = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": False,
}
_LLAMA3_70B = {
    "vocab_size": 128_256,
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
_MIXTRAL_8X7B = {**_MISTRAL_7B, "num_local_experts": 8, "num_experts_per_tok": 2}

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistralai/Mistral-7B-v0.1": ("mistral", {**_MISTRAL_7B, "sliding_window": 4096}),
    "mistralai/Mistral-7B-Instruct-v0.1": ("mistral", {**_MISTRAL_7B, "sliding_window": 4096}),
    "mistralai/Mixtral-8x7B-v0.1": ("mixtral", _MIXTRAL_8X7B),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": ("mixtral", _MIXTRAL_8X7B),
    "meta-llama/Meta-Llama-3-70B": ("llama", _LLAMA3_70B),
    "meta-llama/Meta-Llama-3-70B-Instruct": ("llama", _LLAMA3_70B),
}
"""Model type and configuration by hub id."""


@dataclass(frozen=True)
class Family:
    """What a model and its tokenizer are made of."""

    model_type: str
    """As transformers calls the architecture."""
    tokenizer: TokenizerKind
    """sentencepiece: words behind "▁", unknown characters as bytes; byte-level: bytes throughout."""
    begins: bool
    """Whether the tokenizer puts a beginning-of-sequence token before a text."""
    chat: bool
    """Whether the tokenizer has a chat template."""


# Parts of a model's name, the most telling first.
_NAMES: tuple[tuple[str, str, TokenizerKind, bool], ...] = (
    ("mixtral", "mixtral", "sentencepiece", True),
    ("mistral", "mistral", "sentencepiece", True),
    ("llama-2", "llama", "sentencepiece", True),
    ("llama", "llama", "byte-level", True),
    ("smollm2", "llama", "byte-level", False),
    ("gemma-3", "gemma3_text", "sentencepiece", True),
    ("gemma-2", "gemma2", "sentencepiece", True),
    ("gemma", "gemma", "sentencepiece", True),
    ("qwen3", "qwen3", "byte-level", False),
    ("qwen2", "qwen2", "byte-level", False),
)
_CHATS = ("instruct", "chat", "-it")


def known_config(model: Model) -> PreTrainedConfig | None:
    """The configuration of a model whose shape is known by its name; None for others."""
    if model.source not in SHAPES:
        return None
    model_type, shape = SHAPES[model.source]
    return AutoConfig.for_model(model_type, **shape)


def family_of(model: Model) -> Family:
    """The family of a model: of a local folder by its files, of others by a part of their name.

    Raises:
        InputError: a name that tells no family, or a folder whose configuration or tokenizer cannot be read.
    """
    folder = Path(resolve_source(model) if is_gguf_file(model) else model.source).expanduser()
    if folder.is_dir():
        return _family_of_folder(folder)
    name = model.source.lower()
    for part, model_type, tokenizer, begins in _NAMES:
        if part in name:
            return Family(model_type, tokenizer, begins, chat=any(word in name for word in _CHATS))
    parts = ", ".join(part for part, *_ in _NAMES)
    raise InputError(
        f"The name of the model {model.source} does not tell its architecture, which a smoke run needs without a "
        f"hub. Known parts of a name: {parts}. Give the path of a local folder with its config.json and tokenizer."
    )


def _family_of_folder(folder: Path) -> Family:
    try:
        config = AutoConfig.from_pretrained(folder).get_text_config()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        parts = tokenizer.backend_tokenizer.to_str()
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = one_line(error)[:200]
        raise InputError(
            f"The architecture of the model in {folder} cannot be told: {reason}. A smoke run needs the folder's "
            f"config.json and tokenizer.json."
        ) from None
    return Family(
        model_type=config.model_type,
        tokenizer="sentencepiece" if '"ByteFallback"' in parts else "byte-level",
        begins=tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id,
        chat=tokenizer.chat_template is not None,
    )
