"""Contrasts with the lengths of real ones, the same for every engine.

With a folder, queries are Reddit posts, prompts have written constitutions, and responses are the summaries of a base
model (`posts.jsonl`, `responses/mistral-7b-base.jsonl`, `constitutions/`). Only lengths matter here, so response r of a
post's contrast is the summary of the r-th post after it. Without a folder, ids are random and have the same lengths:
prompts of about 445 tokens (standard deviation 94) and responses of about 114 (standard deviation 62).
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sami.contrasts import Contrast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sami.prompts import PromptBuilder


def tldr_contrasts(
    folder: Path, count: int, constitutions: int, prompts: "PromptBuilder", tokenizer: "PreTrainedTokenizerBase"
) -> list[Contrast]:
    """Contrasts of posts taken at even intervals in the order of their lengths."""
    posts = [row["post"] for row in _rows(folder / "posts.jsonl")]
    summaries = [row["response"] for row in _rows(folder / "responses" / "mistral-7b-base.jsonl")]
    texts = _constitutions(folder)[:constitutions]
    by_length = sorted(range(len(posts)), key=lambda i: len(posts[i]))
    chosen = [by_length[int((n + 0.5) / count * len(posts))] for n in range(count)]
    contrasts = []
    for i in chosen:
        query = f"Summarize this Reddit post in a few sentences.\n\n{posts[i]}"
        responses = [summaries[(i + r) % len(posts)] for r in range(constitutions)]
        prompt_ids = [prompts.training_prompt(query, text.splitlines(), text) for text in texts]
        response_ids = [
            [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in responses
        ]
        contrasts.append(_contrast(f"post-{i}", prompt_ids, response_ids))
    return contrasts


def made_contrasts(count: int, constitutions: int, vocabulary: int, scale: float = 1.0) -> list[Contrast]:
    """Contrasts of random ids with lengths distributed like those of the posts; `scale` shortens them."""
    contrasts = []
    for seed in range(count):
        rng = random.Random(seed)
        post = min(max(rng.gauss(313, 94), 122), 501)
        prompts = [round(scale * (post + 32 + rng.uniform(84, 116))) for _ in range(constitutions)]
        responses = [round(scale * min(max(rng.lognormvariate(4.607, 0.507), 35), 345)) for _ in range(constitutions)]
        contrasts.append(contrast_of_lengths(prompts, responses, vocabulary, seed))
    return contrasts


def contrast_of_lengths(prompts: Sequence[int], responses: Sequence[int], vocabulary: int, seed: int = 0) -> Contrast:
    """A contrast of random ids with the given numbers of tokens in each prompt and each response."""
    rng = random.Random(seed)
    ids = [[rng.randrange(vocabulary) for _ in range(length)] for length in (*prompts, *responses)]
    return _contrast(f"made-{seed}", ids[: len(prompts)], ids[len(prompts) :])


def shortened(contrast: Contrast, prompt: int, response: int) -> Contrast:
    """The first tokens of a contrast's prompts and responses, for warming up."""
    return _contrast(
        contrast.id, [ids[:prompt] for ids in contrast.prompt_ids], [ids[:response] for ids in contrast.response_ids]
    )


def _contrast(name: str, prompt_ids: list[list[int]], response_ids: list[list[int]]) -> Contrast:
    nothing = [""] * len(prompt_ids)
    return Contrast(
        name, "", nothing, prompt_ids, response_ids, nothing, ["stop" for _ in nothing], [[] for _ in nothing]
    )


def _constitutions(folder: Path) -> list[str]:
    """All distinct constitutions, those with longer principles first."""
    files = [*sorted(folder.glob("constitutions/opus/*.json")), *sorted(folder.glob("constitutions/mistral/*.json"))]
    pairs = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return list(dict.fromkeys(pair[side] for pair in pairs for side in ("positive", "negative")))


def _rows(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
