#!/usr/bin/env bash
# Runs the tests that boot the VM image, one package at a time: each boots
# machines of its own, and they would slow each other down.
set -euo pipefail
cd "$(dirname "$0")/.."
export DHOW_TEST_VM=1 DHOW_TEST_IMAGE="$PWD/build/out/image/$(go env GOARCH)"
export DHOW_TEST_IMAGE_ARM64="$PWD/build/out/image/arm64" DHOW_TEST_BIN="$PWD/bin"
packages=${*:-$(grep -rlE 'testkit\.VM\(' --include='*_test.go' . | xargs -n1 dirname | sort -u)}
go test -p 1 -count=1 -timeout 30m -run '^TestVM' $packages
