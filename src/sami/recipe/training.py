"""How a model is trained, and in how many processes."""

from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    model_validator,
)

from sami.recipe.roles import Role
from sami.recipe.sections import MOST_SEED, Section, as_list


class Training(Section):
    iterations: int = Field(default=2, ge=1, le=1000)
    """Number of rounds; each generates contrasts and trains on them."""
    restart_from: Literal["base", "previous"] = "base"
    """Weights that each iteration's training starts from."""
    steps: Annotated[list[Annotated[int, Field(ge=1, le=1_000_000)]], BeforeValidator(as_list)] = Field(default=[12])
    """Optimizer steps: one number, or one for each iteration."""
    batch_size: int = Field(default=16, ge=1, le=100_000)
    """Contrasts per optimizer step."""
    micro_batch_size: int = Field(default=4, ge=1, le=100_000)
    """Largest number of contrasts per forward pass; it changes speed and memory only."""
    lr: Annotated[list[Annotated[float, Field(gt=0, le=100)]], BeforeValidator(as_list)] = Field(default=[1.5e-5])
    """Learning rate: one number, or one for each iteration."""
    beta: Annotated[float, Role.TRAINER] = Field(default=0.0, ge=0.0, le=1e6)
    """Weight of the KL divergence from the base model, per token of each response under its own constitution."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    """Learning-rate schedule over an iteration."""
    warmup_steps: Annotated[int, Role.TRAINER] = Field(default=0, ge=0, le=1_000_000)
    """Steps over which the learning rate rises from 0. A warmup of one step makes the first update zero."""
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    """Optimizer."""
    master_weights: Annotated[Literal["float32", "bfloat16"], Role.TRAINER] = "float32"
    """Dtype of the weights that the optimizer updates; bfloat16 halves the memory, and rounding loses small steps."""
    weight_decay: Annotated[float, Role.TRAINER] = Field(default=0.0, ge=0.0, le=1e3)
    """Decoupled weight decay of AdamW."""
    max_grad_norm: Annotated[float, Role.TRAINER] = Field(default=1.0, gt=0.0, le=1e30)
    """Gradients are clipped to this norm."""
    explode_above: Annotated[float, Role.TRAINER] = Field(default=1e4, gt=0.0, le=1e30)
    """A gradient norm above this stops the run."""
    contrast: Annotated[Literal["both", "columns", "rows"], Role.TRAINER] = "both"
    """Direction: columns ask which constitution produced a response, rows which response a constitution produced."""
    estimator: Annotated[str, Role.TRAINER] = Field(default="infonce", min_length=1)
    """Bound on the mutual information that is maximized in that direction: infonce."""
    per_token: Annotated[bool, Role.TRAINER] = True
    """Average log-probs over a response's tokens; false sums them, as in the paper's equation 2."""
    train_eos: Annotated[bool, Role.TRAINER] = True
    """Train the end-of-sequence token of finished responses."""
    share_prefix: bool = True
    """Score all responses of a contrast in one row per constitution; verified before it is used."""
    gradient_cache: bool | None = None
    """Keep the activations of one constitution at a time, for one more forward pass; null: if memory is short."""
    gradient_checkpointing: Annotated[bool, Role.TRAINER] = False
    """Keep the activations of one layer at a time, for one more forward pass."""
    compile: bool = False
    """Compile the transformer blocks: faster steps after 15 to 25 s of compilation; needs a C++ compiler on CPU."""
    checkpoint_steps: int = Field(default=0, ge=0, le=1_000_000)
    """Steps between resumable checkpoints inside an iteration; 0 saves none."""
    report_to: Annotated[list[Literal["tensorboard", "trackio", "wandb", "mlflow"]], BeforeValidator(as_list)] = Field(
        default=[]
    )
    """Trackers that receive the metrics of all iterations as one run: tensorboard, trackio, wandb, mlflow."""
    seed: Annotated[int, Role.TRAINER] = Field(default=0, ge=0, le=MOST_SEED)
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
