"""Model health: whether a policy still writes answers, whatever its bound is.

The text alone gives lengths, loops, leaks, leftovers and diversity. The frozen base model gives the log-probability
of the new responses and their relevance: how much likelier a response is under its own query than under another one.
The objective alone rewards ignoring the query, so relevance matters most.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from sami.contrasts import Contrast, collate
from sami.evaluation.information import ContrastScores
from sami.prompts import PromptBuilder
from sami.prompts.control import control_inside
from sami.recipe import Health as HealthLimits
from sami.scoring.logprobs import token_logprobs
from sami.text.degeneration import repeated_loop, template_leftover
from sami.text.leaks import leakage
from sami.text.words import commonest_opening, distinct_n, word_count

# Figures that are shares of responses with a flaw in their text.
FLAGS = ("loops", "leakage", "unfinished", "template_leftovers")


@dataclass(frozen=True)
class Health:
    """The health of one policy. Shares are in percent of responses, log-probs in nats per token."""

    responses: int
    words: float
    """Mean length in words."""
    words_ratio: float
    """Mean length divided by the base model's."""
    loops: float
    leakage: float
    unfinished: float
    template_leftovers: float
    distinct_2: float
    """Distinct bigrams divided by bigrams, from 0 to 1; mean over responses."""
    opening: str
    """The most frequent first words."""
    opening_share: float
    """Share of responses that start with them."""
    base_logprob: float
    """Mean log-prob of the responses under the frozen base model."""
    relevance: float
    """Log-prob under a response's own query minus log-prob under another query, by the base model."""
    forgetting: float
    """KL(base || policy) on the base model's answers without a constitution, in nats per token."""
    failures: tuple[str, ...] = ()
    """A sentence for each limit of the recipe that the policy exceeds; empty for the base model."""

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "failures": list(self.failures)}


def flags(contrast: Contrast, control: Mapping[int, str] | None = None) -> list[dict[str, str]]:
    """What is wrong with each response: the figure of `Health` it counts in, and what shows it.

    Args:
        control: the tokenizer's control tokens, which count as template leftovers inside a response.
    """
    found = []
    for text, ids, reason in zip(contrast.responses, contrast.response_ids, contrast.finish_reasons, strict=True):
        shown = {
            "loops": repeated_loop(text),
            "leakage": leakage(text, contrast.constitutions, contrast.query),
            "template_leftovers": template_leftover(text) or control_inside(ids, reason, control or {}),
            "unfinished": {"stop": None, "length": f"at {len(ids)} tokens", "unsplit": "before an answer"}[reason],
        }
        found.append({name: what for name, what in shown.items() if what is not None})
    return found


def text_figures(contrasts: Sequence[Contrast], flagged: Sequence[list[dict[str, str]]]) -> dict[str, Any]:
    """The figures of `Health` that only need the text.

    Args:
        flagged: `flags` of each contrast.
    """
    texts = [text for contrast in contrasts for text in contrast.responses]
    wrong = [found for of_contrast in flagged for found in of_contrast]
    opening, share = commonest_opening(texts)
    return {
        "responses": len(texts),
        "words": sum(map(word_count, texts)) / len(texts),
        **{name: _percent([name in found for found in wrong]) for name in FLAGS},
        "distinct_2": 0.0 if math.isnan(diversity := distinct_n(texts)) else diversity,  # no response has two words
        "opening": opening,
        "opening_share": 100 * share,
    }


def base_logprob(base_scores: Sequence[ContrastScores]) -> float:
    """Mean log-prob per token of the responses, under the base model and their own constitutions."""
    own = [s.matrix[i][i] for s in base_scores for i in range(len(s.matrix))]
    return sum(own) / len(own)


@torch.inference_mode()
def relevance(
    base: PreTrainedModel,
    contrasts: Sequence[Contrast],
    base_scores: Sequence[ContrastScores],
    prompts: PromptBuilder,
    texts: dict[str, str],
    *,
    pad_token_id: int,
    queries: int,
    batch_size: int,
    share_prefix: bool = True,
) -> float:
    """How much likelier a response is under its own query than under the next contrast's query, in nats per token.

    Args:
        contrasts, base_scores: the policy's contrasts and their scores by the base model, in the same order.
        texts: principle texts by id and polarity, see `principle_key`.
        queries: number of contrasts to use, evenly spread.
    """
    chosen = list(range(0, len(contrasts), max(1, len(contrasts) // queries)))[:queries]
    differences: list[float] = []
    for part in _chunks(chosen, batch_size):
        swapped = []
        for i in part:
            other = next(
                (c.query for c in [*contrasts[i + 1 :], *contrasts[:i]] if c.query != contrasts[i].query),
                contrasts[i].query,
            )
            wanted = [[texts[principle_key(*p)] for p in c] for c in contrasts[i].principles]
            swapped.append(
                replace(
                    contrasts[i],
                    prompt_ids=[
                        prompts.training_prompt(other, principles, constitution)
                        for principles, constitution in zip(wanted, contrasts[i].constitutions, strict=True)
                    ],
                )
            )
        batch = collate(swapped, pad_token_id, share_prefix).to(base.device)
        under_other_BRT = torch.diagonal(token_logprobs(base, batch), dim1=1, dim2=2).permute(0, 2, 1)
        means = under_other_BRT.sum(-1) / batch.response_mask.sum(-1)
        for i, row in zip(part, means.tolist(), strict=True):
            differences += [base_scores[i].matrix[r][r] - value for r, value in enumerate(row)]
    return sum(differences) / len(differences)


def principle_key(name: str, positive: bool) -> str:
    return f"{name}+" if positive else f"{name}-"


@torch.inference_mode()
def forgetting(
    policy: PreTrainedModel,
    base: PreTrainedModel,
    answers: Sequence[tuple[list[int], list[int]]],
    *,
    pad_token_id: int,
    batch_size: int,
) -> float:
    """KL(base || policy) over the base model's answers without a constitution, in nats per token.

    Args:
        answers: (prompt ids, answer ids) of answers that the base model generated.
    """
    total, tokens = 0.0, 0
    for part in _chunks(list(answers), batch_size):
        width = max(len(prompt) for prompt, _ in part)
        length = width + max(len(answer) for _, answer in part)
        ids = torch.full((len(part), length), pad_token_id)
        real = torch.zeros((len(part), length), dtype=torch.bool)
        for n, (prompt, answer) in enumerate(part):
            start = width - len(prompt)
            ids[n, start : width + len(answer)] = torch.tensor(prompt + answer)
            real[n, start : width + len(answer)] = True
        positions = (real.cumsum(-1) - 1).clamp(min=0)
        inputs = {
            "input_ids": ids.to(base.device),
            "attention_mask": real.long().to(base.device),
            "position_ids": positions.to(base.device),
            "logits_to_keep": torch.arange(width - 1, length - 1, device=base.device),
            "use_cache": False,
        }
        log_base = base(**inputs).logits.float().log_softmax(-1)
        log_policy = policy(**inputs).logits.float().log_softmax(-1)
        kl = (log_base.exp() * (log_base - log_policy)).sum(-1)
        answered = real[:, width:].to(kl.device)
        total += float(kl.masked_fill(~answered, 0.0).sum())
        tokens += int(answered.sum())
    return total / tokens


def check(policy: Health, base: Health, limits: HealthLimits) -> tuple[str, ...]:
    """A sentence with the figures for each limit that a policy exceeds; empty for a healthy policy."""
    return tuple(broken(policy, base, limits).values())


def broken(policy: Health, base: Health, limits: HealthLimits) -> dict[str, str]:
    """The same sentences by the name of the figure that exceeds its limit; a figure that is NaN does."""
    failures = {}
    for name, label in (
        ("leakage", "copy from their constitution"),
        ("loops", "repeat themselves"),
        ("unfinished", "are cut off"),
        ("template_leftovers", "contain template markers"),
    ):
        now, before, limit = getattr(policy, name), getattr(base, name), getattr(limits, name)
        if not now - before <= limit:
            failures[name] = f"{now:.1f} % of responses {label}, {before:.1f} % of base's (limit +{limit:g} points)"
    drop = base.base_logprob - policy.base_logprob
    if not drop <= limits.base_logprob_drop:
        failures["base_logprob"] = (
            f"responses are {drop:.2f} nats per token less likely under the base model than its own "
            f"(limit {limits.base_logprob_drop:g})"
        )
    for name, label, limit in (
        ("distinct_2", "distinct bigrams", limits.distinct_2_ratio),
        ("relevance", "relevance to the query", limits.relevance_ratio),
    ):
        now, before = getattr(policy, name), getattr(base, name)
        if not now >= min(limit * before, before):
            failures[name] = f"{label} fell from {before:.2f} to {now:.2f} (limit {limit:g} of base's)"
    return failures


def _percent(flags: Sequence[bool]) -> float:
    return 100 * sum(flags) / len(flags)


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
