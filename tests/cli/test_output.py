"""What a command prints beside tables."""

from __future__ import annotations

import pytest

from cbn.cli.output import count, print_json, print_pairs, print_verdict, printable


@pytest.mark.parametrize(
    ("ok", "line"), [(True, "passed: 2 nodes\n"), (False, "FAILED: 2 nodes\n")]
)
def test_the_verdict_is_one_line(capsys, ok, line):
    print_verdict(ok, "2 nodes")
    assert capsys.readouterr().out == line


def test_a_verdict_that_says_less_than_passed(capsys):
    print_verdict(True, "2 nodes", instead="doubtful")
    print_verdict(False, "2 nodes", instead="doubtful")
    assert capsys.readouterr().out == "doubtful: 2 nodes\nFAILED: 2 nodes\n"


def test_a_long_verdict_is_not_broken(capsys):
    print_verdict(True, "word " * 60)
    assert capsys.readouterr().out.count("\n") == 1


def test_json_is_strict(capsys):
    with pytest.raises(ValueError, match="JSON compliant"):
        print_json({"error": float("nan")})
    print_json({"node": "ß", "error": None})
    assert capsys.readouterr().out == '{\n  "node": "\\u00df",\n  "error": null\n}\n'


def test_pairs_are_aligned(capsys):
    print_pairs({"cbn": "1.0", "onnxruntime": "1.32"})
    assert capsys.readouterr().out == "cbn          1.0\nonnxruntime  1.32\n"


def test_control_characters_of_a_name_are_escaped():
    assert printable("bn\x1b[2J\n\t é 层") == "bn\\x1b[2J\\n\\t é 层"


def test_count_takes_the_noun_along():
    assert [count(n, "node") for n in (0, 1, 12)] == ["0 nodes", "1 node", "12 nodes"]
