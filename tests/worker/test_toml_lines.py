from __future__ import annotations

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from engine.worker.toml_lines import locate_keys


def test_lines_of_all_kinds_of_keys_are_found():
    text = '''\
top.dotted = 1            # line 1
"quoted key" = 2
'literal.key'.x = 3

[table] # comment with [brackets]
a = """
[not.a.table]
b = 1
"""""
c = \'\'\'
d = 2\'\'\'
e = [ # ]
  "]", \'[\', { f = 1 },
]
g = { h = "\\"}", i = [1] }
j = "# no comment" # but this

[[array]]
k = 1
[array.sub]
l = 1
  [[array]]
  k = 2
  [array . sub."deep er"]
  m = 1
[[array.inner]]
[[array.inner]]
n = 1
'''
    tomllib.loads(text)

    assert locate_keys(text) == {
        "top.dotted": 1,
        '"quoted key"': 2,
        '"literal.key".x': 3,
        "table": 5,
        "table.a": 6,
        "table.c": 10,
        "table.e": 12,
        "table.g": 15,
        "table.j": 16,
        "array": 18,
        "array[0]": 18,
        "array[0].k": 19,
        "array[0].sub": 20,
        "array[0].sub.l": 21,
        "array[1]": 22,
        "array[1].k": 23,
        'array[1].sub."deep er"': 24,
        'array[1].sub."deep er".m': 25,
        "array[1].inner": 26,
        "array[1].inner[0]": 26,
        "array[1].inner[1]": 27,
        "array[1].inner[1].n": 28,
    }


def test_windows_line_ends_count_once():
    assert locate_keys("[a]\r\n\r\nb = 1\r\nc = 2\r\n") == {"a": 1, "a.b": 3, "a.c": 4}


def test_the_last_line_needs_no_line_end():
    assert locate_keys("a = 1\nb = 2") == {"a": 1, "b": 2}


# Text in the four notations of TOML, full of what could be taken for structure.
HARD = st.text(alphabet="ab[]{}#=,.\"' \n", max_size=12)
STRINGS = HARD.map(lambda text: '"' + text.replace('"', '\\"').replace("\n", "\\n") + '"') | HARD.map(
    lambda text: '"""' + text.replace('"', '\\"') + '"""'
) | HARD.map(lambda text: "'''" + text.replace("'", "") + "'''") | HARD.map(
    lambda text: "'" + text.replace("'", "").replace("\n", "") + "'"
)  # fmt: skip
VALUES = STRINGS | st.lists(STRINGS, max_size=3).map(lambda items: "[\n" + ",\n".join(items) + "]")


@given(st.lists(VALUES, max_size=6))
def test_no_value_can_hide_or_invent_a_key(values: list[str]):
    text, expected = "[t]\n", {"t": 1}
    for number, value in enumerate(values):
        expected[f"t.k{number}"] = text.count("\n") + 1
        text += f"k{number} = {value} # comment\n"
    tomllib.loads(text)

    assert locate_keys(text) == expected
