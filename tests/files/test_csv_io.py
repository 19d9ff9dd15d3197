"""A table opened in a spreadsheet is text and numbers."""

import csv
import io

import pytest

from lvr_jax.files.csv_io import to_csv


@pytest.mark.parametrize("cell", ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3=1", "\tx", "=LINK(\"a\")"])
def test_a_text_that_a_spreadsheet_would_run_is_marked_as_text(cell):
    assert next(csv.reader(io.StringIO(to_csv([[cell]]), newline="")))[0] == f"'{cell}"


@pytest.mark.parametrize("cell", ["+0.8", "-16.5", "-1e-05", "−3.8", "+9.8 [7.1, 12.0]", "-12.5 %", "a=b", "", "0.5"])
def test_numbers_and_other_texts_stay_as_they_are(cell):
    assert next(csv.reader(io.StringIO(to_csv([[cell, "x"]]))))[0] == cell
