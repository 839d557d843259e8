"""CSV files give back what was written: texts, numbers, missing numbers."""

from __future__ import annotations

import math
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.tables import read_csv, write_csv

TRAPS = ["007", "1e3", "NA", "nan", "null", "", "a\rb", 'x"y,z\r\n', " s ", "True", "1", "-inf"]
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(TRAPS)


def write_and_read(table: pd.DataFrame) -> pd.DataFrame:
    with TemporaryDirectory() as folder:
        write_csv(f"{folder}/t.csv", table)
        # Others read as many rows, too.
        others = pd.read_csv(f"{folder}/t.csv", dtype=str, keep_default_na=False)
        assert len(others) == len(table)
        return read_csv(f"{folder}/t.csv")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(TEXTS, st.floats(), st.integers(-(2**63), 2**63 - 1)), min_size=1))
def test_every_text_and_number_comes_back(rows):
    table = pd.DataFrame(rows, columns=["text", "float", "int"]).astype({"text": object})
    pd.testing.assert_frame_equal(write_and_read(table), table, check_dtype=False)


def test_eight_verdicts_stay_eight():
    table = pd.DataFrame({"judged": ["Paris\r\rthe city\r"] * 8, "value": [1.0] * 8})
    pd.testing.assert_frame_equal(write_and_read(table), table)


def test_missing_numbers_are_missing_and_empty_texts_are_empty():
    table = pd.DataFrame({"n": [1.0, math.nan], "none": [math.nan] * 2, "text": ["", "x"]})
    table = table.assign(empty=["", ""], truth=[True, False])
    pd.testing.assert_frame_equal(write_and_read(table), table, check_dtype=False)


def test_what_pandas_wrote_is_read(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfid,code,n\r\n007,NA,1\r\n008,1e3,\r\n")
    table = read_csv(path)
    assert table["id"].tolist() == ["007", "008"]
    assert table["code"].tolist() == ["NA", "1e3"]
    assert table["n"].fillna(-1).tolist() == [1.0, -1.0]
    assert read_csv(path, texts=["n"])["n"].tolist() == ["1", ""]


@pytest.mark.parametrize(
    ("text", "says"),
    [("a,b\n1,2\n3\n", "line 3: 1 cells, and the header has 2"), ('a\n"x\n', "quotation mark")],
)
def test_what_is_no_table_is_refused(tmp_path, text, says):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=says):
        read_csv(tmp_path / "t.csv")
