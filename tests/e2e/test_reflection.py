"""A stock client that knows nothing but server reflection streams a generation."""

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


def message_class(pool, factory, name):
    return factory.GetPrototype(pool.FindMessageTypeByName(name))


def reflection_stub(channel):
    """The reflection service's own messages, built by hand from its published definition."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="reflection_by_hand.proto", package="grpc.reflection.v1alpha", syntax="proto3")

    def message(name, *fields):
        m = file.message_type.add(name=name)
        for number, field_name, kind, type_name, repeated in fields:
            m.field.add(name=field_name, number=number, type=kind, type_name=type_name,
                        label=field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL)

    p = ".grpc.reflection.v1alpha."
    message("ServerReflectionRequest", (3, "file_by_filename", field.TYPE_STRING, None, False),
            (4, "file_containing_symbol", field.TYPE_STRING, None, False),
            (7, "list_services", field.TYPE_STRING, None, False))
    message("ServiceResponse", (1, "name", field.TYPE_STRING, None, False))
    message("ListServiceResponse", (1, "service", field.TYPE_MESSAGE, p + "ServiceResponse", True))
    message("FileDescriptorResponse", (1, "file_descriptor_proto", field.TYPE_BYTES, None, True))
    message("ServerReflectionResponse",
            (4, "file_descriptor_response", field.TYPE_MESSAGE, p + "FileDescriptorResponse", False),
            (6, "list_services_response", field.TYPE_MESSAGE, p + "ListServiceResponse", False))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    factory = message_factory.MessageFactory(pool)
    request = message_class(pool, factory, "grpc.reflection.v1alpha.ServerReflectionRequest")
    response = message_class(pool, factory, "grpc.reflection.v1alpha.ServerReflectionResponse")

    def ask(service="grpc.reflection.v1alpha.ServerReflection", **kwargs):
        call = channel.stream_stream(
            f"/{service}/ServerReflectionInfo",
            request_serializer=request.SerializeToString, response_deserializer=response.FromString)
        return next(call(iter([request(**kwargs)]), timeout=10))

    return ask


def resolve(ask, symbol, **which):
    """A pool with everything that a symbol needs, file by file, as grpcurl fetches it."""
    pool, known, wanted = descriptor_pool.DescriptorPool(), {}, [dict(file_containing_symbol=symbol)]
    while wanted:
        response = ask(**which, **wanted.pop()).file_descriptor_response
        for raw in response.file_descriptor_proto:
            f = descriptor_pb2.FileDescriptorProto.FromString(raw)
            if f.name not in known:
                known[f.name] = f
                wanted += [dict(file_by_filename=d) for d in f.dependency]

    def add(name):
        f = known.pop(name, None)
        if f:
            for dependency in f.dependency:
                add(dependency)
            pool.Add(f)

    while known:
        add(next(iter(known)))
    return pool


def test_every_listed_service_can_be_resolved(model, cluster):
    c = cluster(model("ckpt-fp16-tp1", "--weights", "int4"), 1)
    ask = reflection_stub(c.channel)
    for version in ("v1", "v1alpha"):
        which = dict(service=f"grpc.reflection.{version}.ServerReflection")
        services = [s.name for s in ask(**which, list_services="*").list_services_response.service]
        assert len(services) == len(set(services)) >= 7
        for name in services:
            service = resolve(ask, name, **which).FindServiceByName(name)
            assert service.methods
            for method in service.methods:  # by its own name, too; and the types of its messages
                pool = resolve(ask, f"{name}.{method.name}", **which)
                assert pool.FindMessageTypeByName(method.input_type.full_name)
                assert resolve(ask, method.output_type.full_name, **which)


def test_reflection_only_client_streams_a_generation(model, cluster):
    c = cluster(model("ckpt-fp16-tp1", "--weights", "int4"), 2)
    ask = reflection_stub(c.channel)
    services = {s.name for s in ask(list_services="*").list_services_response.service}
    assert {"glmd.v1.Inference", "glmd.v1.Cluster", "inference.GRPCInferenceService",
            "grpc.health.v1.Health"} <= services
    assert services == {s.name for s in ask("grpc.reflection.v1.ServerReflection", list_services="*")
                        .list_services_response.service}

    pool = descriptor_pool.DescriptorPool()
    known = {}
    for raw in ask(file_containing_symbol="glmd.v1.Inference").file_descriptor_response.file_descriptor_proto:
        f = descriptor_pb2.FileDescriptorProto.FromString(raw)
        known[f.name] = f
    pending = list(known.values())
    while pending:  # dependencies first
        f = pending.pop(0)
        if all(d not in known or known[d] is None for d in f.dependency):
            pool.Add(f)
            known[f.name] = None
        else:
            pending.append(f)
    service = pool.FindServiceByName("glmd.v1.Inference")
    method = service.FindMethodByName("Generate")
    factory = message_factory.MessageFactory(pool)
    request = factory.GetPrototype(method.input_type)
    response = factory.GetPrototype(method.output_type)
    call = c.channel.unary_stream("/glmd.v1.Inference/Generate",
                                  request_serializer=request.SerializeToString,
                                  response_deserializer=response.FromString)
    message = request(text="The river train", max_tokens=10)
    message.sampling.ignore_end = True
    responses = list(call(message, timeout=60))
    assert len(responses) > 2
    assert "".join(d.text for r in responses for d in r.choices)
    assert responses[-1].usage.completion_tokens == 10
