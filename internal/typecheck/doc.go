// Package typecheck type-checks packages for a system that cannot be compiled
// for here: the macOS driver uses cgo and Apple's frameworks, and neither a C
// compiler for macOS nor its headers are on a Linux machine.
//
// It runs `go list`, which compiles nothing, and checks the Go half of every
// package with go/types; what comes from C has no type and is taken on trust.
// Only errors in the main module count, and unresolved imports anywhere.
package typecheck
