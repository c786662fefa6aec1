"""The transformers engine against a slow loop, and where responses end."""

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from transformers import GenerationConfig, LlamaForCausalLM

from sami.generation import Completion, SamplingSettings
from sami.generation.transformers_engine import TransformersEngine
from sami.models import loading
from sami.prompts import PromptBuilder
from sami.recipe import Generation, Model, Prompt
from tests.support import chat_templates as given
from tests.support.tiny import EOS, PAD, tiny_model, tiny_tokenizer

NEW = 10


def ragged_prompts(count=9, seed=0):
    rng = random.Random(seed)
    return [[rng.randrange(10, 320) for _ in range(length)] for length in rng.sample(range(2, 40), count)]


@torch.no_grad()
def one_by_one(model, prompt, new=NEW, eos=EOS):
    """The slow reference: the whole sequence again for each token, one prompt, no cache."""
    ids = list(prompt)
    for _ in range(new):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == eos:
            break
    return ids[len(prompt) :]


class Scripted(LlamaForCausalLM):
    """A model that says what it is told: row n of a batch writes `scripts[n]`, then EOS for ever."""

    scripts: Sequence[Sequence[int]] = ()
    step = 0

    def forward(self, input_ids=None, **inputs):
        output = super().forward(input_ids=input_ids, **inputs)
        self.step = 0 if input_ids.shape[1] > 1 else self.step + 1  # only a prompt has several tokens
        for row, script in enumerate(self.scripts):
            output.logits[row, -1] = -1e4
            output.logits[row, -1, script[self.step] if self.step < len(script) else EOS] = 0.0
        return output


def says(tokenizer, *texts, prompt="Question?", new=200, **settings):
    """Completions of a model that writes exactly these texts, all after the same prompt."""
    model = Scripted(tiny_model("llama", vocab_size=len(tokenizer)).config).eval()
    ids = tokenizer(prompt)["input_ids"]
    model.scripts = [tokenizer(text)["input_ids"] for text in texts]
    return TransformersEngine(model, tokenizer).generate([ids] * len(texts), SamplingSettings(new, **settings))


def tokenizer_padded_with(eos):
    tokenizer = tiny_tokenizer(chat=False)
    if eos:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@pytest.fixture(scope="module")
def reference(plain_tokenizer):
    model = tiny_model("llama")
    prompts = ragged_prompts()
    return model, prompts, [one_by_one(model, prompt) for prompt in prompts]


@pytest.mark.parametrize("batch_size", [1, 4, 9])
@pytest.mark.parametrize("order", [0, 1])
def test_greedy_completions_are_those_of_a_slow_loop(reference, plain_tokenizer, batch_size, order):
    model, prompts, expected = reference
    shuffled = random.Random(order).sample(range(len(prompts)), len(prompts))
    engine = TransformersEngine(model, plain_tokenizer, batch_size)
    completions = engine.generate([prompts[i] for i in shuffled], SamplingSettings(NEW))
    assert [c.token_ids for c in completions] == [expected[i] for i in shuffled]
    assert {c.finish_reason for c in completions} == {"length"}
    assert [c.text for c in completions] == plain_tokenizer.batch_decode(
        [c.token_ids for c in completions], skip_special_tokens=True
    )
    assert all(EOS not in c.token_ids for c in completions)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3", "gemma3"])
def test_other_architectures_are_decoded_like_the_slow_loop(plain_tokenizer, architecture):
    model, prompts = tiny_model(architecture), ragged_prompts(4)
    completions = TransformersEngine(model, plain_tokenizer, 4).generate(prompts, SamplingSettings(6))
    assert [c.token_ids for c in completions] == [one_by_one(model, prompt, 6) for prompt in prompts]


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_eos_ends_a_response_and_belongs_to_it(reference, pad_is_eos):
    model, prompts, endless = reference
    # A token that the model likes becomes EOS, so that responses end at different places and some never do.
    positions = {token: [row.index(token) for row in endless if token in row] for row in endless for token in row}
    eos = max(positions, key=lambda token: (len(positions[token]), max(positions[token])))
    tokenizer = tiny_tokenizer(chat=False)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(eos)
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    model.generation_config.eos_token_id = None
    completions = TransformersEngine(model, tokenizer, 4).generate(prompts, SamplingSettings(NEW))
    model.generation_config.eos_token_id = EOS
    expected = [one_by_one(model, prompt, eos=eos) for prompt in prompts]
    assert [c.token_ids for c in completions] == expected
    assert [c.finish_reason for c in completions] == ["stop" if row[-1] == eos else "length" for row in expected]
    assert {c.finish_reason for c in completions} == {"stop", "length"}


def test_another_end_token_of_the_model_ends_a_response_too(reference, plain_tokenizer):
    model, prompts, endless = reference
    end = endless[0][3]
    model.generation_config.eos_token_id = [EOS, end]
    [completion] = TransformersEngine(model, plain_tokenizer).generate(prompts[:1], SamplingSettings(NEW))
    model.generation_config.eos_token_id = EOS
    cut = endless[0].index(end)
    assert completion.token_ids == [*endless[0][:cut], end]  # the one that was generated
    assert completion.finish_reason == "stop"


ENDING = "It is so.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nI see.<|im_end|>\n"


@pytest.mark.parametrize("markers", [("<|im_start|>", "<|im_end|>"), ()], ids=["tokens", "plain text"])
def test_the_end_of_turn_of_the_chat_template_ends_an_answer_where_eos_is_another_token(markers):
    tokenizer = given.tokenizer_with(given.CHATML, markers)
    [completion] = says(tokenizer, ENDING, stop=PromptBuilder(tokenizer, Prompt()).stop)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>") if markers else EOS
    assert completion == Completion([*tokenizer("It is so.")["input_ids"], end], "It is so.", "stop")


def test_a_response_that_a_stop_string_cut_ends_like_an_answer_of_its_prompts():
    tokenizer = given.tokenizer_with(given.CHATML)
    prompts = PromptBuilder(tokenizer, Prompt(stop=["###"]))
    settings = SamplingSettings.of(Generation(max_new_tokens=50), prompts)
    [completion] = says(tokenizer, "It is so. ### No<|im_end|>", stop=settings.stop, end_id=settings.end_id)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert completion == Completion([*tokenizer("It is so. ")["input_ids"], end], "It is so. ", "stop")


@pytest.mark.parametrize("pad_is_eos", [False, True])
@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("The sky is blue.\n\nHuman: Why?", "The sky is blue."),
        ("The sky is blue.\nHuman: Why?\n\nHuman: Why?", "The sky is blue."),
        ("The sky is blue. Human: été 日本?", "The sky is blue. Human: été 日本?"),
        ("\n\nHuman: Why?", ""),
    ],
)
def test_a_stop_string_is_cut_with_all_its_tokens(pad_is_eos, written, kept):
    tokenizer = tokenizer_padded_with(pad_is_eos)
    [completion] = says(tokenizer, written, stop=["\n\nHuman:", "\nHuman:"])
    assert completion.text == kept
    assert completion.token_ids == [*tokenizer(kept)["input_ids"], EOS]
    assert completion.finish_reason == "stop"


def test_the_ids_before_a_stop_string_are_the_longest_prefix_without_it(plain_tokenizer):
    text = "Answers should be short. Answers"
    tokens = plain_tokenizer(text)["input_ids"]
    pieces = plain_tokenizer.batch_decode([[token] for token in tokens])
    # A stop string that starts inside a token: that token goes as a whole, the ones before it stay.
    number = next(i for i, piece in enumerate(pieces) if len(piece) >= 3 and i > 1)
    stop = pieces[number][1:] + "".join(pieces[number + 1 : number + 3])
    [completion] = says(plain_tokenizer, text, stop=[stop])
    assert completion == Completion([*tokens[:number], EOS], "".join(pieces[:number]), "stop")


def test_rows_of_a_batch_stop_each_at_their_own_place(plain_tokenizer):
    texts = ["Blue.\n\nHuman: And", "Blue light is scattered more than red light is.", "Red."]
    completions = says(plain_tokenizer, *texts, stop=["\n\nHuman:"])
    assert [c.text for c in completions] == ["Blue.", texts[1], "Red."]
    assert [c.finish_reason for c in completions] == ["stop"] * 3
    assert all(c.token_ids.count(EOS) == 1 and PAD not in c.token_ids for c in completions)


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_a_stop_string_that_begins_in_the_prompt_does_not_end_the_response(pad_is_eos):
    tokenizer = tokenizer_padded_with(pad_is_eos)
    [completion] = says(tokenizer, "\nBlue.", prompt="Question?\n", stop=["\n\n"])
    assert completion.text == "\nBlue."
    assert completion.token_ids == [*tokenizer("\nBlue.")["input_ids"], EOS]


def test_sampling_is_decided_by_the_seed(reference, plain_tokenizer):
    model, prompts, greedy = reference
    engine = TransformersEngine(model, plain_tokenizer, 4)

    def sampled(seed):
        torch.manual_seed(random.randrange(1000))  # whatever happened before
        settings = SamplingSettings(NEW, temperature=1.0, seed=seed)
        return [c.token_ids for c in engine.generate(prompts, settings)]

    assert sampled(0) == sampled(0)
    assert sampled(0) != sampled(1)
    assert sampled(0) != greedy


def test_a_low_temperature_and_a_small_nucleus_are_nearly_greedy(reference, plain_tokenizer):
    model, prompts, greedy = reference
    engine = TransformersEngine(model, plain_tokenizer, 9)
    for settings in (SamplingSettings(NEW, temperature=1e-3), SamplingSettings(NEW, temperature=1.0, top_p=1e-6)):
        assert [c.token_ids for c in engine.generate(prompts, settings)] == greedy


def test_settings_of_the_models_generation_config_do_not_leak_into_generation(tmp_path, plain_tokenizer):
    model = tiny_model("llama")
    prompts = ragged_prompts(4)
    expected = [one_by_one(model, prompt) for prompt in prompts]
    model.save_pretrained(tmp_path)
    plain_tokenizer.save_pretrained(tmp_path)
    GenerationConfig(
        do_sample=True,
        temperature=2.0,
        top_k=3,
        top_p=0.5,
        repetition_penalty=8.0,
        no_repeat_ngram_size=1,
        min_new_tokens=2,
        suppress_tokens=sorted({token for row in expected for token in row}),
        eos_token_id=EOS,
        pad_token_id=PAD,
    ).save_pretrained(tmp_path)
    loaded = loading.load_model(Model(source=str(tmp_path)), torch.float32)
    completions = TransformersEngine(loaded, plain_tokenizer).generate(prompts, SamplingSettings(NEW))
    assert [c.token_ids for c in completions] == expected


def test_progress_counts_up_to_its_total(reference, plain_tokenizer):
    model, prompts, _ = reference
    seen = []
    engine = TransformersEngine(model, plain_tokenizer, 4)
    engine.generate(prompts, SamplingSettings(NEW), lambda done, tokens: seen.append((done, tokens)))
    assert [tokens for _, tokens in seen] == sorted(tokens for _, tokens in seen)
    assert all(later >= earlier - 1e-9 for (earlier, _), (later, _) in pairwise(seen))
    assert seen[-1] == (1.0, 9 * NEW)
    assert len({tokens for _, tokens in seen}) == 3 * NEW  # every step of every batch


def test_progress_reaches_its_total_when_responses_end_early(plain_tokenizer):
    model = Scripted(tiny_model("llama").config).eval()
    model.scripts = [[40, 41], [42]]
    seen = []
    engine = TransformersEngine(model, plain_tokenizer)
    engine.generate([[20, 21, 22]] * 2, SamplingSettings(50), lambda done, tokens: seen.append((done, tokens)))
    assert seen[-1] == (1.0, 5)  # two tokens and one, and an EOS each; padding is not counted


def test_no_prompts_give_no_completions(llama, plain_tokenizer):
    assert TransformersEngine(llama, plain_tokenizer).generate([], SamplingSettings(3)) == []
