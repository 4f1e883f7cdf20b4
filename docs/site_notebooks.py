"""Notebooks of the documentation: run, and turned into pages of the site.

In the repository they are kept without outputs. What the site shows is what they gave when it was built.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

TIMEOUT_S = 600
START_S = 300

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def executed(path: Path) -> Any:
    """Return a notebook with its outputs, run from the first cell in an empty folder.

    Args:
        path: The .ipynb file; it is not written to.

    Raises:
        CellExecutionError: A cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as sockets:
        # Sockets in the file system, no open ports; by a whole path, since the kernel works in another folder than this process.
        manager = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/kernel")
        client = NotebookClient(
            notebook, km=manager, timeout=TIMEOUT_S, startup_timeout=START_S, resources={"metadata": {"path": folder}}
        )
        # The kernel ends with the notebook. tqdm would print that it has no widgets for its bars: a page has no use for them.
        client.execute(cleanup_kc=True, env={**os.environ, "PYTHONWARNINGS": "ignore:IProgress not found"})
    return notebook


def notebook_page(path: Path, run: bool) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and the pictures that it shows by name.

    Args:
        path: The .ipynb file.
        run: Whether to run it; otherwise its cells stand without outputs.
    """
    notebook = executed(path) if run else nbformat.read(path, as_version=4)
    exporter = MarkdownExporter()
    text, resources = exporter.from_notebook_node(
        notebook, resources={"output_files_dir": f"{path.stem}-outputs", "unique_key": path.stem}
    )
    return _COLOURS.sub("", text), resources.get("outputs", {})
