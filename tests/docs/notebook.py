"""Execute docs/quickstart.ipynb from scratch, in a folder of its own.

    python -m tests.docs.notebook               executes it; nothing of it is kept
    python -m tests.docs.notebook --in_place    and keeps the outputs in docs/quickstart.ipynb

A cell that raises ends it with that cell's traceback. Look at the figures after --in_place.
"""

import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
LIMIT_S = 900
"""Seconds for one cell, on a machine that does other things too."""


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Execute all cells, in their order, in a new kernel of this interpreter.

    Args:
        notebook: Its outputs are replaced.
        folder: Where the kernel starts. It finds the repository by way of its parents.
    """
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        timeout=LIMIT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    # The packages of this tree, also where another one is installed; and nothing is left behind.
    client.execute(env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)})
    for cell in notebook.cells:
        cell.metadata.clear()  # times of execution, which differ each time


def shorten(notebook: nbformat.NotebookNode) -> None:
    """Take out of the outputs what says something about this machine only."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = re.sub(r"/\S*/timellm-quickstart-\w+", "FOLDER", output.text)


def main() -> int:
    """Run the command of the module docstring."""
    began = time.monotonic()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # Below docs/, where it lies: the search for the repository begins there.
    with tempfile.TemporaryDirectory(prefix=".notebook-", dir=ROOT / "docs") as folder:
        execute(notebook, Path(folder))
    shorten(notebook)
    if "--in_place" in sys.argv[1:]:
        nbformat.write(notebook, NOTEBOOK)
    print(f"docs/quickstart.ipynb: {len(notebook.cells)} cells, {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
