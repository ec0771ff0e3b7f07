"""`python -m lang.graph FILE.json`: prints or draws a graph that was saved."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from lang.graph.graph import Graph, GraphError


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1, and why on stderr, where the file can't be read or holds no graph."""
    parser = argparse.ArgumentParser(prog="python -m lang.graph", description="Prints or draws a saved graph.")
    parser.add_argument("file", metavar="FILE.json", nargs="?", help="what graph.save(...) wrote")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--mermaid", action="store_true", help="as a Mermaid flowchart")
    form.add_argument("--html", metavar="OUT", help="write a page that draws it")
    form.add_argument("--schema", action="store_true", help="no file: the JSON schema of all of them")
    given = parser.parse_args(arguments)
    if given.schema == (given.file is not None):
        parser.error("give either FILE.json or --schema")
    if given.schema:
        print(json.dumps(Graph.json_schema(), indent=1))
        return 0
    try:
        graph = Graph.load(given.file, functions=None)
        if given.html is not None:
            Path(given.html).write_text(graph.html(), encoding="utf-8")
        else:
            print(graph.mermaid() if given.mermaid else graph)
    except (GraphError, OSError) as error:
        print(f"python -m lang.graph: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
