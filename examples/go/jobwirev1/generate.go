// Package jobwirev1 is generated from the contract in protos/. To generate it anew, with
// protoc-gen-go and protoc-gen-go-grpc on the PATH, run `go generate ./...` here.
package jobwirev1

//go:generate ../generate.sh
