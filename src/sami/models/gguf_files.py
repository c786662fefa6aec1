"""GGUF files, whole or in parts, as model folders that transformers reads.

convert_gguf(Path("model-00001-of-00003.gguf"), Path("model"))
"""

import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, GGUFValueType, GGUFWriter, Keys
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerBase

from sami.errors import InputError, one_line

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.gguf")


def parts_of(file: Path) -> list[Path]:
    """All files of a model, given any one of them: `name-00001-of-00003.gguf` and so on, or the file alone.

    Raises:
        InputError: the file or one of the parts does not exist.
    """
    match = _PART.fullmatch(file.name)
    parts = [file]
    if match:
        total = int(match["total"])
        parts = [file.with_name(f"{match['stem']}-{n:05}-of-{total:05}.gguf") for n in range(1, total + 1)]
    if absent := [part.name for part in parts if not part.is_file()]:
        raise InputError(
            f"The model {file} cannot be read: {', '.join(absent)} is missing in {file.parent}. "
            f"Give the path of a .gguf file, with all of its parts in one folder."
        )
    return parts


def convert_gguf(file: Path, folder: Path) -> str | None:
    """Convert GGUF to safetensors in bfloat16, the dtype in which the supported families were released.

    Args:
        file: a whole file, or any part of a split one.
        folder: where the model and its tokenizer are saved.

    Returns:
        The license that the file names, if it names one.

    Raises:
        InputError: a part is missing, the file is damaged, or transformers cannot read its architecture from GGUF.
    """
    parts = parts_of(file)
    try:
        if len(parts) == 1:
            return _convert(file, folder)
        with tempfile.TemporaryDirectory(prefix="sami-gguf-") as workplace:
            whole = Path(workplace) / "whole.gguf"
            _join(parts, whole)
            return _convert(whole, folder)
    except (ValueError, KeyError, IndexError, NotImplementedError, RuntimeError, ImportError) as error:
        reason = one_line(error)[:400]
        raise InputError(
            f"The weights in {file.name} cannot be converted: {reason}. The file is damaged, or transformers cannot "
            f"read its architecture from GGUF."
        ) from None


def _convert(file: Path, folder: Path) -> str | None:
    fields = GGUFReader(file).fields  # refuses at once what is not GGUF
    arguments: dict[str, Any] = {"gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **arguments)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32, **arguments
    )
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    model.to(torch.bfloat16)  # type: ignore[arg-type]
    wanted = fields.get("tokenizer.ggml.add_bos_token")
    if wanted is not None and wanted.contents():
        _start_with_bos(tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    license_name = fields.get("general.license")
    return None if license_name is None else str(license_name.contents())


def _start_with_bos(tokenizer: PreTrainedTokenizerBase) -> None:
    """Restore what the GGUF reader of transformers drops: a Gemma without its BOS token is a broken model."""
    if tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]:
        return
    bos: Any = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.bos_token_id)]
    )


def _join(parts: list[Path], whole: Path) -> None:
    """Write the parts of a split file as one: the metadata of the first, the tensors of all."""
    readers = [GGUFReader(part) for part in parts]
    first = readers[0]
    architecture = first.fields.get(Keys.General.ARCHITECTURE)
    if architecture is None:
        raise InputError(f"The file {parts[0].name} names no architecture, so it is not the first part of a model.")
    writer = GGUFWriter(whole, architecture.contents(), endianess=first.endianess)
    for field in first.fields.values():
        if field.name == Keys.General.ARCHITECTURE or field.name.startswith(("GGUF.", "split.")):
            continue  # the writer's own, and what only a split file has
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    tensors = [(reader, tensor) for reader in readers for tensor in reader.tensors]
    for _, tensor in tensors:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for reader, tensor in tensors:
        writer.write_tensor_data(tensor.data, tensor_endianess=reader.endianess)
    writer.close()
