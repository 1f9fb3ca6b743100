package vmtest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// window is how many bytes one direction of a connection holds before Write
// blocks.
const window = 64 << 10

// addr is a vsock address.
type addr struct{ cid, port uint32 }

func (a addr) Network() string { return "vsock" }
func (a addr) String() string  { return fmt.Sprintf("%d:%d", a.cid, a.port) }

// stream is one direction of a connection.
type stream struct {
	mu      sync.Mutex
	buf     []byte
	eof     bool          // the writer ended it: reading ends after buf
	err     error         // both ends fail with it at once
	changed chan struct{} // closed, and replaced, at every change
}

func newStream() *stream { return &stream{changed: make(chan struct{})} }

// change runs f and wakes up who waits. What f may do is bounded by s.mu.
func (s *stream) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// fail ends the stream for both sides, unless it has failed before.
func (s *stream) fail(err error) {
	s.change(func() {
		if s.err == nil {
			s.err, s.buf = err, nil
		}
	})
}

// step is one attempt to read or write: it reports the bytes moved, or an
// error, or neither for "wait for a change".
type step func() (n int, err error)

// wait repeats try until it moves something, fails, or d passes.
func (s *stream) wait(d *deadline, try step) (int, error) {
	for {
		if d.passed() {
			return 0, os.ErrDeadlineExceeded
		}
		s.mu.Lock()
		n, err := try()
		if n > 0 || err != nil {
			close(s.changed)
			s.changed = make(chan struct{})
			s.mu.Unlock()
			return n, err
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-d.wait():
		}
	}
}

func (s *stream) read(p []byte, d *deadline) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	return s.wait(d, func() (int, error) {
		if s.err != nil {
			return 0, s.err
		}
		if len(s.buf) > 0 {
			n := copy(p, s.buf)
			s.buf = s.buf[n:]
			return n, nil
		}
		if s.eof {
			return 0, io.EOF
		}
		return 0, nil
	})
}

func (s *stream) write(p []byte, d *deadline) (total int, err error) {
	for total < len(p) {
		n, err := s.wait(d, func() (int, error) {
			if s.err != nil {
				return 0, s.err
			}
			if s.eof {
				return 0, syscall.EPIPE
			}
			n := min(window-len(s.buf), len(p)-total)
			s.buf = append(s.buf, p[total:total+n]...)
			return n, nil
		})
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// deadline is a point in time that can be moved while somebody waits for it.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	done  chan struct{}
}

func newDeadline() *deadline { return &deadline{done: make(chan struct{})} }

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.done // its function has been called or is about to be
	}
	d.timer = nil
	select {
	case <-d.done:
		d.done = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	if left := time.Until(t); left > 0 {
		done := d.done
		d.timer = time.AfterFunc(left, func() { close(done) })
		return
	}
	close(d.done)
}

func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.done
}

func (d *deadline) passed() bool {
	select {
	case <-d.wait():
		return true
	default:
		return false
	}
}

// conn is one end of a connection.
type conn struct {
	in, out       *stream
	local, remote addr
	rd, wr        *deadline
	once          sync.Once
	closed        chan struct{}
	onClose       func()
}

// newPipe returns the two ends of a connection; forget is called once both
// are closed.
func newPipe(a, b addr, forget func()) (*conn, *conn) {
	ab, ba := newStream(), newStream()
	var mu sync.Mutex
	open := 2
	closed := func() {
		mu.Lock()
		defer mu.Unlock()
		if open--; open == 0 {
			forget()
		}
	}
	end := func(in, out *stream, local, remote addr) *conn {
		return &conn{in: in, out: out, local: local, remote: remote,
			rd: newDeadline(), wr: newDeadline(), closed: make(chan struct{}), onClose: closed}
	}
	return end(ba, ab, a, b), end(ab, ba, b, a)
}

func (c *conn) op(op string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	select {
	case <-c.closed:
		err = net.ErrClosed
	default:
	}
	return &net.OpError{Op: op, Net: "vsock", Source: c.local, Addr: c.remote, Err: err}
}

func (c *conn) Read(p []byte) (int, error) {
	if err := c.open(); err != nil {
		return 0, c.op("read", err)
	}
	n, err := c.in.read(p, c.rd)
	return n, c.op("read", err)
}

func (c *conn) Write(p []byte) (int, error) {
	if err := c.open(); err != nil {
		return 0, c.op("write", err)
	}
	n, err := c.out.write(p, c.wr)
	return n, c.op("write", err)
}

func (c *conn) open() error {
	select {
	case <-c.closed:
		return net.ErrClosed
	default:
		return nil
	}
}

// CloseWrite ends the stream to the peer.
func (c *conn) CloseWrite() error {
	if err := c.open(); err != nil {
		return c.op("close", err)
	}
	c.out.change(func() { c.out.eof = true })
	return nil
}

// Close ends both directions: the peer still reads what was written, its
// writes fail.
func (c *conn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.rd.set(time.Time{})
		c.wr.set(time.Time{})
		c.out.change(func() { c.out.eof = true })
		c.in.fail(syscall.ECONNRESET)
		c.onClose()
	})
	return nil
}

// reset fails both ends at once.
func (c *conn) reset() {
	c.in.fail(syscall.ECONNRESET)
	c.out.fail(syscall.ECONNRESET)
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) SetDeadline(t time.Time) error {
	c.rd.set(t)
	c.wr.set(t)
	return c.openOp()
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.rd.set(t)
	return c.openOp()
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.wr.set(t)
	return c.openOp()
}

func (c *conn) openOp() error { return c.op("set", c.open()) }
