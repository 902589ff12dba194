"""
Takes out of the locked packages what no start, answer or training uses.

Run in the build by the environment's own Python, after every file was installed by its hash. Whatever is said
here to be there has to be there: a list that no longer fits its packages stops the build. Licences stay, and
so does each package's metadata.
"""

from __future__ import annotations

import platform
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Final

UNUSED: Final = {
    # The packages' own tests and what they test with.
    "torch/test": "programs that test torch",
    "torch/bin/*Test": "more of them",
    "torch/bin/test_*": "more of them",
    "torch/lib/*_test.so": "libraries of theirs",
    "joblib/test": "tests",
    "mpmath/tests": "tests",
    "multiprocess/tests": "tests",
    "networkx/**/tests": "tests",
    "numpy/**/tests": "tests",
    "pandas/tests": "tests",
    "pyarrow/tests": "tests",
    "regex/tests": "tests",
    "scipy/**/tests": "tests",
    "sklearn/**/tests": "tests",
    "sympy/**/tests": "tests",
    "sympy/**/benchmarks": "measures itself",
    # What other programs are compiled with: nothing is compiled in there.
    "torch/include": "headers",
    "torch/share/cmake": "for builds",
    "torch/bin/protoc*": "a compiler",
    "numpy/_core/include": "headers",
    "numpy/_core/lib/*.a": "for builds",
    "openvino/include": "headers",
    "openvino/cmake": "for builds",
    "pyarrow/include": "headers",
    "pyarrow/src": "sources",
    # What OpenVINO loads for hardware that the enclave does not ask for, and for models of other makers.
    "openvino/libs/libopenvino_intel_gpu_plugin.so": "Intel's graphics",
    "openvino/libs/cache.json": "how to run fast on them",
    "openvino/libs/libopenvino_intel_npu_plugin.so": "Intel's neural processors",
    "openvino/libs/libopenvino_onnx_frontend.so.*": "reads ONNX",
    "openvino/libs/libopenvino_paddle_frontend.so.*": "reads Paddle",
    "openvino/libs/libopenvino_tensorflow_frontend.so.*": "reads TensorFlow",
    "openvino/libs/libopenvino_tensorflow_lite_frontend.so.*": "reads TensorFlow Lite",
    "openvino/libs/libopenvino_jax_frontend.so.*": "reads JAX",
    "openvino/libs/libopenvino_gguf_frontend.so.*": "reads GGUF",
    # What Arrow reaches other machines with: the enclave hands it files.
    "pyarrow/_flight.*": "a network protocol",
    "pyarrow/libarrow_flight.so*": "the same",
    "pyarrow/libarrow_python_flight.so*": "the same",
    "pyarrow/_s3fs.*": "Amazon's storage",
    "pyarrow/libarrow_s3.so*": "the same",
    "pyarrow/_gcsfs.*": "Google's storage",
    "pyarrow/_azurefs.*": "Microsoft's storage",
    "pyarrow/_pyarrow_cpp_tests.*": "tests",
    # Pictures and tables to learn with.
    "sklearn/datasets/data": "examples",
    "sklearn/datasets/images": "examples",
}
"""Below site-packages: what goes, and what it is."""

PROGRAMS_KEPT: Final = ("python", "python3", f"python3.{sys.version_info.minor}")


def main() -> None:
    """Removes it all."""
    packages = Path(sysconfig.get_path("purelib"))
    # Found first: one pattern may lie below another.
    found = {pattern: sorted(packages.glob(pattern)) for pattern in UNUSED}
    stale = [pattern for pattern, paths in found.items() if not paths]
    if stale and platform.machine() == "x86_64":
        sys.exit(f"slim.py names what is not there: {', '.join(stale)}. Did an update move or drop it?")
    for path in (path for paths in found.values() for path in paths):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    for program in Path(sysconfig.get_path("scripts")).iterdir():
        if program.name not in PROGRAMS_KEPT:
            program.unlink()


if __name__ == "__main__":
    main()
