package splice

import (
	"io"
	"net"
	"sync"
)

// bufferSize is a compromise: large enough that a copy's system calls don't
// show, small enough that a hundred idle attach streams cost little.
const bufferSize = 64 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// closeWriter is what a stream that can be half-closed has.
type closeWriter interface{ CloseWrite() error }

// onlyReader and onlyWriter hide ReadFrom and WriteTo, which would make
// io.CopyBuffer ignore the buffer and allocate its own.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

// Join copies from a to b and from b to a until both directions have ended,
// then closes both. A direction's end becomes the other stream's half-close; an
// error in either direction ends both at once and is returned (nil after two
// clean ends). There is no time-out: an idle stream is not a dead one.
func Join(a, b net.Conn) error {
	back := make(chan error, 1)
	abort := func() { _, _ = a.Close(), b.Close() }
	go func() {
		err := copyHalf(a, b)
		if err != nil {
			abort()
		}
		back <- err
	}()
	err := copyHalf(b, a)
	if err != nil {
		abort()
	}
	if other := <-back; err == nil {
		err = other
	}
	abort()
	return err
}

// copyHalf copies src to dst until src's end and half-closes dst.
func copyHalf(dst, src net.Conn) error {
	if err := Copy(dst, src); err != nil {
		return err
	}
	if w, ok := dst.(closeWriter); ok {
		// The reader of dst may be gone already, having read all it wanted:
		// the other direction's end tells.
		_ = w.CloseWrite()
	}
	return nil
}

// Copy copies src to dst with a pooled buffer until src's end, which is no error.
func Copy(dst io.Writer, src io.Reader) error {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	_, err := io.CopyBuffer(onlyWriter{dst}, onlyReader{src}, *buf)
	return err
}
