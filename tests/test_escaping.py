import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggkit.escaping import defuse_cell, escape_controls, escape_json, restore_cell

BEGINNINGS = (
    "=1+1",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "＝1",
    "=cmd|' /C calc'!A0",
    "-x",
    "+x y",
)
CELLS = st.text(st.sampled_from("'./=+-@ 1a\t\n＝"), max_size=7) | st.text(max_size=6)


@given(st.text())
def test_what_a_terminal_would_obey_is_shown_and_all_else_stays(text):
    shown = escape_controls(text)
    assert not any(unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") for each in shown)
    if text.isprintable():
        assert shown == text


def test_it_is_shown_as_python_writes_it():
    assert escape_controls("a\x1b[2J\r\n\t\x9b\u202e\u2028\udcff") == r"a\x1b[2J\r\n\t\x9b\u202e\u2028\udcff"
    ordinary = "Straße 猫 می\u200cخواهم 👩\u200d🔬 C:\\new\u3000x"
    assert escape_controls(ordinary) == ordinary


@given(st.dictionaries(st.text(), st.text()))
def test_json_keeps_its_value(value):
    for indent in (None, 2):
        shown = escape_json(json.dumps(value, ensure_ascii=False, indent=indent))
        assert json.loads(shown) == value
        assert not any(unicodedata.category(each) in ("Cc", "Cs") for each in shown.replace("\n", ""))


@pytest.mark.parametrize("mark", ["'", "./"])
@given(cell=CELLS)
def test_cells_are_restored_exactly(mark, cell):
    assert restore_cell(defuse_cell(cell, mark=mark), mark=mark) == cell


@pytest.mark.parametrize("cell", BEGINNINGS)
def test_no_formula_is_left(cell):
    assert defuse_cell(cell) == "'" + cell
    assert defuse_cell(cell, mark="./") == "./" + cell


@pytest.mark.parametrize(
    "cell", ["-0.5", "+1", "-1e-9", "-.5", "ant", "a=b", "a-b", "", "-", "'quoted'", "./a.jpg"]
)
def test_numbers_and_ordinary_names_stay(cell):
    for mark in ("'", "./"):
        assert defuse_cell(cell, mark=mark) == cell
        assert restore_cell(cell, mark=mark) == cell
