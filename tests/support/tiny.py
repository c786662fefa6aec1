"""Tiny random models, a byte-level tokenizer trained on the spot, and random contrasts: no download."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from sami.contrasts import Contrast

CORPUS = [
    "Why is the sky blue? The sky is blue because air scatters blue light more than red light.",
    "Answers should be short. Answers should be long and detailed, with an example for every claim.",
    "Human: How do I boil an egg?\n\nAssistant: Put it in boiling water for seven minutes.",
    "Follow these principles in your answer:\n1. Be brief.\n2. Talk like a pirate.",
    "Constitution: naïve élan, été, 日本語.",
] * 4

CHAT_TEMPLATE = """\
{% for message in messages %}<|{{ message['role'] }}|>
{{ message['content'] }}<eos>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""

BOS, EOS, PAD = 0, 1, 2
VOCABULARY = 320
WINDOW = 8  # positions: shorter than a prompt with a response, so that a wrong window shows


def tiny_tokenizer(chat: bool = True, *, adds_bos: bool = False, appends_eos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 320 tokens: ids 0 <bos>, 1 <eos>, 2 <pad>, then the markers of the chat template."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    markers = [AddedToken(name, special=True) for name in ("<|user|>", "<|assistant|>", "<|system|>")]
    inner.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=["<bos>", "<eos>", "<pad>", *(str(marker.content) for marker in markers)],
            show_progress=False,
        ),
    )
    if adds_bos or appends_eos:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{'<bos> ' if adds_bos else ''}$A{' <eos>' if appends_eos else ''}",
            special_tokens=[("<bos>", BOS), ("<eos>", EOS)],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", model_max_length=1024
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


# A large initial spread makes attention matter: with the usual 0.02 a wrong mask would hardly move a log-prob.
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
_MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
_GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "tie_word_embeddings": True}

ARCHITECTURES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_SIZES),
    "mistral": lambda: MistralConfig(**_SIZES, sliding_window=WINDOW),
    "mixtral": lambda: MixtralConfig(**_SIZES, sliding_window=WINDOW, num_local_experts=4, num_experts_per_tok=2),
    "qwen2": lambda: Qwen2Config(**_SIZES),
    "qwen3": lambda: Qwen3Config(**_SIZES, **_MIXED, use_sliding_window=True, head_dim=8),
    "gemma2": lambda: Gemma2Config(**{**_SIZES, **_MIXED, **_GEMMA}, attn_implementation="eager"),
    "gemma3": lambda: Gemma3TextConfig(**{**_SIZES, **_MIXED, **_GEMMA}),
    "gpt2": lambda: GPT2Config(
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=1024,
        initializer_range=0.2,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    ),
    "cohere2": lambda: Cohere2Config(**{**_SIZES, **_MIXED}, logit_scale=0.5),
    "granite": lambda: GraniteConfig(**_SIZES, logits_scaling=2.0, attention_multiplier=0.5, residual_multiplier=0.7),
}


def tiny_model(architecture: str = "llama", vocab_size: int = VOCABULARY, seed: int = 0) -> PreTrainedModel:
    """Two layers of width 32 with random weights in fp32, in evaluation mode."""
    config = ARCHITECTURES[architecture]()
    config.vocab_size = vocab_size
    # Drawing the weights must not move the random state of the caller.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def save_tiny(folder: Path, architecture: str = "llama", chat: bool = True) -> Path:
    """Write a model folder as the hub has it: config, safetensors, tokenizer."""
    tiny_model(architecture).save_pretrained(folder)
    tiny_tokenizer(chat).save_pretrained(folder)
    return folder


def random_contrast(
    seed: int = 0,
    constitutions: int = 2,
    *,
    prompt_tokens: tuple[int, int] = (3, 14),
    response_tokens: tuple[int, int] = (1, 10),
    vocab_size: int = VOCABULARY,
) -> Contrast:
    """A contrast of random ids and ragged lengths; every other response ends with EOS."""
    rng = random.Random(seed)

    def ids(least: int, most: int) -> list[int]:
        return [rng.randrange(10, vocab_size) for _ in range(rng.randint(least, most))]

    responses = [ids(*response_tokens) for _ in range(constitutions)]
    finished = [i % 2 == 0 for i in range(constitutions)]
    return Contrast(
        id=f"contrast-{seed}",
        query=f"Query {seed}?",
        constitutions=[f"Constitution {i}" for i in range(constitutions)],
        prompt_ids=[ids(*prompt_tokens) for _ in range(constitutions)],
        response_ids=[[*r[:-1], EOS] if done else r for r, done in zip(responses, finished, strict=True)],
        responses=[f"Response {i} to query {seed}." for i in range(constitutions)],
        finish_reasons=["stop" if done else "length" for done in finished],
        principles=[[("brief", i % 2 == 0)] for i in range(constitutions)],
    )
