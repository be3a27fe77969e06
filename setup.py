"""Thin driver: everything native is decided in CMakeLists.txt; this runs cmake and says where the results go."""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PATH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])


def find(program: str) -> str:
    return shutil.which(program, path=PATH) or sys.exit(f"sparsekern: {program} not found: pip install {program}")


def torch_folder() -> str:
    """The torch package to build against; pip's isolated build hides it from import, but not from the path."""
    spec = importlib.util.find_spec("torch")
    folders = [os.environ.get("SPARSEKERN_TORCH_DIR"), spec and spec.origin and os.path.dirname(spec.origin)]
    for folder in [*folders, os.path.join(sysconfig.get_path("platlib"), "torch")]:
        if folder and os.path.exists(os.path.join(folder, "include", "torch", "csrc", "stable", "library.h")):
            return folder
    return sys.exit("sparsekern: install torch 2.11 or later first: pip install torch")


class CMakeBuild(build_ext):
    """One cmake run builds every native file and installs them into the package folder."""

    def run(self) -> None:
        in_place = self.inplace or getattr(self, "editable_mode", False)
        out = ROOT if in_place else Path(self.build_lib).resolve()
        build = ROOT / "build" / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"  # kept: incremental
        configure = [
            *(find("cmake"), "-S", ROOT, "-B", build, "-GNinja", f"-DCMAKE_MAKE_PROGRAM={find('ninja')}"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DSPARSEKERN_VERSION={self.distribution.get_version()}",
            f"-DSPARSEKERN_OUT_DIR={out / 'sparsekern'}",
            f"-DSPARSEKERN_TORCH_DIR={torch_folder()}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        try:
            import pybind11

            configure.append(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
        except ImportError:
            pass  # CMakeLists.txt takes the headers that torch carries
        jobs = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
        compile_, install = [find("cmake"), "--build", build, "--parallel", jobs], [find("cmake"), "--install", build]
        for command in (configure, compile_, install):
            if subprocess.run([str(part) for part in command]).returncode:
                sys.exit("sparsekern: the native build failed; the reason is above")

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return []


setup(ext_modules=[Extension("sparsekern._native", [])], cmdclass={"build_ext": CMakeBuild})
