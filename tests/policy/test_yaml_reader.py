"""The strict YAML reader: positions, and everything that a policy file may not contain."""

import re
import string

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from safeflux.policy.yaml_reader import MAX_BYTES, MAX_DEPTH, PolicyFileError, parse_document, read_document


def issues_of(text: str | bytes) -> list[str]:
    try:
        document = parse_document(text if isinstance(text, bytes) else text.encode(), "p.yaml")
    except PolicyFileError as error:
        return [str(issue) for issue in error.issues]
    return [str(issue) for issue in document.issues]


def test_values_and_their_places():
    document = parse_document(b"a: 1\nb:\n  - x\n  - {c: 'true'}\n", "p.yaml")
    assert document.value == {"a": 1, "b": ["x", {"c": "true"}]}
    assert document.issues == []
    assert document.values[("a",)][:2] == (1, 4)
    assert document.keys[("b",)][:2] == (2, 1)
    assert document.values[("b", 1, "c")][:2] == (4, 9)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("0o17", "0o17"),
        ("1_000", "1_000"),
        ("2026-01-01", "2026-01-01"),
        ("12:30", "12:30"),
        ("true", True),
        ("~", None),
        ("", None),
        ("-3", -3),
        ("0.25", 0.25),
        ("1e-3", 0.001),
        (".INF", float("inf")),
        ("'1'", "1"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_plain_values_follow_the_core_schema(text, value):
    document = parse_document(f"k: {text}\n".encode(), "p.yaml")
    assert document.issues == []
    assert document.value == {"k": value}
    assert type(document.value["k"]) is type(value)


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("a: 1\na: 2\n", 2, 1, "duplicate key 'a'; the first one is on line 1"),
        ("a: &x 1\n", 1, 4, "an anchor"),
        ("a: {<<: *x}\n", 1, 9, "an alias"),
        ("a: !!python/object/apply:os.system [x]\n", 1, 4, "a tag"),
        ("a: !!str 1\n", 1, 4, "a tag"),
        ("%YAML 1.1\n---\na: 1\n", 1, 1, "a YAML directive"),
        ("a: 1\n---\nb: 2\n", 2, 1, "a second document"),
        ("? [a]\n: 1\n", 1, 3, "a key must be plain text, not a list or mapping"),
        ("*x : 1\n", 1, 1, "a key must be plain text"),
        ("a: [1, 2\nb: 3\n", 1, 4, "this '[' is never closed; add ']'"),
        ("a: [\n", 1, 4, "this '[' is never closed; add ']'"),
        ("a:\n  b: {c: [1, 'it]', 2] # }\n  d: {e: 1}\n", 2, 6, "this '{' is never closed; add '}'"),
        ("a: [x: {b]}\n", 1, 8, "this '{' is never closed"),
        ("a: {b: 1}}\n", 1, 10, "this '}' does not close anything; remove it"),
        ("a: {b: 1 c: 2}\n", 1, 11, "a comma is missing"),
        ("a: '\n", 1, 4, "this quote ' is never closed"),
        ("a: 'it's'\n", 1, 8, "put the whole value in double quotes"),
        ("\ta: 1\n", 1, 1, "a tab; YAML only allows spaces for indentation"),
        ("a:\n  b: 1\n\tc: 2\n", 3, 1, "a tab; YAML only allows spaces for indentation"),
        ("a:\n  b: 1\n c: 2\n", 3, 2, "wrong indentation: this line has 1 space before it, those above have 0 or 2"),
        ("a:\n  b: 1\n    c: 2\n", 3, 6, "wrong indentation: this line has 4 spaces before it"),
        (" a: 1\nb: 2\n", 2, 1, "wrong indentation: this line has 0 spaces before it, those above have 1"),
        ("- a\nb: 1\n", 2, 1, "a list item ('- ') and a `key: value` have the same indentation"),
        ("a: b: c\n", 1, 5, "a second ':' in one line"),
        ("a:1\nb: 2\n", 2, 2, "a colon needs a space after it"),
        ("a: @x\n", 1, 4, "a value may not begin with '@'; put it in quotes"),
        ("a: *bold*\n", 1, 4, "a value may not begin with '*'; put it in quotes"),
        ("a: & b\n", 1, 4, "a value may not begin with '&'; put it in quotes"),
        ("a: 1\n...\nb: 2\n", 3, 1, "text after the end of the document, which is the line `...`"),
        ("a: 1\n<<<<<<< HEAD\nb: 2\n=======\nb: 3\n>>>>>>> other\n", 2, 1, "a conflict marker of a merge"),
        ('a: "\\q"\n', 1, 6, "unknown escape after the backslash"),
        ("a: 1 # reviewed \u2028adapters: allow\n", 1, 17, "U+2028 LINE SEPARATOR is a line break only to some"),
        ("a: 1 # reviewed \u2029b: 2\n", 1, 17, "U+2029 PARAGRAPH SEPARATOR"),
        ("a: 1 # reviewed \x85b: 2\n", 1, 17, "U+0085 NEXT LINE"),
        ("a: 1 # reviewed \x0bb: 2\n", 1, 17, "U+000B LINE TABULATION"),
        ("a: 1 # reviewed \x0cb: 2\n", 1, 17, "U+000C FORM FEED"),
        ("a: 1\r\nc: 2 # reviewed \rb: 2\r\n", 2, 17, "U+000D CARRIAGE RETURN alone"),
        ("a: 1\nb:\u00a02\n", 2, 3, "U+00A0 NO-BREAK SPACE only looks like a space; write a plain space"),
        ("a: x\u3000\n", 1, 5, "U+3000 IDEOGRAPHIC SPACE"),
        ("a: we\u200bapons\n", 1, 6, "U+200B ZERO WIDTH SPACE cannot be seen; remove it"),
        ("a: 1\nb: x\ufeff\n", 2, 5, "U+FEFF ZERO WIDTH NO-BREAK SPACE cannot be seen"),
        ("a: x # \u202e\n", 1, 8, "U+202E RIGHT-TO-LEFT OVERRIDE cannot be seen"),
        ("a: 1\n".encode("utf-16"), 1, 1, "UTF-16 or UTF-32 text; save the file as UTF-8"),
        ("a: 1\n".encode("utf-16-be"), 1, 1, "UTF-16 or UTF-32 text; save the file as UTF-8"),
        ("a: \x07\n", 1, 4, "character 0x0007 is not allowed"),
        ('a: "\\UFFFFFFFF"\n', 1, 1, "out of range"),
        ('a: "\\ud800"\n', 1, 4, "half of a surrogate pair"),
        ("a: 1\nb: \0\n", 2, 1, "a NUL byte"),
        (b"a: 1\nb: \xff\n", 2, 1, "byte 0xff is not UTF-8"),
    ],
)
def test_what_a_policy_may_not_contain_is_told_with_its_place(text, line, column, message):
    found = issues_of(text)
    assert len(found) == 1
    assert found[0].startswith(f"p.yaml:{line}:{column}: ")
    assert message in found[0]


def test_all_problems_are_told_at_once():
    found = issues_of("a: *x\nb: &y 1\nb: !t 2\n")
    assert [one.splitlines()[0].split(": ", 1)[0] for one in found] == [
        "p.yaml:1:4",
        "p.yaml:2:4",
        "p.yaml:3:1",
        "p.yaml:3:4",
    ]


def test_depth_is_limited_at_the_place_that_is_too_deep():
    def nest(depth):
        return "[" * depth + "]" * depth

    assert issues_of(nest(MAX_DEPTH)) == []
    found = issues_of(nest(MAX_DEPTH + 1))
    assert len(found) == 1
    assert found[0].startswith(f"p.yaml:1:{MAX_DEPTH + 1}: nested more than {MAX_DEPTH} levels deep")
    for hostile in ("[", "{a: ", "- ", "? ", "? ["):
        assert len(issues_of(hostile * (MAX_BYTES // len(hostile)))) == 1  # at once, and without a recursion error


def test_size_is_limited():
    assert issues_of("#" * MAX_BYTES) == []
    assert "expected at most 65536 bytes" in issues_of("#" * (MAX_BYTES + 1))[0]


def test_the_caret_points_at_the_place_even_in_a_long_line():
    (short,) = issues_of("name: x\nbad: *here\n")
    assert short.splitlines()[1:] == ["  2 | bad: *here", "    |      ^^^^^"]
    (long,) = issues_of("a: '" + "x" * 500 + "'\na" + "b" * 300 + ": *here\n")
    snippet, caret = long.splitlines()[1:]
    assert snippet[caret.index("^") :].startswith("*here")
    assert len(snippet) < 130


def test_control_characters_never_reach_the_terminal():
    shown = issues_of("a: *x # \u202e\x85".encode())
    assert len(shown) == 3
    assert not {"\u202e", "\x85"} & set("".join(shown))


def test_what_looks_like_another_line_says_nothing(tmp_path):
    document = parse_document(
        "adapters: deny # reviewed \u2028adapters: allow\nb: 'x\\u00a0'\nc: \"\\u00a0\"\r\n".encode(), "p"
    )
    assert document.value == {"adapters": "deny", "b": "x\\u00a0", "c": "\u00a0"}  # as an escape it can be seen
    assert len(document.issues) == 1


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(PolicyFileError, match="does not exist"):
        read_document(tmp_path / "none.yaml", "none.yaml")
    with pytest.raises(PolicyFileError, match="is a folder"):
        read_document(tmp_path, "folder")


plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**6), 10**6),
    st.text(string.ascii_letters + " :#-'\"", max_size=12),
)
trees = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(string.ascii_lowercase, min_size=1), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(trees)
def test_what_pyyaml_writes_is_read_back(tree):
    text = yaml.safe_dump(tree, default_flow_style=False)
    document = parse_document(text.encode(), "p.yaml")
    if not any("nested more" in issue.message for issue in document.issues):
        assert document.value == tree


yaml_like = st.text(st.sampled_from("ab01:-?{}[],&*!|>'\"%@`#~ \n\t\\xuU.\r\x85\ufeff\ud7ff"), max_size=60)


@given(st.one_of(st.binary(max_size=80), yaml_like.map(lambda text: text.encode())))
def test_any_bytes_give_a_document_or_issues_with_valid_places(data):
    lines = data.count(b"\n") + data.count(b"\r") + data.count("\x85".encode()) + 2
    for shown in issues_of(data):
        line, column = map(int, re.match(r"p\.yaml:(\d+):(\d+): ", shown).groups())
        assert 1 <= line <= lines
        assert column >= 1
