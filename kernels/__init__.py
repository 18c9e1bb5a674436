"""The kernel sets and their contract: `contract.py` describes it, kernels/README.md the kernels.

Installed, this package is `barlow_fast.kernels`. In a clone its folder shadows Hugging Face's
package `kernels`: importing that name returns theirs.
"""

if __name__ == "kernels":
    import sys
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec
    from pathlib import Path

    others = [p for p in sys.path if not Path(p, "kernels", "contract.py").exists()]
    spec = PathFinder.find_spec(__name__, others)
    if spec is None or spec.origin is None:  # a folder without __init__.py is not the package
        raise ModuleNotFoundError("No module named 'kernels'", name=__name__)
    sys.modules[__name__] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[__name__])
else:
    from .contract import Coefficients, GradientInputs, KernelSet, Layout, ViewGradients
    from .sets import KERNEL_SETS, load, why_unusable

    __all__ = [
        "KERNEL_SETS",
        "Coefficients",
        "GradientInputs",
        "KernelSet",
        "Layout",
        "ViewGradients",
        "load",
        "why_unusable",
    ]
