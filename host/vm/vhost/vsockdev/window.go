package vsockdev

import (
	"math/bits"
	"sync"
)

// window holds received bytes until they are read: a ring that grows as needed
// and goes back to a pool when it is empty, so an idle connection holds none.
type window struct {
	buf  *[]byte // of a pool, its length a power of two; nil when empty
	r, n int     // the next byte to read; how many there are
}

const minWindow = 4 << 10

// pools[i] has buffers of minWindow<<i bytes.
var pools [bits.UintSize]sync.Pool

func getBuffer(n int) *[]byte {
	i := 0
	for minWindow<<i < n {
		i++
	}
	if b, ok := pools[i].Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, minWindow<<i)
	return &b
}

func putBuffer(b *[]byte) {
	pools[bits.Len(uint(len(*b)/minWindow))-1].Put(b)
}

func (w *window) len() int { return w.n }

// write appends b. The caller bounds how much is in the window.
func (w *window) write(b []byte) {
	if len(b) == 0 {
		return
	}
	if w.buf == nil || w.n+len(b) > len(*w.buf) {
		next := getBuffer(w.n + len(b))
		n := w.peek(*next)
		if w.buf != nil {
			putBuffer(w.buf)
		}
		w.buf, w.r, w.n = next, 0, n
	}
	buf := *w.buf
	at := (w.r + w.n) & (len(buf) - 1)
	k := copy(buf[at:], b)
	copy(buf, b[k:])
	w.n += len(b)
}

// peek copies the first bytes to b and returns how many.
func (w *window) peek(b []byte) int {
	if w.n == 0 {
		return 0
	}
	buf := *w.buf
	first := buf[w.r:min(w.r+w.n, len(buf))]
	k := copy(b, first)
	if k == len(first) {
		k += copy(b[k:], buf[:w.n-k])
	}
	return k
}

// read moves the first bytes to b and returns how many.
func (w *window) read(b []byte) int {
	k := w.peek(b)
	w.n -= k
	if w.n == 0 {
		w.drop()
	} else {
		w.r = (w.r + k) & (len(*w.buf) - 1)
	}
	return k
}

// drop empties the window.
func (w *window) drop() {
	if w.buf != nil {
		putBuffer(w.buf)
	}
	*w = window{}
}
