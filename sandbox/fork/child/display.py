"""Rich output, as a notebook has it: `display(...)`, pictures of matplotlib, what the result shows besides its repr."""

from __future__ import annotations

import base64
import builtins
import importlib.util
import io
import sys
from typing import Any

from . import wire

__builtins__ = dict(vars(builtins))  # type: ignore[assignment]

# Not `_repr_latex_`: every result of sympy has one, and it costs milliseconds that nobody asked for.
_FORMS = {
    "image/png": "_repr_png_",
    "image/jpeg": "_repr_jpeg_",
    "image/svg+xml": "_repr_svg_",
    "text/html": "_repr_html_",
    "text/markdown": "_repr_markdown_",
}
# The environment of the fork server names it; code that picks "agg" itself wants no pictures shown.
_BACKEND = "module://matplotlib.backends.backend_agg"
_bundles: list[dict[bytes, bytes]] = []
_room = 0


def start() -> None:
    """A new call: nothing has been shown."""
    global _room
    _bundles.clear()
    _room = wire.MAX_BUNDLE_BYTES


def taken() -> bytes:
    """What this call has shown, packed."""
    return wire.pack_bundles(_bundles) if _bundles else b""


def display(*objects: Any, **_: Any) -> None:
    """Show each object in its richest forms, and as text. IPython's options (`metadata`, ...) are accepted, unused."""
    for thing in objects:
        _show({"text/plain": repr(thing), **_rich(thing)})


def show_result(value: Any) -> None:
    """The forms of a result besides its repr, which travels by itself."""
    forms = _rich(value)
    if forms:
        _show(forms)


def flush_figures() -> None:
    """Show and close matplotlib's open figures: a notebook does so at the end of each cell."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None or pyplot.get_backend() != _BACKEND:
        return
    for number in pyplot.get_fignums():
        display(pyplot.figure(number))
    pyplot.close("all")


def _rich(thing: Any) -> dict[str, str]:
    kind = type(thing)
    figure = sys.modules.get("matplotlib.figure")
    if figure is not None and isinstance(thing, figure.Figure):
        file = io.BytesIO()
        thing.savefig(file, format="png", bbox_inches="tight")
        return {"image/png": base64.b64encode(file.getvalue()).decode()}
    forms = {}
    for mime, method in _FORMS.items():
        if hasattr(kind, method):
            try:
                data = getattr(thing, method)()
            except Exception:  # as a notebook does: one form less
                continue
            data = data[0] if isinstance(data, tuple) else data
            if isinstance(data, bytes):
                data = base64.b64encode(data).decode()
            if isinstance(data, str):
                forms[mime] = data
    return forms


def _show(forms: dict[str, str]) -> None:
    """Keep it if there is room; what is too large is left out, form by form, text last."""
    global _room
    bundle = {}
    for mime, data in reversed(forms.items()):
        form = str.encode(data, "utf-8", "backslashreplace")
        if len(form) <= _room:
            bundle[mime.encode()] = form
            _room -= len(form)
    if bundle and len(_bundles) < wire.MAX_BUNDLES:
        _bundles.append(bundle)


def _patch_pyplot(pyplot: Any) -> None:
    show = pyplot.show
    pyplot.show = lambda *a, **k: flush_figures() if pyplot.get_backend() == _BACKEND else show(*a, **k)


def _patch_ipython(module: Any) -> None:
    module.display = display  # without IPython's shell its own prints a repr


_PATCHES = {"matplotlib.pyplot": _patch_pyplot, "IPython.display": _patch_ipython}


class _Finder:
    """Finds these modules like anybody else, each once, and makes what shows ours."""

    def __init__(self) -> None:
        self._left = dict(_PATCHES)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        patch = self._left.pop(name, None)
        spec = importlib.util.find_spec(name) if patch is not None else None
        if spec is not None and spec.loader is not None and patch is not None:
            load = spec.loader.exec_module

            def load_ours(module: Any) -> None:
                load(module)
                patch(module)

            spec.loader.exec_module = load_ours  # type: ignore[method-assign]
        return spec


def install() -> None:
    """In the fork server: `display` for all code, and a watch for those who show."""
    builtins.display = display  # type: ignore[attr-defined]
    sys.meta_path.insert(0, _Finder())
