"""Tensors and addresses on the wire; the schema's names."""

from __future__ import annotations

import re

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from narrowcast.transport.bundle import OutputSpec
from narrowcast.transport.errors import AddressError, TransportError
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.channels import Address, parse_address
from narrowcast.transport.rpc.tensors import from_tensor, from_tensors, to_tensor

DTYPES = ["float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool"]


@given(
    st.sampled_from(DTYPES).flatmap(lambda d: arrays.arrays(d, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0)))
)
@settings(max_examples=150, deadline=None)
def test_arrays_round_trip(array):
    back = from_tensor(pb.Tensor.FromString(to_tensor("x", array).SerializeToString()))
    assert back.shape == array.shape
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


def test_large_arrays_are_packed_where_that_helps():
    mask = np.zeros((100, 100), np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (100, 100)).astype(np.uint8)
    assert to_tensor("mask", mask).packing == pb.PACKING_ZSTD
    assert len(to_tensor("mask", mask).data) < 100
    assert to_tensor("noise", noise).packing == pb.PACKING_RAW
    assert to_tensor("small", mask[:3]).packing == pb.PACKING_RAW
    wanted = OutputSpec(name="mask", dtype="uint8", shape=[100, 100])
    assert np.array_equal(from_tensors([to_tensor("mask", mask)], [wanted])["mask"], mask)


def test_big_endian_arrays_are_turned():
    assert from_tensor(to_tensor("x", np.array([1, 2], ">i4"))).tolist() == [1, 2]


def bent(**change) -> pb.Tensor:
    tensor = to_tensor("x", np.arange(6, dtype=np.float32).reshape(2, 3))
    for name, value in change.items():
        if name == "shape":
            del tensor.shape[:]
            tensor.shape.extend(value)
        else:
            setattr(tensor, name, value)
    return tensor


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data_type": 0}, "data type"),
        ({"data_type": 99}, "data type"),
        ({"packing": 0}, "packing"),
        ({"shape": [2, 4]}, "asks for 32"),
        ({"shape": [2**31, 2**31]}, "limit"),
        ({"packing": pb.PACKING_ZSTD}, "does not unpack"),
        ({"packing": pb.PACKING_ZSTD, "data": zstandard.compress(bytes(100_000_000))}, "asks for 24"),
    ],
)
def test_tensors_that_cannot_be_are_errors(change, said):
    with pytest.raises(TransportError, match=said):
        from_tensor(bent(**change))


def test_strings_have_no_place_on_the_wire():
    with pytest.raises(TransportError, match="the wire carries"):
        to_tensor("names", np.array(["a"]))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("server:1", Address("server", 1)),
        ("192.0.2.7", Address("192.0.2.7", 7433)),
        ("[::1]:9", Address("::1", 9)),
        (" a-b.example:65535 ", Address("a-b.example", 65535)),
    ],
)
def test_addresses(text, address):
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize("text", ["", ":80", "host:", "host:99999", "ho st:1", "http://x:1", "::1:80", "a:b"])
def test_what_is_no_address(text):
    with pytest.raises(AddressError, match="HOST:PORT"):
        parse_address(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_only_this_machine(host):
    assert Address(host, 1).is_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "127.example", "::"])
def test_other_machines_too(host):
    assert not Address(host, 1).is_loopback


def test_the_schema_is_named_as_buf_standard_wants():
    """buf's STANDARD rules on names, checked on the compiled descriptor."""
    file = pb.DESCRIPTOR
    assert file.package == "narrowcast.tail.v1"
    assert file.name == "narrowcast/tail/v1/tail.proto"
    for service in file.services_by_name.values():
        assert service.name.endswith("Service")
        for method in service.methods:
            assert method.input_type.name == f"{method.name}Request"
            assert method.output_type.name == f"{method.name}Response"
    for message in file.message_types_by_name.values():
        assert re.fullmatch(r"([A-Z][a-z0-9]*)+", message.name)
        for field in message.fields:
            assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", field.name)
    for enum in file.enum_types_by_name.values():
        prefix = re.sub(r"(?<!^)([A-Z])", r"_\1", enum.name).upper()
        assert enum.values_by_number[0].name == f"{prefix}_UNSPECIFIED"
        assert all(value.name.startswith(f"{prefix}_") for value in enum.values)
