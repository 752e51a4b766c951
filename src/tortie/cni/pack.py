"""All that plugins import in one file, compiled: to find, open and read forty files takes longer than to run them.

    magic number of the byte code ─ length ─ `Packed` and `open_pack`, compiled ─ length ─ index ─ code ─ code ─ ...
    index: its rows, and the length of all that follows
    row: module -> is a package, source, its mtime in ns and size, where the code is, its length (0: a library), what it
         imports in turn, which is loaded first

Made when plugins are installed, by the interpreter that is to read it. A module whose source is not as it was then is
imported as always; so is everything when there is no pack, or one of another Python. Run as
`python -I -S pack.py FILE`, it writes one.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, BinaryIO


class Packed:
    """A finder and loader of modules, as importlib has them, for those in a pack."""

    def __init__(self, pack: "BinaryIO") -> None:
        import _frozen_importlib
        import marshal
        import posix

        self._pack = pack
        self._stat, self._loads, self._spec = posix.stat, marshal.loads, _frozen_importlib.ModuleSpec
        self._index: dict[str, tuple[bool, str, int, int, int, int, tuple[str, ...]]]
        self._index, length = self._loads(_part(pack))
        self._start = pack.tell()
        if pack.seek(0, 2) != self._start + length:
            raise OSError("the pack is cut off")

    def find_spec(self, name: str, path: object = None, target: object = None) -> "Any":
        row = self._index.get(name)
        if row is None:
            return None
        for first in row[6]:
            if first not in sys.modules:
                self._load(first)
        return self._found(name)

    def _found(self, name: str) -> "Any":
        package, source, changed, size, _, length, _ = self._index[name]
        try:
            now = self._stat(source)
        except OSError:
            return None
        if (now.st_mtime_ns, now.st_size) != (changed, size):
            return None
        if not length:
            import _frozen_importlib_external

            return self._spec(name, _frozen_importlib_external.ExtensionFileLoader(name, source), origin=source)
        spec = self._spec(name, self, origin=source, is_package=package)  # type: ignore[arg-type]  # as below
        if package:
            spec.submodule_search_locations = [source.rpartition("/")[0]]
        return spec

    def _load(self, name: str) -> None:
        """What importlib would do about a module that another is going to import, without its precautions."""
        spec = self._found(name)
        if spec is None:
            return
        module = type(sys)(name)
        module.__spec__, module.__loader__, module.__package__ = spec, spec.loader, spec.parent
        if spec.submodule_search_locations is not None:
            module.__path__ = spec.submodule_search_locations
        sys.modules[name] = module
        try:
            self.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)

    def create_module(self, spec: object) -> None:
        return None

    def exec_module(self, module: "ModuleType") -> None:
        _, source, _, _, at, length, _ = self._index[module.__name__]
        module.__file__ = source
        self._pack.seek(self._start + at)
        exec(self._loads(self._pack.read(length)), vars(module))


def open_pack(pack: "BinaryIO") -> None:
    """Lets imports come from the pack, which has been read up to its index, before they are looked for elsewhere."""
    sys.meta_path.insert(0, Packed(pack))  # it has what importlib asks for


def _part(pack: "BinaryIO") -> bytes:
    return pack.read(int.from_bytes(pack.read(4), "little"))


def starter(package: str, pack: str) -> str:
    """The program, short enough to be compiled each time, that opens the pack and serves the call of this process."""
    return f"""import sys
sys.path.append({package!r})
try:
    import marshal, _frozen_importlib_external
    pack = open({pack!r}, "rb", 0)
    if pack.read(4) == _frozen_importlib_external.MAGIC_NUMBER:
        box = {{"__name__": "tortie.cni.pack"}}
        exec(marshal.loads(pack.read(int.from_bytes(pack.read(4), "little"))), box)
        box["open_pack"](pack)
except Exception:
    pass
from tortie.cni.launch import run
run()
"""


# --- making one ---------------------------------------------------------------------------------------------------


def write(path: str) -> None:
    """Writes the pack of what all plugins import in this interpreter. Raises OSError."""
    import _frozen_importlib_external
    import marshal
    import os

    parts: list[bytes] = []
    index: dict[str, tuple[bool, str, int, int, int, int, tuple[str, ...]]] = {}
    at = 0
    modules, imports = _needed()
    for name, module in sorted(modules.items()):
        source = module.__file__ or ""
        seen = os.stat(source)
        part = marshal.dumps(_compiled(source)) if source.endswith(".py") else b""
        firsts = tuple(one for one in _before(name, modules, imports) if (modules[one].__file__ or "").endswith(".py"))
        index[name] = (hasattr(module, "__path__"), source, seen.st_mtime_ns, seen.st_size, at, len(part), firsts)
        parts.append(part)
        at += len(part)
    head = [marshal.dumps(_compiled(os.path.realpath(__file__))), marshal.dumps((index, at))]
    with open(path, "wb") as pack:
        pack.write(_frozen_importlib_external.MAGIC_NUMBER)
        for one in head:
            pack.write(len(one).to_bytes(4, "little") + one)
        pack.writelines(parts)


def _needed() -> "tuple[dict[str, ModuleType], dict[str, list[str]]]":
    """The modules that a plugin has imported by the time that it is called, and that are files; who imported whom."""
    import builtins

    plain = builtins.__import__
    imports: dict[str, list[str]] = {}

    def noting(name: str, globals: "Any" = None, locals: "Any" = None, fromlist: "Any" = (), level: int = 0) -> "Any":
        found = plain(name, globals, locals, fromlist, level)
        named = [name, *(f"{name}.{one}" for one in fromlist or ())]
        imports.setdefault((globals or {}).get("__name__", ""), []).extend(one for one in named if one in sys.modules)
        return found

    builtins.__import__ = noting
    try:
        from tortie.cni import plugins

        __import__("tortie.cni.launch")
        __import__("tortie.cni.plugin")
        for name in plugins.NAMES:
            __import__(f"tortie.cni.plugins.{plugins.NAMES[name]}")
    finally:
        builtins.__import__ = plain
    return {name: module for name, module in sys.modules.items() if _is_found(name, module)}, imports


def _before(name: str, modules: "dict[str, ModuleType]", imports: "dict[str, list[str]]") -> list[str]:
    """What is imported before the module is, in an order in which each comes after its package and all that it imports.

    Packages come before what they import, which is in them.
    """
    order: list[str] = []
    reached: set[str] = set()

    def reach(one: str) -> None:
        if one in reached or one not in modules:
            return
        reached.add(one)
        reach(one.rpartition(".")[0])
        for other in () if hasattr(modules[one], "__path__") else imports.get(one, ()):
            reach(other)
        order.append(one)

    reach(name)
    return [one for one in order if one != name]


def _is_found(name: str, module: "ModuleType") -> bool:
    """Whether importing it means to look for a file, in a process that has just started."""
    loader = getattr(module.__spec__, "loader", None)
    return type(loader).__name__ in ("SourceFileLoader", "ExtensionFileLoader") and not name.startswith("encodings")


def _compiled(source: str) -> "Any":
    """The code, without the texts that are for who reads it."""
    import ast

    with open(source, "rb") as text:
        tree = ast.parse(text.read(), source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            node.body[0] = ast.copy_location(ast.Expr(ast.Constant("", lineno=1, col_offset=0)), node.body[0])
    return compile(tree, source, "exec", dont_inherit=True)


if __name__ == "__main__":
    import os

    sys.path.append(os.path.realpath(__file__).rsplit("/tortie/cni/", 1)[0])
    write(sys.argv[1])
