"""Compiles the CPU kernel into the package, where there is a C++ compiler; everything else is in pyproject.toml.

Without one the package installs and works as well, only slower. The library has a plain C interface and no ABI of torch
or Python in it, so one wheel serves every Python of a platform.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FOLDER = "arturo_core/kernels/cpu"
SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
LIBRARY = "libarturo_cpu" + SUFFIX

#: Rounding is part of what is computed: nothing is contracted that is not written so, and NaN stays NaN.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-w",
]

#: Instruction sets of single files; which of them runs is decided on the machine it runs on.
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
OF_FILE = {
    "avx2.cpp": AVX2,
    "avx512.cpp": [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}


class BuildLibrary(build_ext):
    """Builds a library to be loaded by ctypes in place of an extension module."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")[:-1], LIBRARY))

    def build_extension(self, ext: Extension) -> None:
        for extra in (["-fopenmp"], []):
            try:
                self._build(ext, extra)
                return
            except Exception as error:
                reason = str(error).strip() or type(error).__name__
        print(
            f"arturo-optim: installed without its compiled CPU kernel, which is optional ({reason}).", file=sys.stderr
        )

    def _build(self, ext: Extension, extra: list[str]) -> None:
        if self.compiler.compiler_type != "unix":
            raise RuntimeError(f"a compiler like g++ or clang++ is needed, found {self.compiler.compiler_type}")
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        objects = []
        for source in ext.sources:
            flags = [*FLAGS, *extra, *(OF_FILE.get(Path(source).name, []) if x86 else [])]
            objects += self.compiler.compile(
                [source], output_dir=self.build_temp, extra_postargs=flags, depends=ext.depends
            )
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, str(target), extra_postargs=extra, target_lang="c++")


class Wheel(bdist_wheel):
    """One wheel a platform, or one for all where the library could not be built."""

    def get_tag(self) -> tuple[str, str, str]:
        built = any(Path(output).exists() for output in self.get_finalized_command("build_ext").get_outputs())
        return "py3", "none", super().get_tag()[2] if built else "any"


if sys.platform == "darwin":
    # Two architectures at once would need two sets of flags.
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")

FILES = ["library.cpp", "plain.cpp", "avx2.cpp", "avx512.cpp"]
HEADERS = ["path", "passes", "vectors", "numbers", "powers", "codes", "survey", "observe", "observe_codes", "apply"]

setup(
    ext_modules=[
        Extension(
            "arturo_core.kernels.cpu.library",
            sources=[f"{FOLDER}/{name}" for name in FILES],
            depends=[f"{FOLDER}/{name}.h" for name in HEADERS],
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
)
