"""Tiny GGUF files, whole and in parts, as llama.cpp writes them."""

import json
from pathlib import Path

import gguf
import numpy as np
from transformers import PreTrainedModel

from tests.support.tiny import EOS, PAD, tiny_tokenizer

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(file: Path, model: PreTrainedModel, parts: int = 1) -> list[Path]:
    """A llama model in fp32 with the tiny tokenizer; in several parts, `name-00001-of-0000N.gguf`."""
    tensors = list(_tensors(model).items())
    files = (
        [file] if parts == 1 else [file.with_name(f"{file.stem}-{i + 1:05}-of-{parts:05}.gguf") for i in range(parts)]
    )
    for i, path in enumerate(files):
        writer = gguf.GGUFWriter(path, "llama")
        if i == 0:
            _write_metadata(writer, model)
        if parts > 1:
            writer.add_uint16("split.no", i)
            writer.add_uint16("split.count", parts)
            writer.add_int32("split.tensors.count", len(tensors))
        for name, tensor in tensors[i::parts]:
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return files


def _tensors(model: PreTrainedModel) -> dict[str, np.ndarray]:
    config, tensors = model.config, {}
    for name, weight in model.state_dict().items():
        array = weight.float().numpy()
        if name.startswith("model.layers."):
            _, _, layer, *rest = name.split(".")
            part = ".".join(rest).removesuffix(".weight")
            if part.endswith(("q_proj", "k_proj")):  # llama.cpp interleaves the halves of a rotary pair
                heads = config.num_attention_heads if part.endswith("q_proj") else config.num_key_value_heads
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
            tensors[f"blk.{layer}.{_NAMES[part]}.weight"] = np.ascontiguousarray(array)
        else:
            names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
            tensors[f"{names[name.removesuffix('.weight')]}.weight"] = array
    return tensors


def _write_metadata(writer: gguf.GGUFWriter, model: PreTrainedModel) -> None:
    config, tokenizer = model.config, tiny_tokenizer()
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_name("tiny")
    writer.add_license("mit")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].get))
    special = {token.content for token in tokenizer.added_tokens_decoder.values()}
    writer.add_token_types([3 if token in special else 1 for token in sorted(bpe["vocab"], key=bpe["vocab"].get)])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in bpe["merges"]])
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)
    assert tokenizer.chat_template is not None
    writer.add_chat_template(tokenizer.chat_template)
