"""A served model in a recipe: its address and how it is asked. The key itself is never part of a recipe."""

import re

from pydantic import Field, field_validator

from sami.recipe.sections import Section


class Endpoint(Section):
    model: str = Field(min_length=1)
    """Name of the model on the server."""
    url: str = "https://api.openai.com/v1"
    """Base URL of the server."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the API key; the key itself is never stored."""
    concurrency: int = Field(default=8, ge=1, le=10_000)
    """Maximum number of requests in flight."""
    retries: int = Field(default=6, ge=0, le=1000)
    """Retries of a question after a temporary failure."""
    timeout: float = Field(default=60.0, gt=0.0, le=86_400.0)
    """Time limit of one attempt in seconds."""

    @field_validator("key_variable")
    @classmethod
    def _names_a_variable(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):  # the value is not repeated: it may be the key
            raise ValueError(
                "key_variable must be the name of an environment variable that holds the key, not the key itself"
            )
        return value

    @field_validator("url")
    @classmethod
    def _without_secrets(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("url must start with http:// or https://")
        if "@" in value or "?" in value:
            raise ValueError(
                "url contains credentials or a query string, which would be stored; put the key into the environment "
                "variable that key_variable names"
                "variable that key_variable names"
            )
        return value
