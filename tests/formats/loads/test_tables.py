"""What `save_trace` writes, `load_trace` reads back unchanged, whole or not at all."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb import FormatError, LoadTrace
from eplb.files import replacing
from eplb.formats import load_trace, save_trace

trace_of: Any = LoadTrace
"""It takes lists for arrays."""

ENDINGS = [".npz", ".csv", ".parquet"]

TRACE = trace_of(
    [[[0, 0, 0], [5, 1, 2]], [[0, 0, 0], [1.5, 1e-300, 7]]],
    ["one", "two"],
    [1e9 + 0.1, 2e9],
    top_k=2,
    model='a "model"',
)


@pytest.fixture(params=ENDINGS, scope="session")
def ending(request: pytest.FixtureRequest) -> str:
    if request.param == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow reads and writes Parquet")
    return str(request.param)


@st.composite
def any_traces(draw: st.DrawFn) -> LoadTrace:
    shape = [draw(st.integers(1, most)) for most in (4, 3, 4)]
    size = int(np.prod(shape))
    kind = draw(
        st.sampled_from(
            [
                st.floats(0, 1e100),
                st.integers(0, 255).map(float),
                st.integers(0, 2**64 - 1).map(float),
                st.sampled_from([0.0, -0.0, 65535.0, 65536.0, 2.0**32, 2.0**53 + 2, 5e-324]),
            ]
        )
    )
    values = draw(st.lists(kind, min_size=size, max_size=size))
    any_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)
    odd = st.sampled_from(["", ",", '"', "\n", "\r\n", "\0", "\ud800", "# {", "é\U0001f600", "0"])
    names = draw(st.lists(any_text | odd, min_size=shape[0], max_size=shape[0]))
    times = st.lists(
        st.floats(allow_nan=False, allow_infinity=False), min_size=shape[0], max_size=shape[0]
    )
    trace: LoadTrace = trace_of(
        np.array(values).reshape(shape),
        names,
        draw(st.none() | times),
        draw(st.none() | st.integers(1, shape[2])),
        draw(st.none() | any_text | odd),
    )
    return trace


@given(trace=any_traces())
def test_any_trace_comes_back(
    ending: str, trace: LoadTrace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("trace") / f"a{ending}"
    save_trace(trace, path)
    again = load_trace(path)
    assert again == trace
    assert not again.loads.flags.writeable


def test_long_names_and_many_columns(ending: str, tmp_path: Path) -> None:
    trace = trace_of(np.ones((2, 1, 2000)), ["x" * 200_000, "y" * 200_000])
    save_trace(trace, tmp_path / f"a{ending}")
    assert load_trace(tmp_path / f"a{ending}") == trace


def test_endings_of_any_case(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"A{ending.upper()}"
    save_trace(TRACE, path)
    assert load_trace(path) == TRACE


def test_npz_is_compact(tmp_path: Path) -> None:
    """Whole numbers take the smallest type; numpy alone can read them."""
    for largest, dtype in [(255, "u1"), (256, "u2"), (65536, "u4"), (2.0**33, "u8"), (0.5, "f8")]:
        save_trace(trace_of([[1, largest]]), tmp_path / "a.npz")
        with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
            assert file["loads"].dtype == np.dtype(dtype)
            assert file["loads"].tolist() == [[[1, largest]]]


def test_csv_is_a_table_for_people(tmp_path: Path) -> None:
    save_trace(TRACE, tmp_path / "a.csv")
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert json.loads(lines[0].removeprefix("# ")) == {"eplb": 1, "top_k": 2, "model": 'a "model"'}
    assert lines[1] == "window,time,layer,0,1,2"
    assert lines[3] == '"one",1000000000.1,1,5,1,2'
    assert lines[5] == '"two",2000000000.0,1,1.5,1e-300,7.0'


def test_long_csv_without_a_note(tmp_path: Path) -> None:
    """Such a table a user writes too."""
    path = tmp_path / "a.csv"
    path.write_text("window,layer,0,1\na,0,1,2\na,1,3,4\n\nb,0,5,6\nb,1,7,8\n")
    assert load_trace(path) == trace_of([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], ["a", "b"])


def test_parquet_is_a_table_for_others(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow reads and writes Parquet")
    save_trace(TRACE, tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["window", "time", "layer", "0", "1", "2"]
    assert table["window"].to_pylist() == ["one", "one", "two", "two"]
    assert table["0"].to_pylist() == [0, 5, 0, 1.5]


def test_plain_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow reads and writes Parquet")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": [1, 2], "y": pa.array([0.5, 3], "f4")}), tmp_path / "a.parquet")
    assert load_trace(tmp_path / "a.parquet") == trace_of([[1, 0.5], [2, 3]])
    columns = {"window": [1, 1, 2, 2], "layer": [0, 1, 0, 1], "0": [1, 2, 3, 4]}
    pq.write_table(pa.table(columns), tmp_path / "b.parquet")
    assert load_trace(tmp_path / "b.parquet") == trace_of([[[1], [2]], [[3], [4]]], ["1", "2"])


HEADED = ["0,1,2", "a,b,c"]

INDEXED = [",0,1,2", "layer,0,1,2", "Layer_ID,a,b,c", "index,x,y,z", "__index_level_0__,0,1,2"]


def test_csv_heading_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("\ufeffexpert 0,expert 1\n1,2\n\n3,4\n", encoding="utf-8")
    assert load_trace(path).total().tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no line of numbers"),
        ("a,b\n", "has no line of numbers"),
        ("1,2\n3,x\n", "line 2 has 'x', no number"),
        ("1,2\n3,1_000\n", "line 2 has '1_000', no number"),
        ("1,2\n3,\u0661\n", "line 2 has '\u0661', no number"),
        ("1,2\n3\n", "line 2 has 1 columns, lines before 2"),
        ("1,-2\n", r"loads\[0, 0, 1\] is -2"),
        ("1,1e999\n", r"loads\[0, 0, 1\] is inf"),
        ('1,"2\n', "not a CSV file"),
        ("0x10,2\n3,4\n", "line 1 has '0x10', which is no number and no name"),
        ("2024-05-01,2\n2024-05-02,4\n", "line 1 has '2024-05-01', which is no number"),
        ("1,2\0\n3,4\n", "line 1 has '2.*', which is no number"),
        ("1,,3\n4,5,6\n", "line 1 has an empty cell"),
        ("1,2,\n", "line 1 has an empty cell"),
        ("1," * 3_000_000, "line 1 is longer than"),
        ("1" * 200_000, "not a CSV file|line 1 has"),
    ],
)
def test_csv_that_is_no_loads(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(FormatError, match=message):
        load_trace(path).total()


@pytest.mark.parametrize("heading", [*HEADED, *INDEXED])
def test_headings_and_indices_of_plain_csv(tmp_path: Path, heading: str) -> None:
    """As data frames are written, with and without their index."""
    indexed = heading in INDEXED
    rows = [[5, 6, 7], [0, 1, 2], [9, 9, 9]]
    lines = [",".join(map(str, [number] * indexed + row)) for number, row in enumerate(rows)]
    path = tmp_path / "a.csv"
    path.write_text("\n".join([heading, *lines]))
    assert load_trace(path) == trace_of(rows)
    if indexed:
        path.write_text("\n".join([heading, *lines[1:]]))
        assert load_trace(path).layers == (1, 2)
        name = heading.partition(",")[0]
        path.write_text("\n".join([heading, *lines[::-1]]))
        message = f"column '{name}' has 1 in row 2 of the table, expected 3 or more: layers stand"
        with pytest.raises(FormatError, match=message):
            load_trace(path)
    else:
        path.write_text("\n".join(lines))
        assert load_trace(path) == trace_of(rows)


def test_plain_csv_without_an_expert(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("layer\n0\n1\n")
    with pytest.raises(FormatError, match="has no column of an expert"):
        load_trace(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("a,b\n0,1,2\n")
    with pytest.raises(FormatError, match="line 2 has 3 columns, lines before 2"):
        load_trace(tmp_path / "a.csv")


@pytest.mark.parametrize("names", [["layer", "0", "1"], ["0", "1", "__index_level_0__"]])
def test_index_of_plain_parquet(tmp_path: Path, names: list[str]) -> None:
    """Data frames have it last in Parquet; here there are several groups of rows."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow reads and writes Parquet")
    import pyarrow.parquet as pq

    columns = {"0": [3, 4, 5], "1": [6, 7, 8]}
    path = tmp_path / "a.parquet"
    for index in ([0, 1, 2], [0, 1, 3], [0, 3, 1]):
        table = pa.table({name: columns.get(name, index) for name in names})
        pq.write_table(table, path, row_group_size=2)
        if index[-1] >= 2:
            assert load_trace(path) == trace_of([[3, 6], [4, 7], [5, 8]])
            assert load_trace(path).layers == (None if index[-1] == 2 else (0, 1, 3))
        else:
            with pytest.raises(FormatError, match="has 1 in row 3 of the table, expected 4 or mo"):
                load_trace(path)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_parquet_as_others_write_it(tmp_path: Path, version: str, dictionary: bool) -> None:
    """Many pages and groups of rows, either kind of page, dictionaries or none."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow reads and writes Parquet")
    import pyarrow.parquet as pq

    loads = np.arange(300_000.0).reshape(-1, 3) % 977
    pq.write_table(
        pa.table({str(number): column for number, column in enumerate(loads.T)}),
        tmp_path / "a.parquet",
        data_page_version=version,
        use_dictionary=dictionary,
        data_page_size=1000,
        row_group_size=30_000,
        compression="snappy",
    )
    assert load_trace(tmp_path / "a.parquet") == trace_of(loads)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"0": ["a"]}, "column '0' is of string, expected numbers"),
        ({"0": [1, None]}, "column '0' has rows without a value"),
        ({"0": [-1]}, r"loads\[0, 0, 0\] is -1"),
        ({"0": [[1]]}, "column '0' is of list|no plain columns"),
        ({"0": [{"a": 1, "b": 2}]}, "no plain columns of numbers"),
        ({"0": []}, "column '0' is of null|has 0 rows"),
        ({}, "no plain columns of numbers"),
        ({"window": ["a"], "layer": [0]}, "has no column of an expert"),
        ({"window": ["a"], "layer": [0], "1": [2]}, "columns window, layer, 1, expected"),
        ({"window": ["a"], "layer": [1], "0": [2]}, "row 1 of the table is of layer 1, expected 0"),
        ({"window": [None], "layer": [0], "0": [2]}, "column 'window' has rows without a value"),
    ],
)
def test_parquet_that_is_no_loads(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow reads and writes Parquet")
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(FormatError, match=message) as raised:
        load_trace(tmp_path / "a.parquet")
    assert str(raised.value).startswith(f"{tmp_path / 'a.parquet'}: ")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,0,1\na,2,1\n", "row 2 of the table is of layer 2, expected 1"),
        ("a,0,1\na,1,1\nb,0,1\n", "cut short, its last window has 1 of 2 layers"),
        ("a,0,1\na,1,1\nb,0,1\na,1,1\n", "row 4 of the table is of another window or time"),
        ("a,0,1\na,1\n", "row 2 of the table has 2 columns, the heading 3"),
        ("a,x,1\n", "row 1 of the table has 'x', no number"),
        ("a,0,1_0\n", "row 1 of the table has '1_0', no number"),
        ("a,\u0660,1\n", "row 1 of the table has '\u0660', no number"),
        ("a,0,nan\n", r"loads\[0, 0, 0\] is nan"),
        ("", "has no line of numbers"),
    ],
)
def test_long_csv_that_is_no_trace(tmp_path: Path, rows: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(f"window,layer,0\n{rows}")
    with pytest.raises(FormatError, match=message):
        load_trace(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ("x", "its note about the loads is no JSON"),
        ("{}", "its note is not of eplb"),
        ('{"eplb": 2}', "is of version 2, known is 1"),
        ('{"eplb": 1, "top_k": "8"}', "top_k is '8', expected a number"),
        ('{"eplb": 1, "top_k": 9}', "top_k is 9: give 1 to 1"),
        ('{"eplb": 1, "model": 8}', "model is no name, but int"),
        ('{"eplb": 1, "names": "a"}', "names are no list of names"),
        ('{"eplb": 1, "names": ["a", "b"]}', "2 names for 1 windows"),
    ],
)
def test_notes_that_lie(tmp_path: Path, note: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(f"# {note}\nwindow,layer,0\na,0,1\n")
    with pytest.raises(FormatError, match=message):
        load_trace(tmp_path / "a.csv")
    arrays: dict[str, Any] = {
        "loads": np.ones((1, 1, 1)),
        "about": np.frombuffer(note.encode(), np.uint8),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(FormatError, match=message):
        load_trace(tmp_path / "a.npz")


def test_unknown_endings_and_paths_that_cannot_be_written(ending: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"a\.json: .* none of \.csv, \.npz, \.parquet"):
        save_trace(TRACE, tmp_path / "a.json")
    with pytest.raises(FormatError, match="cannot be written: No such file"):
        save_trace(TRACE, tmp_path / "none" / f"a{ending}")


class Unreadable(LoadTrace):
    """A trace that cannot be written to its end."""

    def __getattribute__(self, name: str) -> Any:
        if name == "loads":
            raise KeyboardInterrupt
        return super().__getattribute__(name)


def interrupted(path: Path) -> None:
    with replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt


def test_an_interrupt_leaves_what_was_there(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    path.write_text("old")
    broken = trace_of([[1, 2]])
    object.__setattr__(broken, "__class__", Unreadable)
    with pytest.raises(KeyboardInterrupt):
        save_trace(broken, path)
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
