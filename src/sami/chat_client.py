"""A client for servers that speak the OpenAI chat protocol, shared by judges and writers.

    async with chat:
        completion = await chat.complete("Which is better?", temperature=0.0, max_tokens=64)

The API key is read from an environment variable, and never appears in a file, a log or a message.
"""

import asyncio
import os
import random
import re
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, Self

from sami.console import say
from sami.errors import InputError, one_line
from sami.recipe import Endpoint

try:
    import openai
except ImportError as error:
    raise InputError("Asking a server needs the packages of the extra `judge`: pip install 'sami[judge]'.") from error

FIRST_WAIT = 0.5  # seconds before the first retry; doubled for each further one
LONGEST_GUESS = 20.0  # seconds; the longest wait if the server does not ask for one
LONGEST_WAIT = 120.0  # seconds; if a server asks for a longer wait, the question counts as unanswered
LONGEST_REASON = 300  # characters of a server's reason that are shown

# What happens to a parameter that a server refuses: it is sent under another name, or (None) not at all.
# max_tokens is never dropped, since a budget counts on it.
ADAPTATIONS: dict[str, dict[str, str | None]] = {
    "max_tokens": {"max_tokens": "max_completion_tokens"},
    "seed": {"seed": None},
    "temperature": {"temperature": None},
    "logprobs": {"logprobs": None, "top_logprobs": None},
    "top_logprobs": {"logprobs": None, "top_logprobs": None},
}
CONTEXT_WORDS = ("context length", "context_length", "maximum context", "too long", "too many tokens")
_REFUSAL = re.compile(
    r"un(known|supported|recogni[sz]ed|expected)|not (support|permit|allow|recogni[sz])|does(n't| not) support|"
    r"extra|invalid|incompatible|no longer",
    re.IGNORECASE,
)


class UnreadableAnswerError(Exception):
    """The server answered, but not with a chat completion."""


Completion = openai.types.chat.ChatCompletion
StatusError = openai.APIStatusError
# The errors of a single request that another request may not have.
UNANSWERED = (openai.OpenAIError, TimeoutError, ValueError, UnreadableAnswerError)


class Chat:
    """Requests to one server, with retries and with parameters adapted to what the server accepts.

    Args:
        settings: the server's address and how it is asked.
        who: the role of the server, as in "the judge gpt-x", for messages.

    Raises:
        InputError: the public server needs a key and there is none.
    """

    def __init__(self, settings: Endpoint, who: str) -> None:
        self._settings = settings
        self._who = who
        self._key = os.environ.get(settings.key_variable, "").strip()
        self.adapted: dict[str, str | None] = {}
        """Parameters that the server refused, each with the name it is sent under instead; None: not sent."""
        self._answered = False
        if not self._key and "api.openai.com" in settings.url:
            raise InputError(
                f"{self._title} needs an API key in the environment variable {settings.key_variable}, which is not "
                f"set. Set it, or name another variable in key_variable."
            )

    async def __aenter__(self) -> Self:
        """Connect, and check that the server is there and accepts the key."""
        self._client = openai.AsyncOpenAI(
            base_url=self._settings.url,
            api_key=self._key or "none",
            timeout=self._settings.timeout,
            max_retries=0,  # see `complete`
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [self._stay]}),
        )
        self._first = asyncio.Lock()
        self._first_is_over = False
        self._first_error: Exception | None = None
        try:
            await self._check_server()
        except BaseException:
            await self._client.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def complete(self, text: str, goes_on: Callable[[], bool] = lambda: True, **parameters: Any) -> Completion:
        """The chat completion of one user message.

        The first question is asked alone, so that a refused parameter, key or model is refused once. Failures that
        another attempt may not have are retried, after the time that Retry-After asks for if there is one.

        Args:
            goes_on: whether another attempt is still wanted.
            parameters: parameters of the request, such as temperature.

        Raises:
            InputError: the server redirects to another host.
            StatusError, or one of `UNANSWERED`: the last attempt failed.
        """
        async with self._first:
            if not self._first_is_over:
                try:
                    return await self._with_retries(text, goes_on, parameters)
                except UNANSWERED as error:
                    self._first_error = error
                    raise
                finally:
                    self._first_is_over = True
        if self._first_error is not None and not goes_on():
            raise self._first_error
        return await self._with_retries(text, goes_on, parameters)

    def answer(self, completion: Completion) -> tuple[str, str | None]:
        """(text, refusal) of a completion; the refusal is the reason why a model or server gives no answer."""
        choice = completion.choices[0]
        text = self.clean(_text(choice.message.content), whole=True)
        refusal = getattr(choice.message, "refusal", None)
        if refusal and not text:
            return str(
                self.clean(refusal, whole=True)
            ), f"the model refused to answer: {self.clean(refusal).rstrip('.')}"
        if choice.finish_reason == "content_filter":
            return text, "the server's content filter stopped the answer"
        return text, None

    def explain(self, error: Exception) -> str:
        """The reason for a failure in the server's own words, without the key and on one line."""
        if isinstance(error, TimeoutError):
            return f"no answer within {self._settings.timeout:g} seconds"
        if isinstance(error, openai.APIStatusError):
            return self.clean(f"{_reason(error)} (HTTP {error.status_code})")
        return self.clean(error)

    def end(self, error: StatusError) -> InputError | None:
        """The error to stop with, if no other request would fare better."""
        s = self._settings
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return self._refused_key(error)
        if isinstance(error, openai.NotFoundError):
            return InputError(
                f"The server at {s.url} does not know the model {s.model!r} or this address: {self.explain(error)}. "
                f"Correct model or url; a url usually ends in /v1."
            )
        if error.code == "insufficient_quota":
            return InputError(f"The account behind {s.key_variable} has no credit left: {self.explain(error)}.")
        return None

    def clean(self, what: object, *, whole: bool = False) -> str:
        """A server's text without the key, which some servers repeat; messages on one line, of a limited length."""
        text = str(what).replace(self._key, "[key]") if self._key else str(what)
        return text if whole else one_line(text)[:LONGEST_REASON]

    @property
    def _title(self) -> str:
        return self._who[0].upper() + self._who[1:]

    def _refused_key(self, error: Exception) -> InputError:
        s = self._settings
        return InputError(f"The server at {s.url} refuses the key in {s.key_variable}: {self.explain(error)}.")

    async def _check_server(self) -> None:
        """Servers without a list of models are left to the first question."""
        try:
            await self._client.models.list()
        except openai.APITimeoutError:
            return
        except openai.APIConnectionError as error:
            raise _ours(error) or InputError(
                f"No server answers at {self._settings.url}, the address of {self._who}. Start it, or correct the url."
            ) from None
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise self._refused_key(error) from None
        except (openai.OpenAIError, ValueError):
            return

    async def _stay(self, response: Any) -> None:
        """Refuse a redirect to another host, which would get the prompts and perhaps the key."""
        if response.has_redirect_location:
            there = response.request.url.join(response.headers["location"])
            if not _same_server(response.request.url, there):
                raise InputError(
                    f"The server at {self._settings.url} redirects to another host: {self.clean(there)}. {self._title} "
                    f"does not follow it. If you trust that host, set url to its address."
                )

    async def _with_retries(self, text: str, goes_on: Callable[[], bool], parameters: Mapping[str, Any]) -> Completion:
        failures = 0
        while True:
            sent = {n: v for name, v in parameters.items() if (n := self.adapted.get(name, name)) is not None}
            try:
                return await self._once(text, sent)
            except UNANSWERED as error:
                if ours := _ours(error):
                    raise ours from None
                if self._adapt(error, sent):
                    continue
                failures += 1
                wait = _wait(error, failures)
                if wait is None or failures > self._settings.retries or not goes_on():
                    raise
            await asyncio.sleep(wait)

    async def _once(self, text: str, parameters: Mapping[str, Any]) -> Completion:
        async with asyncio.timeout(self._settings.timeout):  # the whole attempt; the client's timeout is for one read
            completion: Completion = await self._client.chat.completions.create(
                model=self._settings.model, messages=[{"role": "user", "content": text}], **parameters
            )
        if not getattr(completion, "choices", None):
            raise UnreadableAnswerError("the server's answer is not a chat completion")
        self._answered = True
        return completion

    def _adapt(self, error: Exception, sent: Mapping[str, Any]) -> bool:
        """Whether the server refused a parameter that can be sent in another way; announced when it is found out."""
        if self._answered or not isinstance(error, openai.APIStatusError) or error.status_code not in (400, 422):
            return False
        refused = [name for name in _refused(error, sent) if name in ADAPTATIONS]
        for name in refused:
            if name not in self.adapted:
                self.adapted |= ADAPTATIONS[name]
                other = ADAPTATIONS[name][name]
                instead = f"sending {other} instead" if other else "leaving it out from now on"
                say(f"{self._title}: the server refuses {name} ({self.explain(error)}); {instead}.")
        return bool(refused)


def _ours(error: BaseException) -> InputError | None:
    """The error of `Chat._stay`, which the client wraps in one of its own."""
    return error.__cause__ if isinstance(error.__cause__, InputError) else None


def _same_server(here: Any, there: Any) -> bool:
    upgraded = (here.scheme, there.scheme, here.port, there.port) == ("http", "https", None, None)
    return here.host == there.host and ((here.scheme, here.port) == (there.scheme, there.port) or upgraded)


def _text(content: Any) -> str:
    """The text of a message whose content is a string or a list of parts; reasoning is not part of it."""
    if not isinstance(content, list):
        return str(content or "")
    parts = [part for part in content if isinstance(part, dict) and part.get("type") in ("text", "output_text")]
    return "".join(str(part.get("text") or "") for part in parts)


def _reason(error: openai.APIStatusError) -> str:
    """What the server says about a refused request, whichever of the common shapes its body has."""
    try:
        body = error.response.json()
    except ValueError:
        body = error.response.text
    return _words(body).rstrip(". ") or error.response.reason_phrase or "no reason given"


def _words(body: Any) -> str:
    """The words in the body of an error.

    OpenAI nests {"error": {"message"}}, older vLLM has {"message"}, FastAPI {"detail": [{"loc", "msg"}]}, Mistral
    {"message": {"detail": …}}, and Google a list of {"error": …}.
    """
    if isinstance(body, list):
        return "; ".join(filter(None, map(_words, body)))
    if not isinstance(body, dict):
        return str(body or "")
    if "msg" in body:
        place = ".".join(str(part) for part in body.get("loc") or () if part != "body")
        return f"{place}: {body['msg']}" if place else str(body["msg"])
    return next((words for key in ("error", "message", "detail") if (words := _words(body.get(key)))), "")


def _refused(error: openai.APIStatusError, sent: Mapping[str, Any]) -> list[str]:
    """The parameters of a request that the server's error refuses."""
    words = _reason(error)
    if any(phrase in words.lower() for phrase in CONTEXT_WORDS):
        return []
    if error.param is not None and error.param in sent:
        return [error.param]
    named = [name for name in sent if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", words)]
    return named if _REFUSAL.search(words) else []


def _wait(error: Exception, failures: int) -> float | None:
    """Seconds until the next attempt; None if another attempt would fail as well."""
    guess = min(FIRST_WAIT * 2 ** (failures - 1), LONGEST_GUESS) + random.uniform(0, FIRST_WAIT)
    if isinstance(error, openai.APIStatusError):
        passing = error.status_code in (408, 409, 429) or error.status_code >= 500
        if not passing or error.code == "insufficient_quota":
            return None
        asked = _retry_after(error)
        if asked is None:
            return guess
        return max(asked, 0.0) if asked <= LONGEST_WAIT else None
    passing_errors = openai.APIConnectionError | openai.APIResponseValidationError | UnreadableAnswerError
    return guess if isinstance(error, passing_errors | TimeoutError | ValueError) else None


def _retry_after(error: openai.APIStatusError) -> float | None:
    """Seconds, from a number or a date; None if the header is missing or neither."""
    value = error.response.headers.get("retry-after", "")
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(value).timestamp() - time()
    except (ValueError, TypeError):
        return None
