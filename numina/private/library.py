"""A library whose private names are used, and what is said where one of them is gone."""

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from numina.errors import LibraryError


@dataclass(frozen=True)
class Library:
    """A distribution, and the versions that its private names were tested with: those of pyproject.toml."""

    name: str
    tested: str  # as pip takes it behind the name

    def private(self, owner: Any, name: str) -> Any:
        """An attribute of a module, class or object. Raises LibraryError where there is none."""
        try:
            return getattr(owner, name)
        except AttributeError as error:
            raise self._lacks(f"{getattr(owner, '__name__', None) or type(owner).__name__}.{name}") from error

    def module(self, name: str) -> Any:
        """A private module. Raises LibraryError where there is none."""
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            raise self._lacks(name) from error

    def _lacks(self, name: str) -> LibraryError:
        try:
            installed = version(self.name)
        except PackageNotFoundError:
            installed = "of an unknown version"
        return LibraryError(
            f"{self.name} {installed} has no {name}, which numina uses; install a version that was tested: pip install"
            f" '{self.name}{self.tested}'"
        )
