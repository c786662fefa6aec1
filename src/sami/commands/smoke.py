"""Smoke runs: a recipe in miniature, which does everything that a run does in seconds on a CPU, without a network.

    with smoked(load_recipe("paper/hh-mistral-7b"), Path("runs/hh-smoke/.smoke")) as recipe:
        Pipeline(recipe, "runs/hh-smoke").run()

Each model becomes a tiny, randomly initialized one of the same architecture, with a tokenizer of the same kind that is
trained on the spot. The queries are a few of our own in the recipe's format. Scripts replace models as writers of
principles and as judges. Schemes, templates, iterations, optimizer, adapter and objective are those of the recipe,
which runs in one process. The figures of such a run mean nothing: it shows that the recipe works from end to end.
"""

import hashlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

from sami.costs.workload import principles_before_writing
from sami.files import replacing
from sami.models.known import Family, family_of
from sami.prompts import PromptBuilder
from sami.recipe import PACKAGED_RECIPES, Model, Recipe

TRAINING_QUERIES, HELD_OUT_QUERIES = 8, 4
MOST_NEW_TOKENS = 8
MARKER_LOGIT = 10.0  # at the start of an answer; the logits of other tokens reach about 4
BATCH = 4  # contrasts
LEARNING_RATES = {"adamw": 1e-3, "rmsprop": 1e-4}  # the first steps of RMSprop are ten times its learning rate
VOCABULARY = 400  # trained tokens, in addition to the 256 bytes
CHAT_TEMPLATE = """\
{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}
{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""


@contextmanager
def smoked(recipe: Recipe, place: Path) -> Iterator[Recipe]:
    """The recipe in miniature, with its models and queries written into `place`.

    A model or file that already exists there is used again, so that a stopped run continues. Scripted judges answer
    inside the block.

    Raises:
        InputError: a model whose name does not reveal its architecture, or a principles file that cannot be read.
    """
    values = recipe.model_dump()
    texts = _texts(recipe)
    values["model"] = _tiny(recipe.model, place, texts, recipe)
    if not isinstance(recipe.principles, str):
        values["principles"]["writer"] = {"kind": "scripted"}
    values["queries"] = {
        "path": str(_queries(place, recipe.queries.format)),
        "format": recipe.queries.format,
        "train": TRAINING_QUERIES,
        "evaluation": HELD_OUT_QUERIES,
    }
    first = recipe.generation.first_model
    values["generation"] |= {
        "engine": "transformers",
        "vllm": {},
        "first_model": _tiny(first, place, texts, recipe) if first else None,
        "max_new_tokens": min(recipe.generation.max_new_tokens, MOST_NEW_TOKENS),
        "batch_size": 64,
        "surplus": 1.0 if recipe.generation.chain_of_thought else 0.25,  # only about half of those answers can be split
    }
    values["filters"] = {
        name: False if isinstance(value, bool) else value for name, value in values["filters"].items()
    } | {"unwanted": [], "min_survivors": 0.0}
    values["training"] |= _training(recipe)
    values["launch"] = {"processes": 1}
    if recipe.adapter is not None:
        values["adapter"] |= {"r": 4, "lora_alpha": 8}
    values["evaluation"] |= {"bootstrap_samples": 100, "health_queries": 2, "calibration_pairs": 10, "force": True}
    values["evaluation"]["baselines"] = [
        _baseline(baseline, place, texts, recipe) for baseline in values["evaluation"]["baselines"]
    ]
    with _scripted_server() as url:
        values["evaluation"]["judges"] = [
            {"kind": "endpoint", "model": "scripted", "url": url, "name": f"scripted-{number}"}
            if settings.kind != "verifier"
            else settings.model_dump()
            for number, settings in enumerate(recipe.evaluation.judges, start=1)
        ]
        yield Recipe.model_validate(values)


def _training(recipe: Recipe) -> dict[str, Any]:
    """One step more in each iteration; warmup, if there is one, takes the first step."""
    training = recipe.training
    warmup = min(training.warmup_steps, 1)
    return {
        "steps": [warmup + i for i in range(1, training.iterations + 1)],
        "batch_size": BATCH,
        "micro_batch_size": min(training.micro_batch_size, 2),
        "lr": [LEARNING_RATES[training.optimizer]],
        "warmup_steps": warmup,
        "checkpoint_steps": min(training.checkpoint_steps, 1),
        "compile": False,
        "master_weights": "float32",
        "report_to": [],
    }


def _baseline(baseline: dict[str, Any], place: Path, texts: list[str], recipe: Recipe) -> dict[str, Any]:
    """The same baseline with a tiny model, also in place of responses from a file or another run."""
    if baseline["train"] is not None:
        return baseline
    source = Model.model_validate(baseline["model"]) if baseline["model"] else Model(source="llama-instruct")
    return baseline | {"model": _tiny(source, place, texts, recipe), "run": None, "responses": None}


# Texts.


def _own_queries() -> list[str]:
    lines = (PACKAGED_RECIPES / "data" / "everyday.jsonl").read_text(encoding="utf-8").splitlines()
    return [str(json.loads(line)["query"]) for line in lines[: TRAINING_QUERIES + HELD_OUT_QUERIES]]


def _queries(place: Path, layout: str) -> Path:
    """A file of our own queries in a format."""
    records: dict[str, Callable[[str], dict[str, Any]]] = {
        "text": lambda query: {"query": query},
        "hh": lambda query: dict.fromkeys(("chosen", "rejected"), f"\n\nHuman: {query}\n\nAssistant: I see."),
        "tldr": lambda query: {"info": {"id": query, "post": query}},
    }
    file = place / f"{layout}.jsonl"
    if not file.exists():
        with replacing(file) as temporary:
            lines = [json.dumps(records[layout](query)) for query in _own_queries()]
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def _texts(recipe: Recipe) -> list[str]:
    """Texts to train the tokenizers on, with words of the kind that they will meet."""
    prompt = recipe.prompt
    templates = [prompt.generation_template, prompt.training_template, prompt.system]
    principles = [text for p in principles_before_writing(recipe) for text in (p.definition, p.antithesis)]
    return [*_own_queries(), *principles, *(text for text in templates if text)]


# Models.


def _tiny(model: Model, place: Path, texts: list[str], recipe: Recipe) -> dict[str, Any]:
    """A `model` section for a tiny random model of the same family, which is written unless it exists."""
    family = family_of(model)
    name = f"{family.model_type}-{hashlib.sha256(model.source.encode()).hexdigest()[:8]}"
    if not (place / name).is_dir():
        tokenizer = _tokenizer(family, texts)
        thinks = recipe.generation.chain_of_thought
        if thinks is not None:
            tokenizer.add_tokens([AddedToken(thinks.marker, normalized=False)])
        tiny = _random_model(family, tokenizer, seed=int(name[-8:], 16))
        if thinks is not None:
            _write_marker_first(tiny, tokenizer, recipe)
        with replacing(place / name) as temporary:
            tiny.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    return {"source": str((place / name).resolve()), "dtype": "float32"}


def _random_model(family: Family, tokenizer: PreTrainedTokenizerFast, seed: int) -> Any:
    config = _tiny_config(family.model_type)
    config.vocab_size = len(tokenizer)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@torch.no_grad()
def _write_marker_first(model: Any, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
    """Make a random model start with the marker between reasoning and answer, and not repeat it.

    The row of the marker in the output head is fitted to the hidden states at the ends of prompts and after them.
    """
    thinks = recipe.generation.chain_of_thought
    assert thinks is not None
    prompts = PromptBuilder(tokenizer, recipe.prompt, thinks)
    marker = tokenizer.convert_tokens_to_ids(thinks.marker)
    principles = principles_before_writing(recipe)
    rng = random.Random(0)
    states, logits = [], []
    for query in _own_queries() * 3:
        chosen = [p.text(rng.random() < 0.5) for p in rng.sample(principles, min(2, len(principles)))]
        prompt = prompts.generation_prompt(query, chosen, "\n".join(chosen))
        answer = [marker, *(rng.randrange(len(tokenizer)) for _ in range(MOST_NEW_TOKENS - 1))]
        states.append(model.base_model(torch.tensor([prompt + answer])).last_hidden_state[0, len(prompt) - 1 :])
        logits += [MARKER_LOGIT, *[-MARKER_LOGIT] * len(answer)]
    row = torch.linalg.lstsq(torch.cat(states), torch.tensor(logits)[:, None]).solution[:, 0]
    model.get_output_embeddings().weight[marker] = row


def _tiny_config(model_type: str) -> PreTrainedConfig:
    """Two layers of width 32, with weights spread widely enough that the prompt matters."""
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 8192,
        "initializer_range": 0.2,
    }
    if "mixtral" in model_type:
        sizes |= {"num_local_experts": 4, "num_experts_per_tok": 2}
    if model_type.startswith(("gemma2", "gemma3")):
        sizes |= {"layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 8}
    return AutoConfig.for_model(model_type, **sizes)


def _tokenizer(family: Family, texts: list[str]) -> PreTrainedTokenizerFast:
    make = _sentencepiece if family.tokenizer == "sentencepiece" else _byte_level
    inner, special = make(texts)
    if family.begins:
        bos = special["bos_token"]
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, inner.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=8192, **special)
    if family.chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _byte_level(texts: list[str]) -> tuple[Tokenizer, dict[str, str]]:
    special = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    inner = Tokenizer(BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY + len(alphabet),
            initial_alphabet=alphabet,
            special_tokens=list(special.values()),
            show_progress=False,
        ),
    )
    return inner, special


def _sentencepiece(texts: list[str]) -> tuple[Tokenizer, dict[str, str]]:
    """Words after "▁", and unseen characters as bytes, as in the tokenizers of Mistral and Gemma."""
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    spaces = normalizers.Replace(" ", "▁")
    trained = Tokenizer(BPE())
    trained.normalizer = spaces
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=VOCABULARY, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    names = [*special.values(), *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    inner = Tokenizer(
        BPE(
            vocab={name: number for number, name in enumerate(dict.fromkeys(names))},
            merges=[(first, second) for first, second in learned["merges"]],
            unk_token=special["unk_token"],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return inner, special


# The judge.


class _ScriptedJudge(BaseHTTPRequestHandler):
    """Speaks the OpenAI chat protocol and prefers the longer response."""

    def do_GET(self) -> None:
        self._answer({"object": "list", "data": [{"id": "scripted", "object": "model"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = asked["messages"][-1]["content"]
        a, b = (sum(len(line) for line in text.splitlines() if line.startswith(f"{mark}| ")) for mark in "AB")
        verdict = "A" if a > b else "B" if b > a else "tie"
        message = {"role": "assistant", "content": f"Verdict: {verdict}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        self._answer(
            {
                "id": "scripted",
                "object": "chat.completion",
                "created": 0,
                "model": "scripted",
                "choices": [choice],
                "usage": usage,
            }
        )

    def _answer(self, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Print nothing: stderr is for the progress of the run."""


@contextmanager
def _scripted_server() -> Iterator[str]:
    """The URL of a scripted judge on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _ScriptedJudge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
