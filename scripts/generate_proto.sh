#!/bin/sh
# Regenerates the Python code of the .proto files. Needs grpcio-tools 1.81.1 (code of later ones refuses protobuf 6):
# `make proto` installs it in an environment of its own.
set -eu
cd "$(dirname "$0")/.."
python=${1:-python3}
protoc() { "$python" -m grpc_tools.protoc "$@"; }
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

protoc -I transport/bundle --python_out=transport/bundle --pyi_out=transport/bundle onnx_subset.proto

for proto in narrowcast/tail/v1/tail narrowcast/inference/v2/open_inference; do
  protoc -I transport/rpc --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" "$proto.proto"
  for name in "${proto}_pb2.py" "${proto}_pb2.pyi" "${proto}_pb2_grpc.py"; do
    # The package narrowcast.tail is the server's; the generated code lives here.
    sed 's/^from narrowcast\.[a-z]*\.v[12] import/from narrowcast.transport.rpc import/' \
      "$out/$name" >"transport/rpc/${name##*/}"
  done
done
