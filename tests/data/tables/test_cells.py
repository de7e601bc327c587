"""Table files as programs write them: read as they are, or refused with the cause."""

import gzip

import pytest

from polyclinic.data.tables.cells import parse_cells
from polyclinic.errors import DataError


def rows(text, columns=None):
    """The names of the columns, then the cells of each row."""
    content = text if isinstance(text, bytes) else text.encode()
    frame = parse_cells(content, "t.csv", columns)
    return [frame.columns.tolist(), *frame.to_numpy().tolist()]


def refusal(text, columns=None):
    with pytest.raises(DataError, match=r"P201 The table 't\.csv'") as caught:
        rows(text, columns)
    return str(caught.value).removeprefix("P201 The table 't.csv' ")


AB = [["a", "b"], ["1", "2"], ["3", "4"]]


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1,2\n3,4\n",
        "a,b\r\n1,2\r\n3,4\r\n",
        "a,b\r1,2\r3,4\r",
        "a,b\r\n1,2\n3,4\r",
        "\ufeffa,b\n1,2\n3,4",
        "a|b\n1|2\n3|4\n",
        "sep=;\na;b\n1;2\n3;4\n",
        '\ufeff"SEP=|"\r\na|b\r\n1|2\r\n3|4\r\n',
        "sep=\t\na\tb\n1\t2\n3\t4\n",
        "# made by a program; 2021, and more\n#\n\na,b\n1,2\n3,4\n",
        "\n\na,b\n\n1,2\n   \n3,4\n\n",
        'a,b\n"1","2"\n"3", "4" \n',
        " a , b \n\u00a01\u00a0,\u200b2\u200b\n3 , 4\n",
        "a;b;\n1;2;\n3;4;\n",
        "a;b\n1;2;\n3;4;;;\n",
        "a;b;;\n1;2\n3;4;\n",
        "a,b\n1,2\n3,4\n\x1a",
    ],
)
def test_what_programs_put_around_a_table_changes_no_cell(text):
    assert rows(text) == AB


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"vol, left, mm, ml";x\n1;2\n', [["vol, left, mm, ml", "x"], ["1", "2"]]),
        ("id;vol, left;x\n1;2,5;3,1\n", [["id", "vol, left", "x"], ["1", "2,5", "3,1"]]),
        ("id\tvol, l, r\n1\t2\n", [["id", "vol, l, r"], ["1", "2"]]),
        ("id;x;y\n1;2,5;3,5\n", [["id", "x", "y"], ["1", "2,5", "3,5"]]),
        ('id,n\n1,5" tube\n2,"a ""b"", c"\n', [["id", "n"], ["1", '5" tube'], ["2", 'a "b", c']]),
        ('id,n\n1,"A" north\n', [["id", "n"], ["1", "A north"]]),
        ('id,n,x\n1,"two\nlines",5\n', [["id", "n", "x"], ["1", "two\nlines", "5"]]),
        ("#IID,SEX\n1,2\n#3,1\n", [["#IID", "SEX"], ["1", "2"], ["#3", "1"]]),
        ("# note\n#IID,SEX\n1,2\n", [["#IID", "SEX"], ["1", "2"]]),
        (",a\n0,5\n1,6\n", [["", "a"], ["0", "5"], ["1", "6"]]),
        ("a;b;\n1;2;x\n", [["a", "b", ""], ["1", "2", "x"]]),
        ("a,b\n1,2\n,\n", [["a", "b"], ["1", "2"], ["", ""]]),
        ("participant_id\nsub-01\n", [["participant_id"], ["sub-01"]]),
        ("a,b\n", [["a", "b"]]),
        ("a,b\n1,x\u2028y\n", [["a", "b"], ["1", "x\u2028y"]]),
    ],
)
def test_cells_keep_what_is_in_them(text, expected):
    assert rows(text) == expected


def test_without_a_header_the_names_tell_the_separator():
    assert rows("1,5;2,5;3,5\n2,5;3,5;4,5\n", ["a", "b", "c"])[1] == ["1,5", "2,5", "3,5"]
    assert rows("1;2;\n3;4;\n", ["a", "b"])[1:] == [["1", "2"], ["3", "4"]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b,c\n1,2,3\n4,5\n6\n7,8,9\n", "has 2 rows with too few cells (lines 3 to 4): its first line has 3, line 3"),
        ("# x\n\na,b\n1,2\n3\n4,5\n", "has 1 row with too few cells (line 5): its first line has 2, line 5 has 1."),
        ('a,b\n1,"2\n2"\n3\n4,5\n', "has 1 row with too few cells (line 4)"),
        (
            "a,b\n1,2,3\n",
            "has 1 row with too many cells (line 2): its first line has 2, line 2 has 3. Mend those lines",
        ),
        ("a,b,c\n1,2\n3,4,5,6\n", "has 1 row with too few cells (line 2) and 1 row with too many cells (line 3)"),
        ("a,b,c\n1,2,3\n4,5", "(line 3): its first line has 3, line 3 has 2. The file ends within a row, so its copy"),
        ("a,b\n" + "1,2\n3\n" * 9, "(lines 3, 5, 7, 9 and 5 more places)"),
        ('a,b\n1,2\n3,"4\n5,6\n', "has a quote in line 3 that nothing closes"),
        ('id,n,x\n1,"tall,5\n2,x,6\n3,"short,6\n', "has a cell that seems to hold whole rows; it begins in line 2"),
        ('id,n,x\n1,"tall,5\n3,abc",6\n', "has a cell that seems to hold whole rows; it begins in line 2"),
        ("a,b\n1,2\n# end\n3,4\n", "Comments (#) may stand above the first line only"),
        (
            "My export\nid,site,x\n1,A,3\n",
            "If the first line is a title and not the names of the columns, take it out.",
        ),
        ("My export;;\nid;site;x\n1;A;3\n", "has a first line with one text, which names no columns."),
        ('a,b\n"1",2,3\n"2",2,3\n"3",2,3\n', "Are there decimal commas? Or has R written names of rows"),
        ("a;b,c\n1;2,5\n2;3,5\n", "does not tell how its columns are separated: by comma or semicolon."),
        ("sep=,\na;b\n1;2\n", "has one column only, in which every cell has the same number of semicolons."),
        ('"a,b"\n"1,2"\n', "has one column only, in which every cell has the same number of commas."),
        ("id site x\n1 A 3\n2 B 4\n", "seems to separate its columns by blanks"),
        ("id,x\n1,2\nid,x\n3,4\n", "repeats the names of its columns (line 3)."),
        ("id,x\n1,2\nx,id\n3,4\n", "repeats the names of its columns (line 3)."),
        (
            "id,vol\n,mm3\na,1\nb,2\nc,3\n",
            "has a second line that is no case: 'vol' is a text there and a number below.",
        ),
        ("a,b\n1,2\x00\n", "has NUL characters"),
        ("a,b\n1,2\n".encode("utf-16"), "is not UTF-8 text. Save it as CSV in UTF-8."),
        ("a,Köln\n1,2\n".encode("latin-1"), "is not UTF-8 text. Save it as CSV in UTF-8."),
        (b"PK\x03\x04 ...", "is not UTF-8 text. It is a spreadsheet or an archive"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0), "is not UTF-8 text."),
        ("<!DOCTYPE html>\n<html>404, not found</html>\n", "is a web page or XML."),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n", "is a pointer of Git LFS"),
        ("a,b\n1," + "x" * 200_000 + "\n", "has a cell that can't be read in line 2"),
        ("# only\n# comments\n", "is empty."),
        ("\n \n", "is empty."),
    ],
)
def test_what_does_not_fit_is_refused_with_its_cause(text, expected):
    assert expected in refusal(text)


def test_without_a_header():
    names = ["id", "x"]
    assert refusal("id,x\n1,2\n", names).startswith("has a first line with the names that `columns` gives.")
    assert refusal("1,2\n3\n5,6\n", names).startswith("has 1 row with too few cells (line 2): its others have 2")
    assert refusal("# a, b\n1,2\n", names).startswith("has a line 1 that is a comment or a case")
    assert rows("# a\n1,2\n", names) == [names, ["1", "2"]]


def numbers(last, *, end=""):
    return "id,x\n" + "".join(f"{number},{number}.5\n" for number in range(20, 40)) + f"40,{last}{end}"


def test_a_last_number_that_is_cut_off():
    assert refusal(numbers("1")).startswith("does not end with a line end, and its last number has fewer decimals")
    for whole in (numbers("1", end="\n"), numbers("1.5"), numbers("")):
        assert len(rows(whole)) == 22


def test_the_first_case_is_not_taken_for_units():
    assert len(rows("id,site,x\n1,A,?\n2,A,2\n3,B,3\n4,B,4\n")) == 5
    assert len(rows("id,site,x\na,A,NA\nb,A,2\nc,B,3\nd,B,4\n")) == 5
    assert len(rows("id,site,x\na,A,b\nb,A,2\nc,B,c\nd,B,4\n")) == 5


@pytest.mark.parametrize(
    "last",
    ["Total,,10,", "mean,,2.5,", "A,Total,10,2", "B,Mean ± SD,2.5,", "Summe,,10,", ",Total,10,"],
)
def test_a_line_that_sums_up_the_others_is_no_case(last):
    table = "site,pid,x,y\nA,P1,1,0\nA,P2,2,1\nB,P3,3,0\nB,P4,4,1\n"
    assert "has a last line that is no case" in refusal(table + last + "\n")


@pytest.mark.parametrize("last", ["B,P5,total,1", "A,Totaro,10,1"])
def test_a_last_case_with_such_a_word_is_one(last):
    table = "site,pid,surgery,y\nA,P1,partial,0\nA,P2,total,1\nB,P3,partial,0\nB,P4,partial,1\n"
    assert len(rows(table + last + "\n")) == 1 + 5
