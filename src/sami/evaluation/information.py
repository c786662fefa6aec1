"""Held-out information: what a policy's responses reveal about the constitution they were sampled under.

Two models score the same responses. The policy itself gives `bound`. The frozen base model, with leaked words masked,
gives `base_bound`: a model that was not trained has to recognize the behavior, so a policy that only learned code
words for its constitutions gains nothing.

Shapes: C constitutions, R responses, T response tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sami import objective
from sami.contrasts import Contrast, collate, row_tokens
from sami.evaluation.bootstrap import Estimate, mean_by_query
from sami.scoring.logprobs import reduce_tokens, token_logprobs
from sami.text.leaks import leak_mask, leaked_words

# A response with more than this share of leaked words says nothing about behavior.
MOST_MASKED = 0.5

Matrix = list[list[float]]  # [C, R], nats per token


@dataclass(frozen=True)
class ContrastScores:
    """Log-prob matrices of one contrast, averaged over tokens.

    `masked` leaves out the tokens of leaked words in every cell. It is None if more than half of a response leaked.
    """

    id: str
    query: str
    learned: bool
    principles: list[str]
    matrix: Matrix
    masked: Matrix | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.inference_mode()
def score_contrasts(
    model: PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    contrasts: Sequence[Contrast],
    held_out: set[str],
    batch_size: int,
    share_prefix: bool = True,
    on_contrasts: Callable[[int], None] = lambda done: None,
) -> list[ContrastScores]:
    """Score every response of every contrast under every constitution.

    Args:
        held_out: ids of principles that are not trained on; a contrast with one of them does not count as learned.
        batch_size: contrasts per forward pass.
        share_prefix: whether responses share rows; see `sami.scoring.packing_check.check_packing`.
        on_contrasts: called with the number of contrasts scored so far.
    """
    scores: dict[str, ContrastScores] = {}
    order = sorted(contrasts, key=row_tokens)
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        batch = collate(chunk, tokenizer.pad_token_id, share_prefix).to(model.device)
        logprobs_BCRT = token_logprobs(model, batch)
        plain = reduce_tokens(logprobs_BCRT, batch.response_mask).tolist()
        unleaked_BRT = _unleaked(chunk, tokenizer, batch.response_mask)
        masked = reduce_tokens(logprobs_BCRT, unleaked_BRT).tolist()
        share_left_BR = unleaked_BRT.sum(-1) / batch.response_mask.sum(-1)
        usable = (share_left_BR >= 1 - MOST_MASKED).all(-1).tolist()
        for contrast, matrix, without_leaks, is_usable in zip(chunk, plain, masked, usable, strict=True):
            names = sorted({name for constitution in contrast.principles for name, _ in constitution})
            scores[contrast.id] = ContrastScores(
                id=contrast.id,
                query=contrast.query,
                learned=not held_out.intersection(names),
                principles=names,
                matrix=matrix,
                masked=without_leaks if is_usable else None,
            )
        on_contrasts(start + len(chunk))
    return [scores[contrast.id] for contrast in contrasts]


def _unleaked(
    contrasts: Sequence[Contrast], tokenizer: PreTrainedTokenizerBase, mask_BRT: torch.Tensor
) -> torch.Tensor:
    """The response mask without the tokens of words that occur in a constitution and not in the query."""

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    kept = mask_BRT.clone()
    for b, contrast in enumerate(contrasts):
        leaked = leaked_words(contrast.constitutions, contrast.query)
        for r, ids in enumerate(contrast.response_ids):
            leaks = torch.tensor(leak_mask(ids, decode, leaked), device=kept.device)
            kept[b, r, : len(ids)] &= ~leaks
    return kept


@dataclass(frozen=True)
class Information:
    """The figures of one policy over a set of contrasts: bounds in nats, accuracies as fractions."""

    bound: Estimate
    base_bound: Estimate
    row_figure: float | None
    both_figure: float | None
    row_accuracy: float | None
    column_accuracy: float | None

    def as_json(self) -> dict[str, Any]:
        """The keys of summary.json's `information`."""
        return {
            "bound": self.bound.value,
            "low": self.bound.low,
            "high": self.bound.high,
            "base_bound": self.base_bound.value,
            "base_low": self.base_bound.low,
            "base_high": self.base_bound.high,
            "row_figure": self.row_figure,
            "both_figure": self.both_figure,
            "row_accuracy": self.row_accuracy,
            "column_accuracy": self.column_accuracy,
            "contrasts": self.bound.n,
            "base_contrasts": self.base_bound.n,
        }


@dataclass(frozen=True)
class PolicyScores:
    """The same responses, scored by the policy that wrote them and by the frozen base model."""

    policy: list[ContrastScores]
    base: list[ContrastScores]

    def where(self, keep: Callable[[ContrastScores], bool]) -> "PolicyScores":
        return PolicyScores([s for s in self.policy if keep(s)], [s for s in self.base if keep(s)])


def summarize(scores: PolicyScores, *, samples: int, seed: int) -> Information:
    """The figures of a policy, with bootstrap intervals over queries."""
    bounds = bounds_by_policy(scores.policy)
    base_bounds = bounds_under_base(scores.base)
    matrices = _stack(s.matrix for s in scores.policy)
    rows = _mean(objective.row_figure(matrices)) if matrices is not None else None
    return Information(
        bound=_estimate(bounds, scores.policy, samples, seed),
        base_bound=_estimate(base_bounds, scores.base, samples, seed),
        row_figure=rows,
        both_figure=None
        if matrices is None or rows is None
        else (_mean(objective.information_bound(matrices)) + rows) / 2,
        row_accuracy=None if matrices is None else _mean(objective.row_accuracy(matrices)),
        column_accuracy=None if matrices is None else _mean(objective.column_accuracy(matrices)),
    )


def bounds_by_policy(scores: Sequence[ContrastScores]) -> dict[str, float]:
    """The column bound of each contrast, by its id."""
    return {s.id: _bound(s.matrix) for s in scores}


def bounds_under_base(scores: Sequence[ContrastScores]) -> dict[str, float]:
    """The column bound of each contrast under the frozen base with leaks masked; contrasts set aside are absent."""
    return {s.id: _bound(s.masked) for s in scores if s.masked is not None}


def gain(
    after: dict[str, float],
    before: dict[str, float],
    scores: Sequence[ContrastScores],
    *,
    samples: int,
    seed: int,
) -> Estimate:
    """The mean paired difference between the bounds of two policies, on the contrasts that both have."""
    both = {name: value - before[name] for name, value in after.items() if name in before}
    return _estimate(both, scores, samples, seed)


def _estimate(values: dict[str, float], scores: Sequence[ContrastScores], samples: int, seed: int) -> Estimate:
    chosen = [s for s in scores if s.id in values]
    return mean_by_query([values[s.id] for s in chosen], [s.query for s in chosen], samples=samples, seed=seed)


def _bound(matrix: Matrix) -> float:
    return objective.information_bound(torch.tensor([matrix], dtype=torch.float64)).item()


def _stack(matrices: Iterable[Matrix]) -> torch.Tensor | None:
    collected = list(matrices)
    return torch.tensor(collected, dtype=torch.float64) if collected else None


def _mean(values: torch.Tensor) -> float:
    return float(values.mean())
