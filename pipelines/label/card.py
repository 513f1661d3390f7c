"""The dataset card, which makes an output's folder a data set of the Hugging Face Hub's kind."""

from typing import Any

import pyarrow as pa
import yaml

from ovss_core.results import ignore_index
from ovss_core.vocabulary import Vocabulary
from pipelines.label.table import IGNORE, VOCABULARY
from pipelines.run.record import CARD, CARD_MARK
from pipelines.run.schema import IMAGE
from pipelines.storage import Folder

_MARK = f"{CARD_MARK.decode()}. What you add stays as long as the columns and classes do. -->"
_PICTURES = ("mask", "confidence", IMAGE)
_TYPES: dict[pa.DataType, str] = {
    pa.string(): "string",
    pa.binary(): "binary",
    pa.bool_(): "bool",
    **{
        pa.from_numpy_dtype(name): name
        for name in (
            *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
            *("float16", "float32", "float64"),
        )
    },
}
_TEXT = """
# Labels by ovss

One row an image; `mask` is a picture whose values are positions in {names}, and {ignore} where a pixel has no label.

```python
from datasets import load_dataset

labels = load_dataset("path/to/this/folder", split="train")
labels[0]["mask"], labels[0]["words"]
```

These are pseudo-labels of a model, not annotations. The license of this data set is for you to state above.
"""


def write_card(
    output: Folder, schema: pa.Schema, vocabulary: Vocabulary, files: str = "labels/*.parquet"
) -> None:
    """Write the card of an output that has none; one that somebody edited stays as it is.

    Args:
        schema: Of the files in ``labels/``.
        files: Where they lie below the output.
    """
    if output.exists(CARD):
        return
    written = yaml.safe_dump(
        header(schema, vocabulary, files), sort_keys=False, allow_unicode=True, width=1000
    )
    by_row = VOCABULARY in schema.names
    names = f"the row's `{VOCABULARY}`" if by_row else "`class_names`"
    text = f"---\n{written}---\n{_MARK}\n{_TEXT.format(names=names, ignore=_ignored(schema, vocabulary))}"
    output.write(CARD, text.encode("utf-8", "replace"))


def header(schema: pa.Schema, vocabulary: Vocabulary, files: str = "labels/*.parquet") -> dict[str, Any]:
    """Return the card's YAML header, which the `datasets` library reads: files, features, and the classes' names."""
    return {
        "pretty_name": "Labels by ovss",
        "task_categories": ["image-segmentation"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": files}]}],
        "dataset_info": {"features": [_feature(entry.name, entry.type) for entry in schema]},
        **({} if VOCABULARY in schema.names else {"class_names": list(vocabulary.names)}),
        "ignore_index": _ignored(schema, vocabulary),
    }


def _ignored(schema: pa.Schema, vocabulary: Vocabulary) -> int:
    stored = (schema.metadata or {}).get(IGNORE)
    return ignore_index(len(vocabulary)) if stored is None else int(stored)


def _feature(name: str, kind: pa.DataType) -> dict[str, Any]:
    if name in _PICTURES:
        return {"name": name, "dtype": "image"}
    return {"name": name, **_typed(kind)}


def _typed(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(kind):
        inner = _typed(kind.value_type)
        return {"list": inner.get("dtype") or inner["struct"]}
    if pa.types.is_struct(kind):
        return {"struct": [{"name": entry.name, **_typed(entry.type)} for entry in kind]}
    return {"dtype": _TYPES[kind]}
