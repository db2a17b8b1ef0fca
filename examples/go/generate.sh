#!/usr/bin/env bash
# Generates jobwirev1/ from the contract. Needs protoc, protoc-gen-go and protoc-gen-go-grpc:
#   go install google.golang.org/protobuf/cmd/protoc-gen-go@latest
#   go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@latest
# PROTOC may name another compiler, for example "python -m grpc_tools.protoc".
# PROTOS may name another folder than the contract of this repository.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
protos=${PROTOS:-$(cd "$here/../../protos" && pwd)}
options=()
for file in "$protos"/jobwire/v1/*.proto; do
  options+=("--go_opt=M${file#"$protos"/}=jobwire-example/jobwirev1"
    "--go-grpc_opt=M${file#"$protos"/}=jobwire-example/jobwirev1")
done
${PROTOC:-protoc} -I "$protos" "${options[@]}" \
  --go_out="$here" --go_opt=module=jobwire-example \
  --go-grpc_out="$here" --go-grpc_opt=module=jobwire-example \
  "$protos"/jobwire/v1/*.proto
