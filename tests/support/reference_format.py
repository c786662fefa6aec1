"""Prompts and rows as the reference implementation writes them."""

from typing import Any


def numbered(*statements: str) -> str:
    return " \n".join(f"{number}. {statement}" for number, statement in enumerate(statements, start=1))


def hh_prompt(query: str, *statements: str) -> str:
    return (
        f"System: Write a response.\n\nAssistant Constitution:\n{numbered(*statements)}\n\nHuman: {query}\n\nAssistant:"
    )


def tldr_prompt(post: str, *statements: str) -> str:
    return f"System: Summarize.\n\nSummarization Constitution: \n{numbered(*statements)}\n\nPOST: {post}\n\nSummary:"


def row(prompt: str, response: str, number: int = 0) -> dict[str, Any]:
    return {"prompt": prompt, "response": response, "example_id": number}
