"""What the pack's source files import, read without running them."""

import ast
import functools
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACK_FOLDERS = ("nodes", "model_loaders", "idcrafter")


@dataclass(frozen=True)
class Import:
    """One imported module: `level` dots, then `name`; `top` when it runs with the module itself."""

    file: Path
    line: int
    name: str
    level: int
    top: bool

    @property
    def package(self) -> str:
        """The first part of an absolute name, '' for a relative one."""
        return "" if self.level else self.name.split(".")[0]

    @property
    def target(self) -> str:
        """A relative import written out from the root of the pack: "idcrafter.subjects.subject"."""
        if not self.level:
            return self.name
        parts = self.file.relative_to(ROOT).with_suffix("").parts
        base = parts[: len(parts) - self.level]
        return ".".join([*base, self.name]).strip(".")

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT).as_posix()}:{self.line} imports {'.' * self.level}{self.name}"


def pack_files(*folders: str) -> list[Path]:
    """The pack's own .py files: all of them, or those of some folders."""
    files = [] if folders else [ROOT / "__init__.py"]
    for folder in folders or PACK_FOLDERS:
        files += sorted((ROOT / folder).rglob("*.py"))
    return files


@functools.cache
def imports(file: Path) -> tuple[Import, ...]:
    """Every import in a file; those below `if TYPE_CHECKING:` never run and are left out."""
    found = []

    def visit(node: ast.AST, top: bool) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for child in node.orelse:
                visit(child, top)
            return
        if isinstance(node, ast.Import):
            found.extend(Import(file, node.lineno, alias.name, 0, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found.extend(Import(file, node.lineno, name, node.level, top) for name in names)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, top and not inside)

    visit(ast.parse(file.read_text("utf-8")), True)
    return tuple(found)
