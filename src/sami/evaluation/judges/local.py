"""A causal language model in this process as a judge: it prefers the label that is likelier after "Verdict:"."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel

from sami.errors import InputError
from sami.evaluation.judges import NOTHING_MORE, Given, Judge, Judgement, Question, Record
from sami.evaluation.judges.prompt import Label, prompt, template_id
from sami.models import devices, loading, sources, structure
from sami.prompts import question_prompt
from sami.prompts.chat_template import ChatTemplate, has_chat_template
from sami.recipe import LocalJudge

ANSWER = "Verdict:"
LABELS = (" A", " B")


class Local(Judge):
    """Prefers A if log p(A) > log p(B). The model and its tokenizer are loaded at the first question."""

    needs_calibration = True

    def __init__(self, settings: LocalJudge, given: Given = NOTHING_MORE) -> None:
        self.name = settings.label
        self.model_to_check = settings.model
        self._settings, self._date = settings, given.date
        self._dtype = devices.resolve_dtype(settings.model.dtype)

    def identity(self) -> dict[str, Any]:
        return self._identity

    @cached_property
    def _identity(self) -> dict[str, Any]:
        model = sources.fingerprint(self._settings.model)  # reads all weights
        known = {"kind": "local", "model": model, "dtype": str(self._dtype), "template": template_id()}
        dated = has_chat_template(self._tokenizer) and ChatTemplate(self._tokenizer).shows_date
        return known | ({"date": self._date} if dated and self._date is not None else {})

    @cached_property
    def _tokenizer(self) -> Any:
        return loading.load_tokenizer(self._settings.model)

    def judge(self, questions: Sequence[Question], record: Record, among: Sequence[Question]) -> None:
        rows = [(question, *self._ids(question)) for question in among]
        wanted = set(questions)
        self._check_context(rows)
        model = loading.load_model(self._settings.model, self._dtype)
        rows.sort(key=lambda row: -len(row[1]))  # the longest first, so that running out of memory shows at once
        for start in range(0, len(rows), self._settings.batch_size):
            chunk = rows[start : start + self._settings.batch_size]
            if wanted.isdisjoint(question for question, _, _ in chunk):
                continue
            for (question, _, _), odds in zip(chunk, self._log_odds(model, chunk), strict=True):
                label: Label = "A" if odds > 0 else "B" if odds < 0 else "tie"
                if question in wanted:
                    record(question, Judgement(question.score(label), f"log-odds of A over B: {odds:+.4f}"))

    def _ids(self, question: Question) -> tuple[list[int], tuple[int, int]]:
        """Ids up to the label, and the first id in which the two labels differ."""
        asked = prompt(question)
        a, b = (question_prompt(self._tokenizer, asked, ANSWER + label, self._date) for label in LABELS)
        differs = next(i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other)
        return a[:differs], (a[differs], b[differs])

    def _check_context(self, rows: Sequence[tuple[Question, list[int], Any]]) -> None:
        context = structure.context_length(loading.load_config(self._settings.model))
        question, ids, _ = max(rows, key=lambda row: len(row[1]))
        if context and len(ids) >= context:
            raise InputError(
                f"The judge {self.name} has a context of {context} tokens, and the question about the query "
                f"{question.pair.item.query_id!r} with its constitution and responses has {len(ids)}. "
                f"Use a judge with a longer context, or shorter constitutions or queries."
            )

    @torch.inference_mode()
    def _log_odds(
        self, model: PreTrainedModel, chunk: Sequence[tuple[Question, list[int], tuple[int, int]]]
    ) -> list[float]:
        width = max(len(ids) for _, ids, _ in chunk)
        pad = self._tokenizer.pad_token_id
        input_ids = torch.tensor([[pad] * (width - len(ids)) + ids for _, ids, _ in chunk])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for _, ids, _ in chunk])
        logits_BV = model(
            input_ids=input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0).to(model.device),
            logits_to_keep=1,
        ).logits[:, -1]
        labels_B2 = torch.tensor([labels for _, _, labels in chunk], device=logits_BV.device)
        pair_B2 = logits_BV.gather(1, labels_B2).float()
        odds: list[float] = (pair_B2[:, 0] - pair_B2[:, 1]).tolist()
        return odds
