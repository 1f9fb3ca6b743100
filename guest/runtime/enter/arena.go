package enter

import "unsafe"

// arena hands out memory of a forked child from one piece: each page that a
// child writes to costs it a fault and a copy, and the size classes of Go's
// allocator would spread a few kilobytes over dozens of pages. Nothing is ever
// freed, and nothing in it is known to the collector, which is off there. The
// nil arena is the ordinary allocator.
type arena struct {
	buf  []byte
	used int
}

// memory is what a child's arena starts with: pages that nobody has written to.
var memory [1 << 20]byte

// bytes returns n zeroed bytes, aligned for anything.
func (a *arena) bytes(n int) []byte {
	if a == nil || a.used+n > len(a.buf) {
		return make([]byte, n)
	}
	b := a.buf[a.used : a.used+n : a.used+n]
	a.used += (n + 15) &^ 15
	return b
}

// list returns n zero values.
func list[T any](a *arena, n int) []T {
	if n == 0 {
		return nil
	}
	var zero T
	size := n * int(unsafe.Sizeof(zero))
	if a == nil || a.used+size > len(a.buf) {
		return make([]T, n)
	}
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(a.bytes(size)))), n)
}

// scratch is the arena of a child; nil before there is one.
var scratch *arena

var childArena arena

func useArena() {
	childArena.buf = memory[:]
	scratch = &childArena
}
