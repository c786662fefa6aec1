"""The contrasts file, the filters before training, and how contrasts are packed into rows."""

import doctest
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sami import contrasts as contrasts_module
from sami.contrasts import Contrast, collate, read_contrasts, row_tokens, write_contrasts
from sami.errors import InputError
from sami.filters import filter_contrasts
from sami.recipe import Filters
from tests.support.tiny import EOS, PAD, random_contrast

NONE = {
    "empty": False,
    "identical": False,
    "unfinished": False,
    "stop_leftovers": False,
    "loops": False,
    "min_survivors": 0.0,
}


def contrast(first: str = "The sea is calm.", second: str = "Arr, calm be the sea!", **changes) -> Contrast:
    sound = Contrast(
        id="a",
        query="How is the sea?",
        constitutions=["Talk like a sober harbour pilot.", "Talk like a pirate captain in a storm."],
        prompt_ids=[[10, 11, 12], [13]],
        response_ids=[[20, EOS], [21, 22, EOS]],
        responses=[first, second],
        finish_reasons=["stop", "stop"],
        principles=[[("pirate", False)], [("pirate", True)]],
    )
    return replace(sound, **changes)


# --- the record ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"response_ids": [[20]]}, "2 prompts and 1 responses"),
        ({"prompt_ids": [[1]], "response_ids": [[20]]}, "1 prompts and 1 responses"),
        ({"prompt_ids": [[1], [2], [3]]}, "3 prompts and 2 responses"),
        ({"response_ids": [[20], []]}, "Response 1 of contrast a has no tokens"),
        ({"prompt_ids": [[], [10]]}, "Prompt 0 of contrast a has no tokens"),
    ],
)
def test_a_contrast_that_cannot_be_scored_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        contrast(**changes)


# --- the file ---


def test_contrasts_read_back_equal(tmp_path):
    written = [
        *(random_contrast(seed, c) for seed, c in enumerate((2, 3, 5))),
        contrast("", 'Wörtlich: "日本語" 🦜\n\0', principles=[[("a", True), ("b.c-d", False)], []]),
        contrast(response_ids=[[2**31 - 1], [0]]),
    ]
    file = tmp_path / "iteration-1" / "contrasts.parquet"
    write_contrasts(file, written)
    assert read_contrasts(file) == written
    assert [path.name for path in file.parent.iterdir()] == ["contrasts.parquet"]


def test_no_contrasts_read_back_as_none(tmp_path):
    write_contrasts(tmp_path / "c.parquet", [])
    assert read_contrasts(tmp_path / "c.parquet") == []


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "c.parquet"
    write_contrasts(file, [contrast()])

    def interrupted():
        yield contrast(id="b")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_contrasts(file, interrupted())
    with pytest.raises(pa.ArrowInvalid, match="2147483648"):
        write_contrasts(file, [contrast(response_ids=[[2**31], [1]])])  # fails in the middle of the writing
    assert read_contrasts(file) == [contrast()]
    assert [path.name for path in tmp_path.iterdir()] == ["c.parquet"]


def test_columns_of_other_programs_are_left_aside(tmp_path):
    file = tmp_path / "c.parquet"
    write_contrasts(file, [contrast()])
    table = pq.read_table(file)
    pq.write_table(table.append_column("score", pa.array([1.5])).select(["score", *table.column_names[::-1]]), file)
    assert read_contrasts(file) == [contrast()]


def damage(file: Path, kind: str) -> None:
    whole = file.read_bytes()
    match kind:
        case "missing":
            file.unlink()
        case "a folder":
            file.unlink()
            file.mkdir()
        case "empty":
            file.write_bytes(b"")
        case "truncated":
            file.write_bytes(whole[: len(whole) // 2])
        case "without its last byte":
            file.write_bytes(whole[:-1])
        case "text":
            file.write_text("id,query\n")
        case "zeros inside":
            file.write_bytes(whole[:100] + bytes(400) + whole[500:])


@pytest.mark.parametrize(
    "kind", ["missing", "a folder", "empty", "truncated", "without its last byte", "text", "zeros inside"]
)
def test_a_damaged_file_is_refused(tmp_path, kind):
    file = tmp_path / "c.parquet"
    write_contrasts(file, [random_contrast(seed) for seed in range(20)])
    damage(file, kind)
    with pytest.raises(InputError, match=r"c\.parquet") as caught:
        read_contrasts(file)
    assert "\n" not in str(caught.value)


def test_missing_columns_are_named(tmp_path):
    file = tmp_path / "c.parquet"
    write_contrasts(file, [contrast()])
    pq.write_table(pq.read_table(file).drop_columns(["prompt_ids", "principles"]), file)
    with pytest.raises(InputError, match="prompt_ids, principles"):
        read_contrasts(file)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("principles", pa.array(["pirate"])),
        ("prompt_ids", pa.array([7])),
        ("response_ids", pa.nulls(1)),
        ("principles", pa.nulls(1)),
        ("responses", pa.array([3])),
    ],
    ids=["principles as text", "prompt_ids as number", "response_ids null", "principles null", "responses as number"],
)
def test_columns_of_another_type_are_refused(tmp_path, column, values):
    file = tmp_path / "c.parquet"
    write_contrasts(file, [contrast()])
    table = pq.read_table(file)
    pq.write_table(table.set_column(table.column_names.index(column), column, values), file)
    with pytest.raises(InputError):
        read_contrasts(file)


# --- filters ---

CASES = {
    "empty": [contrast(first=""), contrast(second=" \n")],
    "identical": [contrast("Calm.", "Calm."), contrast("Calm.", " Calm.\n")],
    "unfinished": [contrast(finish_reasons=["stop", "length"])],
    "stop_leftovers": [
        contrast(first="Calm.\n\nHuman: And now?"),
        contrast(first="Calm.<|im_end|>"),
        contrast(second="Question: how calm?"),
    ],
    "loops": [contrast(first="Calm sea. Calm sea. Calm sea. Calm sea. Calm sea.")],
    "leaks": [contrast(second="I shall talk like a pirate captain: arr!")],
}


@pytest.mark.parametrize("name", CASES)
def test_each_filter_takes_its_own_cases_only_where_it_is_on_and_keeps_sound_contrasts(name):
    sound = [contrast(), contrast("Calm.", "Calm!", id="b")]
    kept, dropped = filter_contrasts([sound[0], *CASES[name], sound[1]], Filters(**{**NONE, name: True}))
    assert kept == sound
    assert dropped == {name: len(CASES[name])}
    assert filter_contrasts(CASES[name], Filters(**NONE)) == (CASES[name], {})


def test_unwanted_terms_are_found_in_any_case_and_in_any_response():
    cases = [contrast(first="As an AI, I see no sea."), contrast(second="STRASSE ahoy"), contrast()]
    kept, dropped = filter_contrasts(cases, Filters(**NONE, unwanted=["as an ai", "Straße"]))
    assert kept == [contrast()]
    assert dropped == {"unwanted": 2}


def test_reasoning_without_an_answer_and_what_is_known_to_be_unfit_is_dropped_whatever_the_filters():
    unsplit = contrast(finish_reasons=["stop", "unsplit"], id="u")
    cases = [contrast(id="a"), unsplit, contrast(id="b"), contrast(id="c")]
    kept, dropped = filter_contrasts(cases, Filters(**NONE), unfit={"too_long": {"b", "u"}, "held_out_query": {"b"}})
    assert [c.id for c in kept] == ["a", "c"]
    assert dropped == {"too_long": 2, "held_out_query": 0, "unsplit": 0}
    assert filter_contrasts(cases, Filters(**NONE))[1] == {"unsplit": 1}


def test_stop_strings_of_the_run_count_as_leftovers():
    cases = [contrast(first="Calm. ### More"), contrast()]
    filters = Filters(**{**NONE, "stop_leftovers": True})
    assert filter_contrasts(cases, filters, stop=["\n###"])[1] == {"stop_leftovers": 1}
    for others in (["&&&"], ["\n\n"]):  # line breaks are in every contrast
        assert filter_contrasts(cases, filters, stop=others)[1] == {"stop_leftovers": 0}


def test_a_contrast_counts_for_the_first_filter_that_takes_it():
    """Empty and identical and unfinished: empty. Identical and unfinished: identical."""
    cut = {"finish_reasons": ["length", "length"]}
    cases = [contrast("", "", **cut), contrast("Calm.", "Calm.", **cut), contrast(**cut), contrast()]
    kept, dropped = filter_contrasts(cases, Filters(min_survivors=0.0, unfinished=True))
    assert len(kept) == 1
    assert dropped == {"empty": 1, "identical": 1, "unfinished": 1, "stop_leftovers": 0, "loops": 0}
    _, dropped = filter_contrasts(cases, Filters(min_survivors=0.0, unfinished=True, empty=False))
    assert dropped == {"identical": 2, "unfinished": 1, "stop_leftovers": 0, "loops": 0}


def test_too_few_survivors_stop_the_run_and_name_the_filter_that_took_most():
    cases = [*CASES["identical"], *CASES["unfinished"], contrast()]
    with pytest.raises(InputError) as caught:
        filter_contrasts(cases, Filters(min_survivors=0.26, unfinished=True))
    message = str(caught.value)
    assert "Only 1 of 4 contrasts passed" in message
    assert "(identical 2, unfinished 1)" in message
    assert "26%" in message
    kept, _ = filter_contrasts(cases, Filters(min_survivors=0.25, unfinished=True))
    assert len(kept) == 1


def test_without_a_survivor_the_run_stops_whatever_the_limit():
    with pytest.raises(InputError, match=r"Only 0 of 2 .*identical 2"):
        filter_contrasts(CASES["identical"], Filters(min_survivors=0.0))
    with pytest.raises(InputError, match=r"Only 0 of 0 .*none generated"):
        filter_contrasts([], Filters(min_survivors=0.0))


# --- packing ---


def test_the_example_of_collate_is_true():
    results = doctest.testmod(contrasts_module)
    assert results.attempted >= 2
    assert results.failed == 0


def test_a_shared_batch_by_hand():
    """Prompts of 2 and 1 tokens, responses of 2 and 1, whose last tokens predict nothing and are left out."""
    one = contrast(prompt_ids=[[11, 12], [13]], response_ids=[[20, EOS], [30]])
    batch = collate([one], PAD)
    assert batch.input_ids.tolist() == [[11, 12, 20, 13, 20]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.attention_mask.tolist() == [[[[2, 1, 0], [1, 1, 0]]]]
    assert batch.scored.tolist() == [1, 2, 3, 4]
    assert batch.predictor.tolist() == [[[[0, 1], [0, 0]], [[2, 3], [2, 0]]]]
    assert batch.response_ids.tolist() == [[[20, EOS], [30, PAD]]]
    assert batch.response_mask.tolist() == [[[True, True], [True, False]]]
    assert (batch.shared, batch.ids, len(batch)) == (True, ("a",), 1)
    assert row_tokens(one) == 5  # whole responses


def test_a_plain_batch_by_hand():
    one = contrast(prompt_ids=[[11, 12], [13]], response_ids=[[20, EOS], [30]])
    batch = collate([one], PAD, share_prefix=False)
    assert batch.input_ids.tolist() == [[11, 12, 20], [11, 12, PAD], [13, 20, PAD], [13, PAD, PAD]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 1, 1], [0, 1, 1], [0, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert batch.scored.tolist() == [1, 2, 4, 6, 7, 9]
    assert batch.predictor.tolist() == [[[[0, 1], [2, 0]], [[3, 4], [5, 0]]]]
    assert not batch.shared


@pytest.mark.parametrize("share", [True, False], ids=["shared", "plain"])
@pytest.mark.parametrize("c", [2, 4])
def test_every_response_token_is_predicted_where_the_tokens_before_it_stand(share, c):
    contrasts = [random_contrast(seed, c) for seed in range(4)]
    batch = collate(contrasts, PAD, share_prefix=share)
    ids, positions = batch.input_ids.flatten(), batch.position_ids.flatten()
    for b, one in enumerate(contrasts):
        for i, prompt in enumerate(one.prompt_ids):
            for r, response in enumerate(one.response_ids):
                at = batch.scored[batch.predictor[b, i, r, : len(response)]]
                assert ids[at].tolist() == [prompt[-1], *response[:-1]]
                assert positions[at].tolist() == list(range(len(prompt) - 1, len(prompt) + len(response) - 1))


def test_shared_rows_hold_no_padding_and_no_token_that_predicts_nothing():
    contrasts = [random_contrast(seed, 3) for seed in range(5)]
    batch = collate(contrasts, PAD)
    needed = sum(len(p) + sum(len(r) - 1 for r in c.response_ids) for c in contrasts for p in c.prompt_ids)
    assert batch.input_ids.numel() == needed == int(batch.attention_mask.sum())


@pytest.mark.parametrize("share", [True, False], ids=["shared", "plain"])
def test_constitutions_can_be_taken_apart(share):
    contrasts = [random_contrast(seed, 3) for seed in range(2)]
    whole = collate(contrasts, PAD, share)
    for c in range(3):
        part = collate(contrasts, PAD, share, constitutions=[c])
        mask = whole.response_mask
        for b in range(2):
            for r in range(3):
                ours = part.input_ids.flatten()[part.scored[part.predictor[b, 0, r][mask[b, r]]]]
                theirs = whole.input_ids.flatten()[whole.scored[whole.predictor[b, c, r][mask[b, r]]]]
                assert torch.equal(ours, theirs)


def test_without_train_eos_only_finished_responses_lose_their_last_token():
    one = contrast(response_ids=[[20, 21, EOS], [22, 23, EOS]], finish_reasons=["stop", "length"])
    assert collate([one], PAD).response_mask.sum(-1).tolist() == [[3, 3]]
    batch = collate([one], PAD, train_eos=False)
    assert batch.response_mask.tolist() == [[[True, True, False], [True, True, True]]]
    assert batch.input_ids.tolist() == collate([one], PAD).input_ids.tolist()  # still read, not scored


def test_contrasts_of_different_sizes_do_not_share_a_batch():
    with pytest.raises(InputError, match="same number of constitutions"):
        collate([random_contrast(0, 2), random_contrast(1, 3)], PAD)


@pytest.mark.parametrize("share", [True, False], ids=["shared", "plain"])
def test_moving_a_batch_moves_every_tensor_but_the_mask_of_packed_rows(share):
    batch = collate([contrast()], PAD, share)
    moved = batch.to("meta")
    there = {name for name, value in vars(moved).items() if isinstance(value, torch.Tensor) and value.is_meta}
    tensors = {name for name, value in vars(moved).items() if isinstance(value, torch.Tensor)}
    assert tensors - there == ({"attention_mask"} if share else set())
    assert (moved.shared, moved.ids) == (batch.shared, batch.ids)
