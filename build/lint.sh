#!/usr/bin/env bash
# Few linters, all fatal.
set -euo pipefail
cd "$(dirname "$0")/.."
bad=$(gofmt -l cmd host guest vmimage proto internal build test)
if [ -n "$bad" ]; then echo "gofmt these: $bad" >&2; exit 1; fi
go vet ./...
# What a foreign system sees of the tree; the macOS driver needs cgo and is type-checked by internal/typecheck instead.
host=$(go list ./cmd/dhow ./cmd/dhowd ./host/... ./proto/... ./internal/... | grep -v /host/vm/vz)
GOOS=windows CGO_ENABLED=0 go vet $host
GOOS=linux GOARCH=arm64 CGO_ENABLED=0 go vet ./guest/... ./cmd/... ./host/... ./proto/...
go tool staticcheck ./...
go test -count=1 ./internal/typecheck ./internal/archtest
