"""Shapes in numina's signatures are checked by beartype, in these tests only."""

from jaxtyping import install_import_hook

import tests.numina.typecheck

install_import_hook("numina", f"{tests.numina.typecheck.__name__}.check")
