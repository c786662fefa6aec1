"""Contrasts by hand for the figures of evaluation."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sami.contrasts import Contrast
from tests.support.tiny import EOS

QUERIES = ["Why is the sky blue?", "How do I boil an egg?", "What is salt?", "Who made the moon?"]

EXPERT, SIMPLE = "Explain it to an expert.", "Keep it simple."


def contrast(
    tokenizer: PreTrainedTokenizerFast, responses: Sequence[str], query: str = QUERIES[0], number: int = 0
) -> Contrast:
    def ids(text: str) -> list[int]:
        return list(tokenizer(text)["input_ids"])

    constitutions = [EXPERT, SIMPLE]
    return Contrast(
        id=f"c{number}",
        query=query,
        constitutions=constitutions,
        prompt_ids=[ids(f"{query}\n{c}\n") for c in constitutions],
        response_ids=[[*ids(r), EOS] for r in responses],
        responses=list(responses),
        finish_reasons=["stop", "stop"],
        principles=[[("expert", True)], [("expert", False)]],
    )


@torch.no_grad()
def token_logprobs_alone(model: PreTrainedModel, prompt: list[int], response: list[int]) -> list[float]:
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0].float().log_softmax(-1)
    return [float(logits[len(prompt) + t - 1, token]) for t, token in enumerate(response)]
