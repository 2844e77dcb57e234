"""Stands in for ``grpcurl``: takes its flags, as far as docs/grpcurl.md uses them, and lets ``buf curl`` do the work.

Both speak gRPC and reflection, and print messages as the same JSON. The table at the end of the page is what this does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="grpcurl", allow_abbrev=False)
    parser.add_argument("-plaintext", action="store_true", required=True)
    parser.add_argument("-unix", action="store_true")
    parser.add_argument("-authority")
    parser.add_argument("-d", default="")
    parser.add_argument("address")
    parser.add_argument("symbol")
    options = parser.parse_args(arguments)
    command = ["buf", "curl", "--protocol", "grpc"]
    command += ["--unix-socket", options.address] if options.unix else []
    server = f"http://{options.authority if options.unix else options.address}"
    if options.symbol == "list":
        command += ["--list-services", server]
    else:
        command += ["-d", "@-" if options.d == "@" else options.d, f"{server}/{options.symbol}"]
    done = subprocess.run(command, stderr=subprocess.PIPE, check=False)
    if done.returncode >= 8:
        status = json.loads(done.stderr)
        code = "".join(word.capitalize() for word in status["code"].split("_"))
        print(f"ERROR:\n  Code: {code}\n  Message: {status['message']}", file=sys.stderr)
        return 64 + done.returncode // 8
    sys.stderr.buffer.write(done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
