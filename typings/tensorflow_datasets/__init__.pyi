# The library loads its names lazily, which the type checker cannot follow.
from typing import Any

def __getattr__(name: str) -> Any: ...
