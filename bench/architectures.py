"""Which architectures of transformers SAMI scores and generates with, on tiny random models.

    python -m bench.architectures                  # all of them, as the table of docs/models.md
    python -m bench.architectures llama opt        # some
    python -m bench.architectures --json

A model of each architecture is saved, loaded as a run loads it, and compared with what transformers computes for
single sequences: log-probs of contrasts, greedy decoding of prompts of several lengths in one batch, and the weights
after it is saved again.
"""

import argparse
import json
import random
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from sami.contrasts import Contrast, collate
from sami.errors import InputError
from sami.generation import SamplingSettings
from sami.generation.transformers_engine import TransformersEngine
from sami.models.loading import load_model
from sami.models.saving import require_savable, save_model
from sami.models.structure import has_separate_head
from sami.recipe import Model
from sami.scoring.logprobs import token_logprobs
from sami.scoring.packing_check import check_packing, plain_logprobs

VOCABULARY, BOS, EOS, PAD = 320, 0, 1, 2
EXACT = 1e-4
"""Nats by which a token's log-prob may differ in fp32: rounding gives about 1e-5, a wrong mask 1e-2 and more."""

# Every configuration gets those of these that it knows. The spread of the weights is large, so that attention matters:
# with the usual 0.02 a wrong mask would hardly move a log-prob.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "initializer_range": 0.2,
    "init_std": 0.2,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "sliding_window": 8,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}


HEADER = """\
| architecture | class | rows | logits | largest difference, nats | greedy decoding |
|---|---|---|---|---|---|"""

REFUSED = ("bert", "cpmant", "electra", "xlnet")
"""Encoders and prefix models, whose tokens attend to later ones."""

ARCHITECTURES = (
    *("afmoe", "apertus", "arcee", "aria_text", "bamba", "bart", "biogpt", "bitnet", "bloom", "codegen", "cohere"),
    *("cohere2", "cohere2_moe", "ctrl", "cwm", "deepseek_v2", "deepseek_v3", "deepseek_v4", "diffllama", "doge"),
    *("ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "falcon", "falcon_h1", "falcon_mamba", "flex_olmo"),
    *("fuyu", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma4", "gemma4_unified_text", "git", "glm", "glm4"),
    *("glm4_moe", "glm4_moe_lite", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_neox_japanese", "gpt_oss"),
    *("gptj", "granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared"),
    *("helium", "hrm_text", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hyperclovax", "inkling_text", "jais2"),
    *("jamba", "jetmoe", "laguna", "lfm2", "llama", "llama4", "llama4_text", "mamba", "mamba2", "marian", "mbart"),
    *("mellum", "mimo_v2_flash", "minicpm3", "minimax", "minimax_m2", "minimax_m3_vl_text", "ministral"),
    *("ministral3", "mistral", "mixtral", "modernbert-decoder", "moshi", "mpt", "nanochat", "nemotron", "nemotron_h"),
    *("olmo", "olmo2", "olmo3", "olmo_hybrid", "olmoe", "openai-gpt", "opt", "persimmon", "phi", "phi3"),
    *("phi4_multimodal", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_5", "qwen3_5_text", "qwen3_moe"),
    *("qwen3_next", "recurrent_gemma", "roberta", "rwkv", "seed_oss", "smollm3", "solar_open", "stablelm"),
    *("starcoder2", "trocr", "vaultgemma", "xglm", "youtu"),
    *REFUSED,
)
"""Model types of transformers; multimodal ones by the part that reads and writes text."""


@dataclass(frozen=True)
class Result:
    """What was found for one architecture; `refused` is the reason if it cannot be used."""

    architecture: str
    model: str
    rows: str = ""
    head: str = ""
    scores: float | None = None
    """Largest difference of a token's log-prob, in nats."""
    greedy: bool | None = None
    reloaded: bool | None = None
    """Whether it has the same weights after it was saved and loaded again."""
    refused: str | None = None

    @property
    def exact(self) -> bool:
        return self.scores is not None and self.scores <= EXACT and bool(self.greedy) and bool(self.reloaded)

    def row(self) -> str:
        """A line of the table, in Markdown."""
        if self.refused is not None:
            return f"| `{self.architecture}` | {self.model} | refused: {self.refused} | | | |"
        scores, greedy = f"{self.scores:.0e}", "same" if self.greedy and self.reloaded else "**differs**"
        return f"| `{self.architecture}` | {self.model} | {self.rows} | {self.head} | {scores} | {greedy} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Which architectures of transformers work, on tiny random models.")
    parser.add_argument("architectures", nargs="*", help="model types of transformers; all in the list by default")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each")
    chosen = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if not chosen.json:
        print(f"With transformers {transformers.__version__}:\n\n{HEADER}")
    for architecture in chosen.architectures or ARCHITECTURES:
        result = check(architecture)
        print(json.dumps(asdict(result)) if chosen.json else result.row(), flush=True)


def check(architecture: str) -> Result:
    """Score, generate with, save and reload a tiny model of an architecture."""
    config = configuration(architecture)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        torch.manual_seed(0)
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        name = type(plain).__name__
        plain.save_pretrained(folder)
        tokenizer = byte_tokenizer()
        tokenizer.save_pretrained(folder)
        source = Model(source=str(folder), dtype="float32")
        try:
            require_savable(source, tokenizer)
            model = load_model(source, torch.float32)
            contrast = random_contrast(0)
            packing = check_packing(model, contrast, PAD)
        except InputError as error:
            return Result(architecture, name, refused=str(error))
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        worst = max(_score_gap(model, plain, random_contrast(seed), packing.shared) for seed in range(3))
        greedy = _decodes_alike(model, plain, tokenizer)
        save_model(model, tokenizer, Path(place) / "saved", torch.float32)
        again = load_model(Model(source=str(Path(place) / "saved")), torch.float32)
        reloaded = all(torch.equal(weight, again.state_dict()[key]) for key, weight in model.state_dict().items())
        rows = "shared" if packing.shared else "one response each"
        head = "separate" if has_separate_head(model) else "whole model"
        return Result(architecture, name, rows, head, worst, greedy, reloaded)


@torch.no_grad()
def _score_gap(model: Any, plain: Any, contrast: Contrast, shared: bool) -> float:
    expected = plain_logprobs(plain, contrast)
    return float((token_logprobs(model, collate([contrast], PAD, shared))[0] - expected).abs().max())


def _decodes_alike(model: Any, plain: Any, tokenizer: PreTrainedTokenizerFast) -> bool:
    prompts = [random_contrast(seed).prompt_ids[0] for seed in range(4)]
    ours = TransformersEngine(model, tokenizer).generate(prompts, SamplingSettings(max_new_tokens=8))
    plain.generation_config = GenerationConfig(max_new_tokens=8, eos_token_id=EOS, pad_token_id=PAD, bos_token_id=BOS)
    alone = [plain.generate(torch.tensor([prompt]))[0, len(prompt) :].tolist() for prompt in prompts]
    return [answer.token_ids for answer in ours] == alone


def random_contrast(seed: int) -> Contrast:
    """Ragged ids, beyond the sliding window of 8."""
    rng = random.Random(seed)
    prompts, responses = (
        [[rng.randrange(10, VOCABULARY) for _ in range(n)] for n in lengths]
        for lengths in ((rng.randint(3, 14), rng.randint(3, 14)), (rng.randint(3, 10), rng.randint(3, 10)))
    )
    return Contrast(f"contrast-{seed}", "", ["", ""], prompts, responses, ["", ""], ["length"] * 2, [[], []])


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Three special tokens and one for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({token: i for i, token in enumerate(["<bos>", "<eos>", "<pad>", *alphabet])}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


def configuration(architecture: str) -> PreTrainedConfig:
    """A tiny configuration: two layers of width 32. Of a multimodal model the other parts are tiny as well."""
    kind = type(AutoConfig.for_model(architecture))
    values = _known(kind) | OVERRIDES.get(architecture, {})
    for part, inner in kind.sub_configs.items():
        if hasattr(inner, "attribute_map") and part.endswith("_config") and part not in values:
            values[part] = _known(inner) | OVERRIDES.get(inner.model_type, {})
    return kind(**values)


def _known(kind: type[PreTrainedConfig]) -> dict[str, Any]:
    names = {kind.attribute_map.get(name, name): value for name, value in _SIZES.items()}
    return {name: value for name, value in names.items() if name in kind.__dataclass_fields__}


_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "shared_expert_intermediate_size": 32,
}
_DECODER = {"encoder_layers": 2, "decoder_layers": 2, "decoder_ffn_dim": 64, "decoder_attention_heads": 4}
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": _MAMBA2 | {"attn_layer_indices": [1]},
    "bart": _DECODER,
    "codegen": {"rotary_dim": 4},
    "deepseek_v2": _LATENT | {"n_group": 2, "topk_group": 1},
    "deepseek_v3": _LATENT | {"n_group": 2, "topk_group": 1},
    "falcon_h1": _MAMBA2 | {"mamba_d_ssm": 64},
    "glm4_moe_lite": _LATENT,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": _MAMBA2 | {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "marian": _DECODER,
    "mbart": _DECODER,
    "minicpm3": _LATENT,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "qwen3_5_moe_text": _DELTA,
    "qwen3_5_text": _DELTA,
    "qwen3_next": _DELTA,
    "roberta": {"is_decoder": True},
    "youtu": _LATENT,
}
"""What an architecture needs beside the sizes."""


if __name__ == "__main__":
    main()
