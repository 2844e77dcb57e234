"""Runs parts of a page one after the other in one namespace, with ``await`` at the top level, as a notebook does.

A program for a fresh interpreter: standard input is a JSON list of parts. A line with `END` follows the output of each.
"""

import ast
import asyncio
import inspect
import json
import sys

END = "-- end of part --"


async def main(parts: list[str]) -> None:
    names = {"__name__": "__main__"}
    for number, part in enumerate(parts, 1):
        code = compile(part, f"<part {number}>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        waiting = eval(code, names)
        if inspect.isawaitable(waiting):
            await waiting
        print(END, flush=True)


if __name__ == "__main__":
    asyncio.run(main(json.load(sys.stdin)))
