"""Runs an unmodified script in which ``--optim arturo`` works.

    python -m arturo_integrations.launch script.py --optim arturo ...
    python -m arturo_integrations.launch -m package.module --optim arturo ...
    torchrun --nproc_per_node 2 -m arturo_integrations.launch script.py --optim arturo ...
    accelerate launch -m arturo_integrations.launch script.py --optim arturo ...

The script runs as ``__main__``, with the arguments, the import path, the exit code and the exceptions that it
has under ``python script.py``. Two differences remain. Transformers is imported before the script begins, so
environment variables that it reads at import (``HF_HOME`` ...) must be set outside the script. And a child
process started by the "spawn" method imports the script without this launcher: training arguments sent to it
arrive intact, but a script that parses ``--optim arturo`` anew in such a child has to import
``arturo_integrations.transformers`` itself.
"""

from __future__ import annotations

import builtins
import io
import os
import pkgutil
import runpy
import sys
import types
from collections.abc import Sequence
from typing import NoReturn

USAGE = """\
usage: python -m arturo_integrations.launch script.py [arguments of the script]
       python -m arturo_integrations.launch -m module [arguments of the module]

Registers optim="arturo" with transformers, then runs the script or module as python would.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Registers the optimizer, then runs a script or module in place of this program.

    ``sys.argv`` and the first entry of ``sys.path`` are changed for good, as the script expects them.

    Args:
        argv: The command line without the program's own name; by default that of this process.

    Raises:
        SystemExit: With 0 for ``--help``, with 2 for a command line that names nothing to run, with 1 if the
            registration fails because transformers is missing, and whatever the script itself raises.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        _usage_error("no script was given")
    if arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        raise SystemExit(0)
    if arguments[0] == "-m":
        if len(arguments) < 2:
            _usage_error("-m needs the name of a module")
        run_module(arguments[1], arguments[2:])
    elif arguments[0].startswith("-"):
        _usage_error(f"unknown option {arguments[0]!r}; the script's own options come after its name")
    elif not os.path.exists(arguments[0]):
        _usage_error(f"there is no file {arguments[0]!r}")
    else:
        run_script(arguments[0], arguments[1:])


def run_script(path: str, arguments: Sequence[str]) -> None:
    """Runs a file, or a directory or archive that holds ``__main__.py``, like ``python path arguments``."""
    _register()
    sys.argv[:] = [path, *arguments]
    is_source_file = pkgutil.get_importer(path) is None
    # `python -m` has put the working directory first, where `python script.py` has the script's own (and
    # runpy puts a directory or archive itself); under `python -P` there is nothing to replace.
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0:1] = [os.path.dirname(os.path.realpath(path))] if is_source_file else []
    if is_source_file:
        _run_source_file(path)
    else:
        runpy.run_path(os.path.abspath(path), run_name="__main__")


def _run_source_file(path: str) -> None:
    """Executes a file as the module ``__main__``, which it stays until the process ends.

    ``runpy.run_path`` would put the launcher back as ``__main__`` when the script's last line has run: too
    early for threads and exit handlers that pickle, and its ``__file__`` may be relative.
    """
    main_module = types.ModuleType("__main__")
    main_module.__file__ = os.path.abspath(path)
    vars(main_module)["__builtins__"] = builtins
    with io.open_code(main_module.__file__) as file:
        code = compile(file.read(), main_module.__file__, "exec", dont_inherit=True)
    sys.modules["__main__"] = main_module
    exec(code, vars(main_module))


def run_module(name: str, arguments: Sequence[str]) -> None:
    """Runs a module or package like ``python -m name arguments``."""
    _register()
    sys.argv[:] = [name, *arguments]  # runpy replaces the first by the module's file
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _register() -> None:
    try:
        import arturo_integrations.transformers  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in ("transformers", "accelerate"):
            raise
        raise SystemExit(
            f"arturo_integrations.launch: {error.name} is missing; pip install 'arturo-optim[transformers]'"
        ) from None


def _usage_error(problem: str) -> NoReturn:
    print(f"{USAGE}\narturo_integrations.launch: error: {problem}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
