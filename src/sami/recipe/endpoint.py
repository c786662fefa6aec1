"""A served model in a recipe: where it is and how often it is asked, never its key."""

import re

from pydantic import Field, field_validator

from sami.recipe.sections import Section


class Endpoint(Section):
    model: str = Field(min_length=1)
    """The model's name at the server."""
    url: str = "https://api.openai.com/v1"
    """Base URL of the server."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself is never stored."""
    concurrency: int = Field(default=8, ge=1, le=10_000)
    """Requests in flight."""
    retries: int = Field(default=6, ge=0, le=1000)
    """Further attempts at a question after a failure that may pass."""
    timeout: float = Field(default=60.0, gt=0.0, le=86_400.0)
    """Seconds for one attempt."""

    @field_validator("key_variable")
    @classmethod
    def _names_a_variable(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):  # the value is not repeated: it may be the key
            raise ValueError("key_variable must be the name of an environment variable; the key itself stands nowhere")
        return value

    @field_validator("url")
    @classmethod
    def _without_secrets(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("url must start with http:// or https://")
        if "@" in value or "?" in value:
            raise ValueError("url holds credentials or a query, which would be stored; put the key into key_variable")
        return value
