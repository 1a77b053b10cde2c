"""The JSON Schema of capkeep.toml and of drop-ins, from the models that validate them."""

from typing import Final

from capkeep.config.syntax import Document

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, object]:
    """The schema, for editors that complete and check TOML (taplo, Even Better TOML)."""
    return {
        "$schema": DIALECT,
        **Document.model_json_schema(by_alias=True),
        "title": "capkeep configuration",
    }
