// Package probe is what runs in the guest while the conformance suite of
// host/vm/vmtest looks at a machine: a few services on vsock ports, and the
// power switch.
//
// The suite's in-memory machine calls Serve in process; a machine with a real
// kernel runs it as PID 1 (host/vm/vmtest/probe/init). It is small on purpose:
// under emulation every package it imports costs boot time.
package probe
