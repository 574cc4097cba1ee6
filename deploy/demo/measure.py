#!/usr/bin/python3
"""One-token cloze of a served model: glmd itself fills the blanks that evaluate.py wrote.

    evaluate.py corpus.json checkpoint --cases 600 --cloze cloze.json
    glmd-coordinator --set model.dir=DIR ...
    measure.py cloze.json --coordinator 127.0.0.1:8130 --protos ../../proto

A case counts when the first token of the greedy answer is the hidden one (top-1), or is among the
five most probable (top-5).
"""

import argparse
import collections
import concurrent.futures
import importlib
import json
import subprocess
import sys
import tempfile
import time
from types import ModuleType

import grpc


def load_api(protos: str) -> tuple[ModuleType, ModuleType]:
    """Generates the API's Python modules from the .proto files and imports them."""
    out = tempfile.mkdtemp(prefix="glmd-api-")
    subprocess.run(
        ["protoc", f"-I{protos}", f"--python_out={out}", f"--grpc_python_out={out}",
         "--plugin=protoc-gen-grpc_python=/usr/bin/grpc_python_plugin",
         f"{protos}/glmd/v1/inference.proto"],
        check=True,
    )
    sys.path.insert(0, out)
    name = "glmd.v1.inference_pb2"
    return importlib.import_module(name), importlib.import_module(name + "_grpc")


def ranked_tokens(api: ModuleType, stub, case: dict) -> list[int]:
    """The five most probable first tokens of the answer, best first."""
    request = api.GenerateRequest(text=case["text"], max_tokens=1)
    request.sampling.top_k = 1
    request.sampling.logprobs = True
    request.sampling.top_logprobs = 5
    request.sampling.invalid_ids.SetInParent()  # nothing is forbidden: as evaluate.py measures
    for response in stub.Generate(request, timeout=120):
        for choice in response.choices:
            for entry in choice.logprobs:
                return [top.token for top in entry.top]
    return []  # an end token came first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cloze", help="cases written by evaluate.py --cloze")
    parser.add_argument("--coordinator", default="127.0.0.1:8130")
    parser.add_argument("--protos", default="../../proto", help="folder of glmd/v1/*.proto")
    args = parser.parse_args()

    api, rpc = load_api(args.protos)
    with open(args.cloze, encoding="utf8") as file:
        cases = json.load(file)["cases"]
    stub = rpc.InferenceStub(grpc.insecure_channel(args.coordinator))
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        ranked = list(pool.map(lambda case: ranked_tokens(api, stub, case), cases))
    seconds = time.monotonic() - began

    hits: dict[tuple[str, str], list[int]] = collections.defaultdict(lambda: [0, 0, 0])
    for case, tokens in zip(cases, ranked):
        row = hits[case["group"], case["lang"]]
        row[0] += 1
        row[1] += tokens[:1] == case["answer_ids"][:1]
        row[2] += case["answer_ids"][0] in tokens
    for (group, lang), (n, top1, top5) in sorted(hits.items()):
        print(f"{group:8} {lang}  {n:5} cases  top-1 {100 * top1 / n:5.1f} %  "
              f"top-5 {100 * top5 / n:5.1f} %")
    print(f"{len(cases)} cases in {seconds:.1f} s")


if __name__ == "__main__":
    main()
