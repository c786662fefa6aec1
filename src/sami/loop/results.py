"""summary.json as types: every figure of a run that the terminal, the model card and the report show.

    summary = Summary.read(Path("runs/quickstart/summary.json"))
    summary.policies[-1].information.frozen.value    # nats, as the frozen base model scores the responses

A file of an older version loads: keys that it lacks have defaults here and stay absent when it is written again,
and keys that this version does not know are kept. `summary.schema.json` beside this module is the JSON schema;
`python -m sami.loop.results` prints it.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from sami.evaluation.bootstrap import Estimate

SCHEMA_FILE = Path(__file__).with_name("summary.schema.json")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "Input should be a valid string")
    return value


# JSON can hold half of a surrogate pair where a model wrote one; pydantic's own check of strings refuses it.
Text = Annotated[str, PlainValidator(_text), WithJsonSchema({"type": "string"})]
Scope = Literal["learned", "held_out"]


class Part(BaseModel):
    """A value of summary.json. Only the keys that were given are written; unknown ones are kept."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    def as_json(self) -> dict[str, Any]:
        """The JSON value, with exactly the keys that were read or set."""
        return self.model_dump(exclude_unset=True)


class InformationResult(Part):
    """How much one policy's responses say about their constitution; bounds in nats, accuracies as fractions."""

    bound: float | None
    """Column bound as the policy itself scores its responses; `low` and `high` are its 95 % interval."""
    low: float | None = None
    high: float | None = None
    base_bound: float | None = None
    """The same as the frozen base model scores them, with leaked words masked."""
    base_low: float | None = None
    base_high: float | None = None
    row_figure: float | None = None
    both_figure: float | None = None
    row_accuracy: float | None = None
    column_accuracy: float | None = None
    contrasts: int = 0
    """Number of contrasts behind `bound`."""
    base_contrasts: int = 0
    """Number of contrasts behind `base_bound`; those with too many leaked words are left out."""

    @property
    def own(self) -> Estimate:
        """The bound scored by the policy itself."""
        return Estimate(self.bound, self.low, self.high, self.contrasts)

    @property
    def frozen(self) -> Estimate:
        """The bound scored by the frozen base model."""
        return Estimate(self.base_bound, self.base_low, self.base_high, self.base_contrasts)


class VerifierRates(Part):
    """Share of responses that pass their principle's check, as a fraction."""

    learned: Estimate
    held_out: Estimate

    def on(self, scope: Scope) -> Estimate:
        return self.learned if scope == "learned" else self.held_out


class PrincipleResult(Part):
    """One principle's figures for one policy. A baseline has verifier rates only."""

    learned: bool
    bound: float | None = None
    base_bound: float | None = None
    column_accuracy: float | None = None
    contrasts: int = 0
    verifier_rate: float | None = None
    verifier_low: float | None = None
    verifier_high: float | None = None
    verifier_rate_definition: float | None = None
    """Pass rate of responses that were asked to follow the principle."""
    verifier_rate_antithesis: float | None = None
    """Pass rate of responses that were asked to follow the antithesis."""
    verdicts: int = 0

    @property
    def verifier(self) -> Estimate:
        return Estimate(self.verifier_rate, self.verifier_low, self.verifier_high, self.verdicts)


class HealthResult(Part):
    """Health of one policy: shares in percent of responses, log-probabilities in nats per token.

    A baseline has its responses and words only. See `sami.evaluation.health.Health`.
    """

    responses: int = 0
    words: float
    words_ratio: float = 1.0
    loops: float | None = None
    leakage: float | None = None
    unfinished: float | None = None
    template_leftovers: float | None = None
    distinct_2: float | None = None
    opening: Text = ""
    opening_share: float | None = None
    base_logprob: float | None = None
    relevance: float | None = None
    forgetting: float | None = None
    failures: list[Text] = []
    """The health limits that the policy breaks, in words. A policy with any of them is not called better."""


class PolicyResult(Part):
    """Everything that was measured on one policy's responses to the held-out queries."""

    name: Text
    iteration: int | None
    """0 for base, then the iteration; null for a baseline that the run did not train."""
    information: InformationResult
    """On learned principles."""
    information_held_out: InformationResult
    verifier: VerifierRates
    principles: dict[str, PrincipleResult] = {}
    health: HealthResult

    def information_on(self, scope: Scope) -> InformationResult:
        return self.information if scope == "learned" else self.information_held_out


class Gains(Part):
    """Paired differences of a policy from base on the same queries."""

    bound: Estimate
    """In nats."""
    base_bound: Estimate
    """In nats, scored by the frozen base model."""
    verifier_rate: Estimate
    """In percentage points."""


class Comparison(Part):
    """A trained policy against base. `sami.loop.standing` decides whether it is better."""

    policy: Text
    against: Text
    learned: Gains
    held_out: Gains
    healthy: bool
    """Whether the policy breaks no health limit."""
    better: bool
    """Whether it is healthy and gains information under the frozen base model; judges are not counted here."""
    reason: Text
    """`better` in a sentence."""

    def gains(self, scope: Scope) -> Gains:
        return self.learned if scope == "learned" else self.held_out


class ContrastCounts(Part):
    """How many contrasts of an iteration were generated, kept by the filters, and trained on."""

    generated: int
    kept: int
    used: int
    dropped: dict[str, int] = {}
    """Number of contrasts that each filter removed."""
    written_by: Text | None = None
    """Who wrote the responses, where that is not the model of the iteration before."""


class TrainingResult(Part):
    steps: int
    weights_changed: float | None = None
    """Share of the saved weights that training changed."""


class Rate(Part):
    """A win rate in percent with its 95 % interval; null where it is undefined."""

    rate: float | None
    low: float | None = None
    high: float | None = None

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.rate, self.low, self.high, 0)

    @property
    def above_half(self) -> Estimate:
        """The distance from 50 %, in percentage points."""
        low, high = (None if side is None else side - 50 for side in (self.low, self.high))
        return Estimate(None if self.rate is None else self.rate - 50, low, high, 0)


class PrincipleRate(Rate):
    n: int = 0


class Lengths(Part):
    tokens: float
    chars: float


class Strata(Part):
    """Number of queries where the candidate's response is longer than the baseline's, and where it is not."""

    longer: int
    not_longer: int


class Accuracy(Part):
    """How often a judge is right on pairs with a known answer, in percent."""

    accuracy: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    above_chance: bool
    position_lean: float | None = None
    length_lean: float | None = None
    unscored: int = 0


class WinRate(Part):
    """One candidate against one baseline by one judge in one scope; see `sami.evaluation.win_rate.win_rates`."""

    candidate: Text
    baseline: Text
    judge: Text
    scope: Literal["all", "learned", "held_out"]
    raw: Rate
    stratified: Rate = Rate(rate=None)
    length_controlled: Rate = Rate(rate=None)
    queries: int
    judgements: int = 0
    unscored: int = 0
    ties: int = 0
    consistency: float | None = None
    first_position_rate: float | None = None
    candidate_length: Lengths | None = None
    baseline_length: Lengths | None = None
    strata_n: Strata | None = None
    per_principle: dict[str, PrincipleRate] | None = None
    judge_accuracy: Accuracy | None = None


class Agreement(Part):
    """How often two judges agree, in percent of the judgements that both scored."""

    judges: list[Text]
    judgements: int
    agreement: float
    kappa: float | None = None


class JudgeAccount(Part):
    """What one judge was asked and what it cost."""

    judge: Text
    settings: dict[str, Any] = {}
    calibration: Accuracy | None = None
    verdicts: int = 0
    unscored: int = 0
    versions: list[Text] = []
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None


class PolicyLengths(Part):
    """Mean length of one policy's responses, as `sami judge` on files reports it."""

    policy: Text
    responses: int
    words: float
    tokens: float
    chars: float


class Judged(Part):
    """What judges say: the value of `sami judge --json`, on files with lengths and on a run with its verdict."""

    win_rates: list[WinRate] = []
    agreement: list[Agreement] = []
    judges: list[JudgeAccount] = []
    lengths: list[PolicyLengths] = []
    verdict: Text = ""


class Summary(Part):
    """summary.json: all figures of a run.

    Policies are in order: base, then each iteration, then baselines that the run did not train.
    """

    policies: list[PolicyResult]
    comparisons: list[Comparison] = []
    """Each iteration against base."""
    contrasts: dict[str, ContrastCounts] = {}
    """By iteration, such as `iteration-1`."""
    training: dict[str, TrainingResult] = {}
    shared_prefix: bool = False
    """Whether responses of a contrast were scored in shared rows."""
    model: Text = ""
    timings: dict[str, float] = {}
    """Seconds by step."""
    versions: dict[str, Text] = {}
    win_rates: list[WinRate] = []
    agreement: list[Agreement] = []
    judges: list[JudgeAccount] = []
    unsplit: dict[str, int] = {}
    """By policy, the contrasts in which some reasoning never came to an answer."""
    verdict: Text = ""
    """Whether the last iteration is better than base, in a sentence; absent until judges were asked."""

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read a summary.json.

        Raises:
            ValueError: the file is not JSON, or not a summary.
        """
        return cls.model_validate(json.loads(file.read_text(encoding="utf-8")))

    @property
    def base(self) -> PolicyResult | None:
        return next((one for one in self.policies if one.iteration == 0), None)

    @property
    def trained(self) -> list[PolicyResult]:
        """The run's own iterations, without base."""
        return [one for one in self.policies if one.iteration]

    @property
    def last(self) -> PolicyResult | None:
        """The last iteration that was evaluated."""
        return self.trained[-1] if self.trained else None

    @property
    def last_verdict(self) -> str:
        """Whether the last iteration is better than base, in a sentence; empty where nothing was compared."""
        return self.verdict or (self.comparisons[-1].reason if self.comparisons else "")

    def policy(self, name: str) -> PolicyResult:
        return next(one for one in self.policies if one.name == name)

    def comparison(self, policy: str) -> Comparison | None:
        return next((one for one in self.comparisons if one.policy == policy), None)

    def decisive_rates(self, candidate: str, baseline: str) -> list[WinRate]:
        """One win rate for each judge: on learned principles, or on all where no verdict names its principles."""
        own = [one for one in self.win_rates if (one.candidate, one.baseline) == (candidate, baseline)]
        learned = [one for one in own if one.scope == "learned"]
        return learned or [one for one in own if one.scope == "all"]

    def decisive_rate(self, candidate: str, baseline: str) -> WinRate | None:
        """The first judge's decisive win rate."""
        return next(iter(self.decisive_rates(candidate, baseline)), None)


def schema_text() -> str:
    """The contents of `summary.schema.json`."""
    return json.dumps(Summary.model_json_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
