"""A finetuned base model: ChatML ends its turns, EOS is another token, and it invents further turns."""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from sami.contrasts import read_contrasts
from sami.loop import model_card
from sami.pipeline import Pipeline
from sami.principles import load_principles
from sami.prompts import PromptBuilder
from sami.recipe import load_recipe
from tests.support import chat_templates as given
from tests.support.recipes import TOPICS, write_recipe
from tests.support.tiny import EOS, tiny_model

ANSWERS = {
    "Answer in a few words.": "So so.",
    "Answer at great length.": "So so and so on.",
    "Write capital letters.": "SO",
    "Write small letters.": "so",
}
MORE = "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nI see.<|im_end|>\n<eos>"


def overfitted(tokenizer, steps=80):
    """A model that gives the answers above, and then invents the next turns."""
    config = LlamaConfig(**{**tiny_model("llama").config.to_dict(), "vocab_size": len(tokenizer)})
    config.hidden_size, config.intermediate_size, config.initializer_range = 64, 128, 0.05
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    rows = []
    for topic in TOPICS[:3]:
        for asked, answer in ANSWERS.items():
            turn = [{"role": "user", "content": f"Why do people like {topic}?\n\n{asked}"}]
            prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
            ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer + MORE)]
            rows.append(([*ids[0], *ids[1]], [-100] * len(ids[0]) + ids[1]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(steps):
        chosen = [rows[i] for i in torch.randint(len(rows), (8,)).tolist()]
        width = max(len(ids) for ids, _ in chosen)
        padded = [[*ids, *[2] * (width - len(ids))] for ids, _ in chosen]
        labels = [[*own, *[-100] * (width - len(own))] for _, own in chosen]
        model(input_ids=torch.tensor(padded), labels=torch.tensor(labels)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_an_answer_ends_where_the_template_ends_it_and_that_end_is_trained(tmp_path):
    tokenizer = given.tokenizer_with(given.CHATML)
    overfitted(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    changes = {"generation__max_new_tokens": 40, "training__iterations": 1, "training__steps": 2}
    recipe = load_recipe(write_recipe(tmp_path, tmp_path / "model", **changes))
    pipeline = Pipeline(recipe, tmp_path / "run")
    [base] = pipeline.evaluate()["policies"]
    assert base["verifier"]["learned"]["value"] == 1.0
    assert base["principles"]["loud"]["bound"] > 0.6
    assert base["health"]["template_leftovers"] == 0
    pipeline.generate(1)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for contrast in read_contrasts(tmp_path / "run" / "iteration-1" / "contrasts.parquet"):
        assert [ids.index(end) for ids in contrast.response_ids] == [len(ids) - 1 for ids in contrast.response_ids]


def test_the_card_of_such_a_model_says_where_its_answers_end():
    tokenizer = given.tokenizer_with(given.CHATML)
    recipe = load_recipe("quickstart")
    principles = load_principles(recipe.principles)
    code = model_card._snippet(principles, PromptBuilder(tokenizer, recipe.prompt), tokenizer, recipe, False)
    assert f"do_sample=False, eos_token_id=[{tokenizer.convert_tokens_to_ids('<|im_end|>')}, {EOS}])" in code
