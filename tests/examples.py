"""Runs examples as programs, each in a process of its own: ``python examples.py < requests > results``.

The processes are forked from one that has imported what examples import, except this project: registering
``optim="arturo"`` in one example must not help the next, and importing the frameworks takes longer than running them.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import traceback
import warnings
from contextlib import suppress
from types import ModuleType
from typing import Any

IMPORTED_ONCE = ("torch", "torch.distributed.optim", "transformers.training_args", "accelerate", "lightning")


def main() -> None:
    sys.path[0] = ""  # as of a program given by -c
    for name in IMPORTED_ONCE:
        with suppress(ImportError):  # an example that needs it says so
            importlib.import_module(name)
    ours = [name for name in sys.modules if name.startswith(("arturo_", "recipes"))]
    if ours:
        raise SystemExit(f"the frameworks have imported {ours}")
    requests = json.load(sys.stdin)
    with os.fdopen(os.dup(1), "w") as results:
        json.dump([_run(**request) for request in requests], results)


def _run(code: str, folder: str) -> dict[str, Any]:
    """Exit code and output of one example, taken as the main program in a folder."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os._exit(_as_program(code, folder))
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return {"code": os.waitstatus_to_exitcode(status), "output": output.read().decode(errors="replace")}


def _as_program(code: str, folder: str) -> int:
    try:
        warnings.simplefilter("ignore")
        os.chdir(folder)
        program = ModuleType("__main__")
        sys.modules["__main__"], sys.argv = program, ["-c"]
        exec(compile(code, "<example>", "exec"), vars(program))
        return 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    main()
