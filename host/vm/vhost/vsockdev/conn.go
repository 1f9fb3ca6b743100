package vsockdev

import (
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mdlayher/vsock"
)

const network = "vsock"

// state is where a connection is in its life.
type state uint8

const (
	connecting state = iota // our request is not answered
	open                    // both ends know of it; one direction may be shut
	closing                 // closed here; the guest's reset is awaited
	gone                    // forgotten; nothing is sent or received
)

// Conn is a connection with the guest. It is a net.Conn with CloseWrite; its
// errors are *net.OpError (except io.EOF), as those of package net.
type Conn struct {
	d      *Device
	key    key
	window uint32 // what the guest may send ahead of our reader, in bytes

	forwarded atomic.Uint32 // bytes that left the window, modulo 2^32
	told      atomic.Uint32 // forwarded, as the guest last heard

	// Under d.mu: the life, and the direction to the guest.
	state     state
	closed    bool // by Close
	requested bool // our request is in the guest's hands
	answered  bool // it was ever open
	dialed    chan struct{}
	err       error // why it is gone
	timer     *time.Timer
	shut      uint32 // what we will not do any more; shut… flags
	peerShut  uint32 // the same of the guest
	ctl       ctl    // if not 0, it is in d.out.control
	queued    bool   // it is in d.out.data
	turn      int    // bytes to send before the next one's turn
	sent      uint32 // data bytes, modulo 2^32
	peerAlloc uint32 // the guest's window
	peerFwd   uint32
	writing   bool   // a Write owns unsent
	unsent    []byte // what is left of that Write's bytes
	writers   sync.Cond
	writeBy   deadline

	// Under mu: the direction from the guest. d.mu may be held when mu is
	// taken, not the other way round.
	mu      sync.Mutex
	in      window
	eof     bool
	readErr error  // after what is in the window
	unread  bool   // closed by Close
	target  []byte // the buffer of a Read that waits; nil if none does
	filled  int    // bytes in target
	readers sync.Cond
	readBy  deadline
}

// newConn adds a connection to the device. mu is held.
func (d *Device) newConn(k key, s state) *Conn {
	c := &Conn{d: d, key: k, state: s, window: fullWindow}
	if d.promised+fullWindow > windowBudget {
		c.window = smallWindow
	}
	c.writers.L = &d.mu
	c.readers.L = &c.mu
	d.promised += int(c.window)
	d.conns[k] = c
	return c
}

// remove forgets a connection. Reads return what has arrived, then err, or
// io.EOF if err is nil. d.mu is held.
func (d *Device) remove(c *Conn, err error) {
	if c.state == gone {
		return
	}
	if c.state == connecting && c.dialed != nil {
		close(c.dialed)
	}
	c.state, c.err = gone, err
	delete(d.conns, c.key)
	d.promised -= int(c.window)
	if c.timer != nil {
		c.timer.Stop()
	}
	c.finish(err)
	c.writers.Broadcast()
}

// finish ends the stream from the guest.
func (c *Conn) finish(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.eof = true
	} else if !c.eof {
		c.readErr = err
	}
	c.readers.Broadcast()
}

// abandon gives up a connection that Dial waits for, or that nobody accepted.
// d.mu is held.
func (d *Device) abandon(c *Conn, err error) {
	if c.state == gone {
		return
	}
	if c.requested || c.answered {
		d.reset(c.key, typeStream)
	}
	d.remove(c, err)
	d.pump()
}

// delivery is what became of a packet's data.
type delivery int

const (
	stored  delivery = iota // in the window, or nowhere if nobody will read it
	direct                  // some of it went to a Read: the guest may need to hear
	overrun                 // the guest sent more than it may
)

// deliver takes n bytes of data from parts.
func (c *Conn) deliver(parts [][]byte, n int) delivery {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.unread || c.eof || c.readErr != nil {
		return stored
	}
	if c.in.len()+n > int(c.window) {
		return overrun
	}
	result := stored
	for n > 0 {
		p := parts[0]
		p = p[:min(n, len(p))]
		n -= len(p)
		parts = parts[1:]
		if c.in.len() == 0 && c.filled < len(c.target) {
			k := copy(c.target[c.filled:], p)
			c.filled += k
			c.forwarded.Add(uint32(k))
			p = p[k:]
			result = direct
		}
		c.in.write(p)
	}
	c.readers.Broadcast()
	return result
}

// credit tells the guest how much was read, if that is worth a packet.
func (c *Conn) credit() {
	if c.forwarded.Load()-c.told.Load() < c.window/4 {
		return
	}
	d := c.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if c.state == open && c.peerShut&shutSend == 0 {
		d.control(c, ctlCredit)
		d.pump()
	}
}

// Read implements net.Conn. A connection that was reset yields what arrived
// before, then an error that wraps ECONNRESET.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.read(b)
	if err != nil && err != io.EOF {
		err = c.opError("read", err)
	}
	return n, err
}

func (c *Conn) read(b []byte) (int, error) {
	c.mu.Lock()
	for {
		var err error
		switch {
		case c.unread:
			err = net.ErrClosed
		case c.readBy.passed:
			err = os.ErrDeadlineExceeded
		case len(b) == 0:
		case c.in.len() > 0:
			n := c.in.read(b)
			c.forwarded.Add(uint32(n))
			c.mu.Unlock()
			c.credit()
			return n, nil
		case c.eof:
			err = io.EOF
		case c.readErr != nil:
			err = c.readErr
		case c.target != nil: // another Read is the one to be served directly
			c.readers.Wait()
			continue
		default:
			c.target = b
			c.readers.Wait()
			n := c.filled
			c.target, c.filled = nil, 0
			if n > 0 {
				c.readers.Broadcast() // one of the others takes our place
				c.mu.Unlock()
				return n, nil
			}
			continue
		}
		// A Read that took target's place and fails lets go of it above.
		c.readers.Broadcast()
		c.mu.Unlock()
		return 0, err
	}
}

// Write implements net.Conn. When it returns, the bytes that it counts are in
// the guest's memory.
func (c *Conn) Write(b []byte) (int, error) {
	n, err := c.write(b)
	if err != nil {
		err = c.opError("write", err)
	}
	return n, err
}

func (c *Conn) write(b []byte) (int, error) {
	d := c.d
	d.mu.Lock()
	defer d.mu.Unlock()
	for c.writing && c.writeError() == nil {
		c.writers.Wait()
	}
	if err := c.writeError(); err != nil {
		return 0, err
	}
	if len(b) == 0 {
		return 0, nil
	}
	c.writing, c.unsent = true, b
	d.offer(c)
	d.pump()
	var err error
	for len(c.unsent) > 0 && err == nil {
		c.writers.Wait()
		err = c.writeError()
	}
	n := len(b) - len(c.unsent)
	c.writing, c.unsent = false, nil
	c.writers.Broadcast()
	if n == len(b) {
		err = nil
	}
	return n, err
}

// writeError says why a Write cannot go on. d.mu is held.
func (c *Conn) writeError() error {
	switch {
	case c.closed:
		return net.ErrClosed
	case c.err != nil:
		return c.err
	case c.state == gone, c.shut&shutSend != 0, c.peerShut&shutReceive != 0:
		return syscall.EPIPE
	case c.writeBy.passed:
		return os.ErrDeadlineExceeded
	}
	return nil
}

// Close implements net.Conn. What was written before stays written: the guest
// reads it, then end of file. Calls that wait return net.ErrClosed.
func (c *Conn) Close() error {
	d := c.d
	d.mu.Lock()
	if c.closed {
		d.mu.Unlock()
		return c.opError("close", net.ErrClosed)
	}
	c.closed = true
	c.writeBy.stop()
	if c.state == open {
		c.state = closing
		c.shut = shutBoth
		c.timer = time.AfterFunc(closeTimeout, c.expire)
		d.control(c, ctlShutdown)
		d.pump()
	}
	c.writers.Broadcast()
	d.mu.Unlock()

	c.mu.Lock()
	defer c.mu.Unlock()
	c.unread = true
	c.readBy.stop()
	c.in.drop()
	c.readers.Broadcast()
	return nil
}

// expire forgets a connection whose closing the guest did not answer.
func (c *Conn) expire() {
	d := c.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if c.state == closing {
		d.reset(c.key, typeStream)
		d.remove(c, nil)
		d.pump()
	}
}

// CloseWrite ends the stream to the guest: it reads what was written, then end
// of file. Reads go on.
func (c *Conn) CloseWrite() error {
	d := c.d
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case c.closed:
		return c.opError("close", net.ErrClosed)
	case c.err != nil:
		return c.opError("close", c.err)
	case c.state == open && c.shut&shutSend == 0:
		c.shut |= shutSend
		d.control(c, ctlShutdown)
		d.pump()
		c.writers.Broadcast()
	}
	return nil
}

// LocalAddr returns the host's address, a *vsock.Addr.
func (c *Conn) LocalAddr() net.Addr { return hostAddr(c.key.host) }

// RemoteAddr returns the guest's address, a *vsock.Addr.
func (c *Conn) RemoteAddr() net.Addr { return c.d.guestAddr(c.key.guest) }

var _ net.Addr = (*vsock.Addr)(nil)

func (c *Conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: network, Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.unread {
		return c.opError("set", net.ErrClosed)
	}
	c.readBy.set(&c.readers, t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if c.closed {
		return c.opError("set", net.ErrClosed)
	}
	c.writeBy.set(&c.writers, t)
	return nil
}

// deadline is a time after which those who wait on a condition give up. The
// condition's lock guards it.
type deadline struct {
	passed bool
	timer  *time.Timer
	turn   int // counts the settings, so that a late timer knows it is void
}

func (dl *deadline) set(cond *sync.Cond, t time.Time) {
	dl.stop()
	dl.passed = false
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		dl.passed = true
		cond.Broadcast()
		return
	}
	turn := dl.turn
	dl.timer = time.AfterFunc(wait, func() {
		cond.L.Lock()
		defer cond.L.Unlock()
		if dl.turn == turn {
			dl.passed = true
			cond.Broadcast()
		}
	})
}

func (dl *deadline) stop() {
	dl.turn++
	if dl.timer != nil {
		dl.timer.Stop()
		dl.timer = nil
	}
}
