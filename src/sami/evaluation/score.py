"""Everything that is measured on the held-out responses of one policy, as the content of its scores file."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sami.contrasts import Contrast
from sami.evaluation import health, information
from sami.principles import Principle
from sami.prompts import PromptBuilder

PlainAnswers = Sequence[tuple[list[int], list[int]]]  # (prompt ids, answer ids) without a constitution


def measure(
    policy: PreTrainedModel | None,
    base: PreTrainedModel,
    contrasts: Sequence[Contrast],
    *,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptBuilder,
    principles: Sequence[Principle],
    plain_answers: PlainAnswers,
    health_queries: int,
    batch_size: int,
    share_prefix: bool,
    on_contrasts: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Log-prob matrices by the policy and by the base model, verdicts of the verifiers, and health.

    Args:
        policy: None for the base model itself.
        contrasts: the policy's responses to held-out queries.
        plain_answers: answers of the base model, on which forgetting is measured.
        on_contrasts: called with the number of contrasts scored so far; a policy's contrasts are scored twice.
    """
    score = partial(
        information.score_contrasts,
        tokenizer=tokenizer,
        contrasts=contrasts,
        held_out={p.id for p in principles if p.held_out},
        batch_size=batch_size,
        share_prefix=share_prefix,
    )
    by_base = score(base, on_contrasts=on_contrasts)
    by_policy = by_base
    if policy is not None:
        by_policy = score(policy, on_contrasts=lambda done: on_contrasts(len(contrasts) + done))
    texts = {health.principle_key(p.id, positive): p.text(positive) for p in principles for positive in (True, False)}
    pad = tokenizer.pad_token_id
    flagged = [health.flags(contrast, prompts.control) for contrast in contrasts]
    figures = health.text_figures(contrasts, flagged) | {
        "base_logprob": health.base_logprob(by_base),
        "relevance": health.relevance(
            base,
            contrasts,
            by_base,
            prompts,
            texts,
            pad_token_id=pad,
            queries=health_queries,
            batch_size=batch_size,
            share_prefix=share_prefix,
        ),
        "forgetting": 0.0
        if policy is None
        else health.forgetting(policy, base, plain_answers, pad_token_id=pad, batch_size=batch_size),
    }
    return {
        "policy": [s.as_json() for s in by_policy],
        "base": [s.as_json() for s in by_base],
        "verdicts": list(verdicts(contrasts, principles)),
        "flags": {contrast.id: found for contrast, found in zip(contrasts, flagged, strict=True)},
        "health": figures,
    }


def verdicts(contrasts: Sequence[Contrast], principles: Sequence[Principle]) -> Iterator[dict[str, Any]]:
    """The verdict of each principle's verifier on each response; principles without a verifier are skipped."""
    known = {p.id: p for p in principles}
    for contrast in contrasts:
        for number, constitution in enumerate(contrast.principles):
            for name, positive in constitution:
                passed = known[name].follows(contrast.responses[number], positive)
                if passed is not None:
                    yield {
                        "contrast": contrast.id,
                        "query": contrast.query,
                        "constitution": number,
                        "principle": name,
                        "positive": positive,
                        "learned": not known[name].held_out,
                        "passed": passed,
                    }
