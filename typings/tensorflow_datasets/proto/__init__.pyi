# Generated messages, whose classes exist only when they are loaded.
from typing import Any

def __getattr__(name: str) -> Any: ...
