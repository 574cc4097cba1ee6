#!/usr/bin/env python3
"""Continues a text with a glmd coordinator over stock gRPC, printing it as it comes.

Debian: apt-get install python3-grpcio protobuf-compiler protobuf-compiler-grpc

    mkdir -p api
    protoc -Iproto --python_out=api --grpc_python_out=api \
        --plugin=protoc-gen-grpc_python=/usr/bin/grpc_python_plugin proto/glmd/v1/inference.proto
    PYTHONPATH=api examples/generate.py 127.0.0.1:8130 "The capital of France is"
"""

import sys

import grpc
from glmd.v1 import inference_pb2 as api
from glmd.v1 import inference_pb2_grpc

# A peer that falls silent is noticed within seconds; glmd allows pings from once a second on.
KEEPALIVE = [("grpc.keepalive_time_ms", 10000), ("grpc.keepalive_timeout_ms", 5000),
             ("grpc.keepalive_permit_without_calls", 1)]


def main(target="127.0.0.1:8130", text="The river"):
    with grpc.insecure_channel(target, options=KEEPALIVE) as channel:
        request = api.GenerateRequest(
            text=text, max_tokens=32,
            sampling=api.SamplingParameters(temperature=0.7, stop=["\n\n"]))
        try:
            for message in inference_pb2_grpc.InferenceStub(channel).Generate(request, timeout=60):
                for choice in message.choices:
                    print(choice.text, end="", flush=True)
            print(f"\n[{message.usage.completion_tokens} tokens]")
        except grpc.RpcError as e:
            # RESOURCE_EXHAUSTED and UNAVAILABLE say in their details when to come back: docs/grpc.md
            sys.exit(f"{e.code().name}: {e.details()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
