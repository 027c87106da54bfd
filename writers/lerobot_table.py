"""Parquet files of metadata with columns more: the same rows, row groups, codecs and notes."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..readers.files import present
from ..readers.lerobot_meta import damage

_NOTE = b"huggingface"  # where the `datasets` library keeps its own idea of the columns
_NUMBER = pa.list_(pa.list_(pa.list_(pa.float64())))
_TYPES = {
    "chunk_index": pa.int64(),
    "file_index": pa.int64(),
    "from_timestamp": pa.float64(),
    "to_timestamp": pa.float64(),
    "count": pa.list_(pa.int64()),
}
Columns = Callable[[pa.Table], dict[str, list]]


def with_columns(path: Path, key: str, columns: Columns) -> bytes:
    """A file of meta/episodes with the columns of one camera more, or in the place of its old ones.

    Args:
        key: the camera's.
        columns: gives the new columns of a row group: name -> one value a row.

    Raises:
        SourceError: the file is damaged.
    """
    sink = io.BytesIO()
    with damage(path), pq.ParquetFile(present(path)) as file:
        writer = None
        for number in range(file.num_row_groups):
            table = file.read_row_group(number)
            for name, values in columns(table).items():
                field = pa.field(name, _type(table.schema, key, name))
                column = pa.array(values, field.type)
                at = table.schema.get_field_index(name)
                if at < 0:
                    table = table.append_column(field, column)
                else:
                    table = table.set_column(at, field, column)
            if writer is None:
                writer = _writer(sink, file.metadata, _noted(table.schema, key))
            table = table.replace_schema_metadata(writer.schema.metadata)
            writer.write_table(table, row_group_size=max(table.num_rows, 1))
        if writer is None:
            return present(path).read_bytes()
        writer.close()
    return sink.getvalue()


def _writer(sink: io.BytesIO, old: pq.FileMetaData, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer with the codecs of an old file; new columns get that of the first."""
    group = old.row_group(0)
    chunks = [group.column(number) for number in range(group.num_columns)]
    codec = lambda chunk: "NONE" if chunk.compression == "UNCOMPRESSED" else chunk.compression
    codecs: Any = {chunk.path_in_schema: codec(chunk) for chunk in chunks}
    first = codec(chunks[0])
    for leaf in _leaves(schema):
        codecs.setdefault(leaf, first)
    return pq.ParquetWriter(sink, schema, compression=codecs, version=old.format_version)


def _leaves(schema: pa.Schema) -> list[str]:
    """The paths of a schema's leaves as parquet spells them."""
    sink = io.BytesIO()
    pq.write_table(schema.empty_table(), sink)
    found = pq.ParquetFile(sink).schema
    return [found.column(number).path for number in range(len(found))]


def _like(names: list[str], key: str, name: str) -> str | None:
    """The column of another camera that says the same; None where there is none."""
    head = name.split("/", 1)[0]
    kind = name.removeprefix(f"{head}/{key}/")
    for other in names:
        if other.startswith(f"{head}/") and other.endswith(f"/{kind}"):
            camera = other.removeprefix(f"{head}/").removesuffix(f"/{kind}")
            if camera != key and (head == "videos" or "image" in camera):
                return other
    return None


def _type(schema: pa.Schema, key: str, name: str) -> pa.DataType:
    """A new column's type: that of another camera, or as lerobot writes it."""
    other = _like(schema.names, key, name)
    kind = name.rsplit("/", 1)[-1]
    return schema.field(other).type if other else _TYPES.get(kind, _NUMBER)


def _noted(schema: pa.Schema, key: str) -> pa.Schema:
    """The schema with the new columns in the note of `datasets`, where it has one."""
    notes = dict(schema.metadata or {})
    try:
        note = json.loads(notes[_NOTE])
        features = note["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return schema
    for field in schema:
        if field.name not in features:
            other = _like(list(features), key, field.name)
            found = features[other] if other else _feature(field.type, json.dumps(features))
            features[field.name] = copy.deepcopy(found)
    notes[_NOTE] = json.dumps(note).encode()
    return schema.with_metadata(notes)


def _feature(kind: pa.DataType, spelled: str) -> Any:
    """A type as `datasets` spells it; lists have had several names."""
    if not pa.types.is_list(kind):
        return {"dtype": "float64" if kind == pa.float64() else str(kind), "_type": "Value"}
    name = "Sequence" if '"_type": "Sequence"' in spelled else "List"
    return {"feature": _feature(kind.value_type, spelled), "_type": name}
