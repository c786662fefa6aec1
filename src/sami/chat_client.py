"""A server that speaks the OpenAI chat protocol: one client for judges and writers.

The key is read from an environment variable and stands in no file, log or message.
"""

import asyncio
import os
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

from sami.errors import InputError
from sami.recipe import Endpoint

try:
    import openai
    import tenacity
except ImportError as error:
    raise InputError("Asking a server needs the packages of the extra `judge`: pip install 'sami[judge]'.") from error

FIRST_WAIT = 0.5  # seconds before the second attempt; doubles from there
LONGEST_WAIT = 120.0  # seconds; a server that wants more is not waited for


class UnreadableAnswerError(Exception):
    """The server answered, but not with a chat completion."""


Client = openai.AsyncOpenAI
StatusError = openai.APIStatusError
# What a single request can fail with and another one not.
UNANSWERED = (openai.OpenAIError, TimeoutError, ValueError, UnreadableAnswerError)


class Chat:
    """Requests to one server, each tried again where another attempt may succeed.

    Args:
        settings: where the server is and how often it is asked.
        who: what the server is here, as in "the judge gpt-x", for messages.

    Raises:
        InputError: the public server without a key.
    """

    def __init__(self, settings: Endpoint, who: str) -> None:
        self._settings = settings
        self._who = who
        self._key = os.environ.get(settings.key_variable, "").strip()
        if not self._key and "api.openai.com" in settings.url:
            raise InputError(
                f"{who[0].upper()}{who[1:]} needs a key in the environment variable {settings.key_variable}, which is "
                f"not set. Set it, or name another variable in key_variable."
            )

    def client(self) -> Client:
        return Client(
            base_url=self._settings.url,
            api_key=self._key or "none",
            timeout=self._settings.timeout,
            max_retries=0,  # tenacity below, which also retries answers that are no JSON
        )

    async def check_server(self, client: Client) -> None:
        """Whether anyone is there and takes the key; servers without a list of models are left to the questions."""
        try:
            await client.models.list()
        except openai.APITimeoutError:
            return
        except openai.APIConnectionError:
            raise InputError(
                f"No server answers at {self._settings.url}, where {self._who} should be. Start it, or correct the url."
            ) from None
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise self.refused_key(error) from None
        except (openai.OpenAIError, ValueError):
            return

    async def complete(
        self, client: Client, text: str, goes_on: Callable[[], bool] = lambda: True, **parameters: Any
    ) -> Any:
        """The chat completion of one user message.

        Args:
            goes_on: whether another attempt is still wanted.
            parameters: of the request, such as temperature.

        Raises:
            StatusError, or one of `UNANSWERED`: the last attempt failed.
        """
        s = self._settings
        attempts = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(s.retries + 1),
            wait=_wait,
            retry=tenacity.retry_if_exception(lambda error: _may_pass(error) and goes_on()),
            reraise=True,
        )
        async for attempt in attempts:
            with attempt:
                async with asyncio.timeout(s.timeout):  # of the whole attempt: the client's limits a single read
                    completion = await client.chat.completions.create(
                        model=s.model, messages=[{"role": "user", "content": text}], **parameters
                    )
                if not getattr(completion, "choices", None):
                    raise UnreadableAnswerError("the server's answer is no chat completion")
        return completion

    def end(self, error: StatusError) -> InputError | None:
        """The error to end with, where no other request would fare better."""
        words = self.clean(error)
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return self.refused_key(error)
        if isinstance(error, openai.NotFoundError):
            return InputError(
                f"The server at {self._settings.url} does not know the model {self._settings.model!r} or this "
                f"address: {words}. Correct model or url; the url usually ends in /v1."
            )
        if getattr(error, "code", None) == "insufficient_quota":
            return InputError(f"The account behind {self._settings.key_variable} has no credit left: {words}.")
        return None

    def refused_key(self, error: Exception) -> InputError:
        s = self._settings
        return InputError(f"The server at {s.url} refuses the key in {s.key_variable}: {self.clean(error)}.")

    def clean(self, what: object, *, whole: bool = False) -> str:
        """Text of a server without the key, which some repeat; messages on one line, of a bounded length."""
        text = str(what).replace(self._key, "[key]") if self._key else str(what)
        return text if whole else " ".join(text.split())[:300]


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed."""
    if isinstance(error, openai.APIStatusError):
        passing = error.status_code in (408, 409, 429) or error.status_code >= 500
        return passing and error.code != "insufficient_quota" and (_retry_after(error) or 0) <= LONGEST_WAIT
    return isinstance(
        error,
        openai.APIConnectionError
        | openai.APIResponseValidationError
        | TimeoutError
        | ValueError
        | UnreadableAnswerError,
    )


def _wait(state: tenacity.RetryCallState) -> float:
    """Seconds to the next attempt: what Retry-After says, else twice the last wait, with jitter."""
    error = state.outcome.exception() if state.outcome else None
    asked = _retry_after(error) if isinstance(error, openai.APIStatusError) else None
    growing = tenacity.wait_exponential_jitter(initial=FIRST_WAIT, max=20, jitter=FIRST_WAIT)(state)
    return growing if asked is None else max(asked, 0.0)


def _retry_after(error: StatusError) -> float | None:
    """Seconds, from a number or a date; None where the header is missing or neither."""
    value = error.response.headers.get("retry-after", "")
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(value).timestamp() - time()
    except (ValueError, TypeError):
        return None
