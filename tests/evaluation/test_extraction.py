"""Every extraction rule gives the verdict of the source that it is named after; ours reads what is declared."""

import gzip
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

from lvr_jax.evaluation import extraction
from lvr_jax.evaluation.rows import BenchmarkError

GOLDEN = Path(__file__).parents[1] / "golden"
COLOURS = {"A": "red", "B": "blue", "C": "green", "D": "dark grey"}
IN_IMAGE = dict.fromkeys("ABCD", "")

# (reply, verdict). Written by hand from the sources' code, odd ones included.
VERDICTS = {
    "first_character": [
        ("A", "A"),
        ("(A)", "("),                                     # scores 0: the first character is a parenthesis
        ("<answer> (B) </answer>", "("),
        ("<answer> C </answer>", "C"),
        ("<answer>C</answer>", "C"),
        ("<answer>Blue</answer>", "B"),
        ("<answer> a </answer>", "a"),                    # case-sensitive: equals no gold letter
        ("The answer is C", "T"),                         # no tag: the whole reply
        ("<|lvr_start|>x<|lvr_end|>A", "<"),              # no tag and a special token first: scores 0
        ("<answer> A </answer> or <answer> D </answer>", "D"),
        ("<answer> B </answer", "B"),                     # a cut-off end tag is an end tag
        ("<answer></answer", None),
        ("<answer> </answer>", None),
        ("", None),
    ],
    "strict_tag": [
        ("A", None),
        ("<|lvr_start|>x<|lvr_end|>A", None),
        ("<answer> a </answer>", "A"),                    # the corruption script upper-cases
        ("<answer> (B) </answer>", "("),
        ("<answer>\nD\n</answer>", "D"),
        ("<answer></answer", "<"),                        # here only a whole end tag is one
        ("<answer> </answer>", None),
    ],
    "blink_official": [
        ("A", "A"),
        ("(C)", "C"),
        ("a", None),
        ("A.", None),                                     # not bare, no "(X)" word: asks GPT
        ("The answer is (B) blue", "B"),
        ("(A) is wrong, so it is (B)", None),
        ("(A) is wrong.\n\nIt is (B) blue", "B"),         # the last paragraph decides
        ("**(A) red**", None),                            # glued to asterisks: no such word
        ("It is (B).", None),                             # "(B)." is no such word either
        ("(E) none", None),                               # only offered options count, unless bare:
        ("(E)", "E"),
    ],
    "vlmevalkit_match": [
        ("B", "B"),
        ("(C)", "C"),
        ("Answer: C", "C"),
        ("C is right because the cup is green", "C"),     # by its text: "C" is not among the last four words
        ("C is right because the cup on the table is green", "Z"),          # too long for a match by text
        ("B I think so", "B"),
        ("B I think it is", "Z"),                         # fifth from the end
        ("<answer> C </answer>", "C"),
        ("<answer>C</answer>", "Z"),                      # angle brackets are not stripped
        ("<answer>blue</answer>", "B"),                   # ... but the text is found
        ("A or B", "Z"),
        ("The correct answer is **D**, which one can see from the shade of it all", "D"),
        ("dark grey", "D"),
        ("Cannot determine the answer, maybe B", "Z"),
        ("b", "Z"),                                       # case-sensitive
        ("Z", "Z"),
        ("", "Z"),
    ],
    "vlmevalkit_mme_realworld": [
        ("<answer>c</answer>", "C"),
        ("<answer> The answer is d </answer>", "E"),      # upper-cased, the prefix stays: the E of "THE"
        ("B", "B"),
    ],
    "lmms_vstar": [
        ("C", "C"),
        ("Answer: C", "A"),                               # first pattern: begins with one of A to D
        ("Blue", "B"),
        ("The answer is C", "C"),
        ("Option: D", "D"),
        ("It is (b)", "B"),
        ("I say d) here", "D"),
        ("See C there", "C"),
        ("ok", None),
        ("ouch", "C"),                                    # a lone A to D anywhere in the upper-cased reply
        ("", None),
    ],
    "lmms_mmvp": [
        ("A", "A"),
        ("(b).", "B"),
        ("B. Closed", "B"),
        ("The answer is (a)", "A"),
        ("Option b", "B"),
        ("Grab it", "B"),                                 # any a or b at the end of a word
        ("Blue", "B"),
        ("open", None),
    ],
    "lmms_blink": [
        ("B", "B"),
        ("(C) 3", "C"),
        ("The answer is (B)", "T"),                       # first letter of the reply, whatever it is
        ("( d", "D"),
        ("7", None),
        ("**A**", None),
    ],
    "lmms_hrbench": [
        ("C is right because the cup is green as grass", "C"),      # anywhere, unlike VLMEvalKit today
        ("the cup, for all I can see on this photograph of a table, is dark grey", "D"),    # no limit on length
        ("A or B", None),
        ("Cannot determine the answer", "Z"),
    ],
    "lmms_mme_realworld": [
        ("C", "C"),
        ("(D) dark grey", "D"),
        ("The best answer is E", "E"),
        ("Answer: C", "A"),
        ("Best answer: C", "B"),                          # that prefix is glued to the next one and never matches
        ("The correct option is D", "D"),
        ("b", "B"),                                       # contained in "(b)"
        ("", "A"),                                        # so is nothing at all
        ("it is hard to say from here what this is at all", None),
    ],
    "lmms_visualpuzzles": [
        ("Answer: (C)", "C"),
        ("Answer: A\nAnswer: B", "B"),                    # last match of the first pattern that has one
        ("Final Answer: D", "D"),
        ("(A) no, (B) yes", "B"),
        ("{c}", "C"),
        ("$D$", "D"),
        ("it is B.", "B"),
        ("so B", "B"),
        ("i guess B then", None),                         # a bare letter only in replies of at most four characters
        ("answer: blue", "B"),
        ("red at first, but then blue", "B"),             # the option text that comes last
        ("no idea", None),                                # the source draws a letter at random here
    ],
    "strict_mapping": [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("B) blue", "B"),
        ("(b) Blue.", "B"),
        ("blue", "B"),
        ("<answer> C </answer><|im_end|>", "C"),
        ("<|lvr_start|>x<|lvr_end|>\n<answer> dark  grey </answer>", "D"),
        ("Answer: C", "C"),
        ("The correct answer is (D).", "D"),
        ("The answer is C because it is green", None),
        ("Blues", None),
        ("B red", None),                                  # letter and text disagree
        ("A or B", None),
        ("E", None),
        ("", None),
    ],
    "declared_answer": [
        ("The correct answer is B. Option A would be a red cup.", "B"),
        ("Looking closely, **the answer is (B)**.", "B"),
        ("so the final result is \\boxed{C}", "C"),
        ("$\\boxed{\\text{C}}$", "C"),
        ("\\boxed{blue}", "B"),
        ("**D**", "D"),
        ("**B. blue**\n\nThe cup is blue.", "B"),
        ("**Answer:** C", "C"),
        ("### Answer\nC", "C"),
        ("**Final answer**: `C`", "C"),
        ('{"answer": "B"}', "B"),
        ("<b>B</b>", "B"),
        ("<think>The answer is A.</think>\n\nB", "B"),
        ("maybe A</think>The answer is B", "B"),           # the prompt opened the thought
        ("<think>The answer is A", None),                 # cut off while thinking
        ("<answer>The answer is C</answer>", "C"),
        ("<answer> C </answer><|im_end|>", "C"),
        ("Option B", "B"),
        ("B is the correct answer.", "B"),
        ("B. The cup on the table is what is asked for.", "B"),
        ("B\n\nThe cup is blue.", "B"),
        ("I'd go with (b).", "B"),
        ("So it must be **B**.", "B"),
        ("It seems to be (B) blue here.", "B"),
        ("The answer is blue.", "B"),
        ("the answer is b.", "B"),
        ("The answer is A. No wait, the answer is B.", "B"),
        ("A. red\nB. blue\nC. green\nD. dark grey\nThe answer is D.", "D"),
        ("The answer is B because A is red.", "B"),
        ("I am not sure, but the answer is B", "B"),
        ("There is no doubt that the answer is C.", "C"),
        ("The answer is (B), not (A).", "B"),
        ("A or B", None),
        ("The answer is A or B.", None),
        ("The cup could be (A) red or (B) blue.", None),
        ("A. red\nB. blue\nC. green\nD. dark grey", None),
        ("**A**: no. **B**: yes", None),
        ("The answer is not A.", None),
        ("The wrong answer is A.", None),
        ("Is the answer A? I cannot say.", None),
        ("If the cup is red, the answer would be A.", None),
        ("Neither A nor B is correct.", None),
        ("The answer is (B) red.", None),                 # letter and text disagree
        ("The answer is E.", None),                       # not offered
        ("Answer: A cup is on the table.", None),         # an article
        ("the answer is a cup", None),
        ("The answer is the blue cup.", None),
        ("Point A is right of B.", None),
        ("The sky and the cup differ.", None),
        ("Blues", None),
        ("", None),
    ],
}


@pytest.mark.parametrize("rule, reply, verdict", [(rule, *case) for rule, cases in VERDICTS.items() for case in cases])
def test_rule_gives_the_verdict_of_its_source(rule, reply, verdict):
    assert extraction.extract(rule, reply, COLOURS) == verdict


def test_every_rule_has_a_table_of_verdicts():
    assert set(VERDICTS) == set(extraction.RULES)


def test_both_parsers_of_the_paper_agree_with_its_code():
    golden = np.load(GOLDEN / "cases" / "F3_answer_parse.npz")
    texts = [str(text) for text in golden["text"]]
    ours = [[extraction.first_character(text, COLOURS) == letter for letter in "ABCD"] for text in texts]
    np.testing.assert_array_equal(np.array(ours, np.int64), golden["accuracy_reward_ABCD"])
    strict = [extraction.strict_tag(text, COLOURS) or "" for text in texts]
    assert strict == [str(letter).upper() for letter in golden["parse_letter"]]


def blink_replies():
    with gzip.open(GOLDEN / "blink_replies" / "GPT4o.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_blink_rule_agrees_with_the_official_extraction_wherever_that_needed_no_language_model():
    options = {"Counting": 4, "IQ_Test": 4, "Jigsaw": 2, "Relative_Reflectance": 3, "Spatial_Relation": 2}
    replies = blink_replies()
    verdicts = [extraction.blink_official(each["reply"], dict(zip("ABCD", ["?"] * options[each["task"]])))
                for each in replies]
    decided = [(f"({verdict})", each["extracted"]) for verdict, each in zip(verdicts, replies) if verdict]
    assert len(replies) == 697 and len(decided) == 637
    assert all(ours == official for ours, official in decided)
    # The other 60 went to GPT-3.5, which answered "(Z)" three times: our rule must not have decided those.
    undecided = [each["extracted"] for verdict, each in zip(verdicts, replies) if verdict is None]
    assert undecided.count("(Z)") == sum(each["extracted"] == "(Z)" for each in replies) == 3


def test_strict_mapping_reads_real_one_line_replies_as_the_official_extraction_does():
    one_line = [(each, re.fullmatch(r"\(([A-D])\) ([^\n]+)", each["reply"])) for each in blink_replies()]
    one_line = [(each, match) for each, match in one_line if match]
    assert len(one_line) > 200
    for each, match in one_line:
        choices = dict.fromkeys("ABCD", "something else") | {match[1]: match[2]}
        assert f"({extraction.strict_mapping(each['reply'], choices)})" == each["extracted"]
        # With another text at that letter, letter and text contradict each other.
        assert extraction.strict_mapping(each["reply"], dict.fromkeys("ABCD", "something else")) is None


def test_declared_answers_of_real_replies_are_those_of_the_official_extraction():
    options = {"Counting": 4, "IQ_Test": 4, "Jigsaw": 2, "Relative_Reflectance": 3, "Spatial_Relation": 2}
    read = [(extraction.declared_answer(each["reply"], dict.fromkeys("ABCD"[:options[each["task"]]], "")), each)
            for each in blink_replies()]
    assert sum(f"({letter})" == each["extracted"] for letter, each in read) == 669
    assert sum(letter is None for letter, _ in read) == 10
    # The others say "the second image (B)" and declare "the answer is: (A) the second image"; GPT-3.5 took the former.
    odd = [each["reply"] for letter, each in read if letter and f"({letter})" != each["extracted"]]
    assert len(odd) == 18 and all("second image (B)" in reply and "(A) the second image" in reply for reply in odd)


def test_long_replies_are_read_in_no_time():
    for reply in ("A " * 20000, "(A) " * 20000, "answer is " * 20000, "**" * 20000, "the answer is:" + " " * 40000):
        start = time.perf_counter()
        extraction.declared_answer(reply, COLOURS)
        assert time.perf_counter() - start < 5


def test_strict_mapping_takes_a_bare_letter_as_the_letter_even_where_an_option_reads_like_one():
    assert extraction.strict_mapping("A", {"A": "B", "B": "A"}) == "A"
    assert extraction.strict_mapping("same", {"A": "same", "B": "same"}) is None


def test_options_drawn_in_the_image_match_by_letter_only():
    assert extraction.strict_mapping("(C)", IN_IMAGE) == "C"
    assert extraction.strict_mapping("", IN_IMAGE) is None
    assert extraction.vlmevalkit_match("of no use", IN_IMAGE) == "Z"
    assert extraction.lmms_visualpuzzles("of no use", IN_IMAGE) is None


def test_open_answers_are_compared_without_tag_case_article_and_final_stop():
    assert extraction.open_answer("<|lvr_end|><answer> The Teddy Bear. </answer><|im_end|>") == "teddy bear"
    assert extraction.open_answer("11/09/2017") == "11/09/2017"


def test_likelihood_takes_the_highest_mean_and_not_the_highest_sum():
    short_and_bad, long_and_good = np.array([-2.0]), np.full(10, -0.5)
    assert extraction.most_likely([short_and_bad, long_and_good]) == 1
    assert extraction.most_likely([short_and_bad, long_and_good], normalise="sum") == 0


def test_likelihood_tie_goes_to_the_first_option():
    assert extraction.most_likely([np.array([-1.0]), np.array([-1.0, -1.0])]) == 0


@pytest.mark.parametrize("log_probs, message", [
    ([np.array([-1.0]), np.array([])], "without tokens"),
    ([np.array([-1.0]), np.array([np.nan])], "option 1 has likelihood NaN"),
])
def test_likelihood_refuses_what_has_none(log_probs, message):
    with pytest.raises(BenchmarkError, match=message):
        extraction.most_likely(log_probs)


@pytest.mark.parametrize("harness, family, rule", [
    ("lvr", "vstar", "first_character"), ("prism", "anything", "strict_tag"), ("clean", "jsonl", "declared_answer"),
    ("strict", "jsonl", "strict_mapping"),
    ("vlmevalkit", "hrbench", "vlmevalkit_match"), ("lmms_eval", "blink", "lmms_blink"),
    ("own", "blink", "blink_official"), ("own", "vstar", extraction.LIKELIHOOD),
])
def test_harness_picks_its_rule(harness, family, rule):
    assert extraction.rule_name(harness, family) == rule


@pytest.mark.parametrize("harness, family, message", [
    ("own", "mmvp", "harness 'own' has no extraction rule for 'mmvp', only for vstar, blink"),
    ("lmms", "vstar", "no harness 'lmms', expected one of lvr, prism"),
])
def test_unknown_harness_or_family_is_refused_by_name(harness, family, message):
    with pytest.raises(BenchmarkError, match=message):
        extraction.rule_name(harness, family)


def test_unknown_rule_is_refused_by_name():
    with pytest.raises(BenchmarkError, match="no extraction rule 'likelihood', expected one of first_character"):
        extraction.extract("likelihood", "A", COLOURS)
