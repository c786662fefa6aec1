"""Stands in for vLLM in tests of the worker's protocol: answers by a rule on token ids, without a model.

The answer to a prompt is its last id, counted up by one a token, so that every response tells its prompt. The
environment says what goes wrong: STAND_IN_DIES_AFTER=N kills the process once N requests ended in it,
STAND_IN_REFUSES=TEXT raises at the start, STAND_IN_FINISHES=REASON ends every response by it. The arguments of the
engine are written to STAND_IN_LOG, one line of JSON a start, with the GPUs that the process may use.
"""

import json
import os
import signal
from types import SimpleNamespace

LOGPROB = -1.5


class SamplingParams:
    def __init__(self, **settings):
        self.__dict__.update(settings)


class LLM:
    def __init__(self, **arguments):
        if "STAND_IN_REFUSES" in os.environ:
            raise ValueError(os.environ["STAND_IN_REFUSES"])
        if "STAND_IN_LOG" in os.environ:
            with open(os.environ["STAND_IN_LOG"], "a") as file:
                file.write(json.dumps(arguments | {"devices": os.environ.get("CUDA_VISIBLE_DEVICES")}) + "\n")
        self.llm_engine = Engine()


class Engine:
    def __init__(self):
        self.waiting, self.ended = [], 0

    def add_request(self, request_id, prompt, params, lora_request=None):
        self.waiting.append((request_id, prompt["prompt_token_ids"], params, lora_request))

    def step(self):
        """Two requests a step end, the later one first."""
        batch, self.waiting = self.waiting[:2], self.waiting[2:]
        if self.ended >= int(os.environ.get("STAND_IN_DIES_AFTER", "1000000")):
            os.kill(os.getpid(), signal.SIGKILL)
        self.ended += len(batch)
        return [answer(*request) for request in reversed(batch)]


def answer(request_id, prompt, params, lora_request):
    ids = [prompt[-1] + 1 + k + (100 if lora_request else 0) for k in range(params.max_tokens)]
    end = next((at for at, token in enumerate(ids) if token in params.stop_token_ids), None)
    ids = ids if end is None else ids[: end + 1]
    logprobs = None if params.logprobs is None else [{token: SimpleNamespace(logprob=LOGPROB)} for token in ids]
    finish = os.environ.get("STAND_IN_FINISHES", "length" if end is None else "stop")
    output = SimpleNamespace(token_ids=ids, logprobs=logprobs, finish_reason=finish)
    return SimpleNamespace(request_id=request_id, finished=True, outputs=[output])
