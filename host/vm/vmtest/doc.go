// Package vmtest has the conformance suite of the Machine contract (host/vm)
// and Memory, a machine that runs in memory.
//
// A driver's test calls Run with a function that makes machines whose guest
// runs host/vm/vmtest/probe; Memory passes the same suite, so that tests of
// the daemon may trust it in a hypervisor's place: it has the same states,
// refusals, resets and ends, and a guest function where the others have a
// kernel.
package vmtest
