#!/usr/bin/env python3
"""The same over the Open Inference Protocol (KServe v2), with Triton's streaming call.

    mkdir -p api
    protoc -Iproto --python_out=api --grpc_python_out=api \
        --plugin=protoc-gen-grpc_python=/usr/bin/grpc_python_plugin proto/inference/kserve.proto
    PYTHONPATH=api examples/kserve.py 127.0.0.1:8130 "The capital of France is"
"""

import sys

import grpc
from inference import kserve_pb2 as api
from inference import kserve_pb2_grpc


def main(target="127.0.0.1:8130", text="The river"):
    with grpc.insecure_channel(target) as channel:
        server = kserve_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = api.ModelInferRequest(id="1")
        tensor = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(text.encode())
        request.parameters["max_tokens"].int64_param = 32
        request.parameters["temperature"].double_param = 0.7
        request.parameters["stream"].bool_param = True
        for answer in server.ModelStreamInfer(iter([request]), timeout=60):
            if answer.error_message:
                sys.exit(answer.error_message)
            [output] = answer.infer_response.outputs
            print(output.contents.bytes_contents[0].decode(), end="", flush=True)
        print()


if __name__ == "__main__":
    main(*sys.argv[1:])
