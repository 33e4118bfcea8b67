"""docs/quickstart.ipynb as it lies in the repository; `make notebook` executes it from scratch."""

import base64

import nbformat
import pytest

from tests.docs.markdown import links
from tests.docs.notebook import NOTEBOOK, execute, shorten

MOST_BYTES = 300 * 1024
FEWEST_PICTURES = 3
BOOK = nbformat.read(NOTEBOOK, as_version=4)
CODE = [cell for cell in BOOK.cells if cell.cell_type == "code"]


def outputs_of(kind: str) -> list[str]:
    """Outputs of a MIME type, over all cells."""
    return [
        output.data[kind]
        for cell in CODE
        for output in cell.outputs
        if output.output_type in ("display_data", "execute_result") and kind in output.data
    ]


def test_it_was_executed_once_from_top_to_bottom():
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))


def test_no_cell_ended_in_an_error_or_a_warning():
    for cell in CODE:
        for output in cell.outputs:
            assert output.output_type != "error", output.evalue
            assert output.get("name") != "stderr", output.text


def test_it_is_small_enough_to_be_read_on_the_web():
    assert NOTEBOOK.stat().st_size < MOST_BYTES


def test_it_has_its_pictures():
    pictures = [base64.b64decode(text) for text in outputs_of("image/png")]
    assert len(pictures) >= FEWEST_PICTURES
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)


def test_its_links_lead_somewhere():
    for cell in BOOK.cells:
        if cell.cell_type == "markdown":
            for target in links(cell.source):
                assert (NOTEBOOK.parent / target.split("#")[0]).exists(), target


def test_no_output_names_a_folder_of_the_machine_it_was_made_on():
    assert "/tmp/" not in NOTEBOOK.read_text()
    assert "/home/" not in NOTEBOOK.read_text()


def test_a_cell_that_raises_is_seen(tmp_path):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    with pytest.raises(Exception, match="ZeroDivisionError"):
        execute(book, tmp_path)


def test_outputs_are_replaced_and_folders_shortened(tmp_path):
    cell = nbformat.v4.new_code_cell("print('/tmp/timellm-quickstart-a1b2/runs')")
    cell.outputs = [nbformat.v4.new_output("stream", text="old")]
    book = nbformat.v4.new_notebook(cells=[cell])
    execute(book, tmp_path)
    shorten(book)
    assert [output.text for output in book.cells[0].outputs] == ["FOLDER/runs\n"]
