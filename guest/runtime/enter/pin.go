//go:build linux

package enter

import _ "unsafe" // for linkname

// procPin keeps Go's scheduler from taking this goroutine off its thread, as
// package sync's own does: after a fork there is no other thread that would
// give it back.
//
//go:linkname procPin runtime.procPin
func procPin() int
