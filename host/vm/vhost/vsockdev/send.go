package vsockdev

import (
	"math"
)

const (
	// maxReplies is how many resets may wait for the guest before we stop
	// taking packets from it: each may cause one.
	maxReplies = 1024
	// turn is how many bytes one connection sends before the next, if
	// others wait.
	turn = 64 << 10
	// notifyEvery is how many packets are put into the ring before the
	// guest is told, so that it works while we copy.
	notifyEvery = 16
)

// ctl is a set of packets without data that a connection has to send, in the
// order in which they are sent.
type ctl uint8

const (
	ctlRequest ctl = 1 << iota
	ctlResponse
	ctlShutdown
	ctlCredit // every packet tells the credit, so any other will do
)

// outbox is what waits to be sent: first resets, which belong to no
// connection, then packets without data, then data.
type outbox struct {
	replies fifo[header]
	control fifo[*Conn] // with bits in Conn.ctl
	data    fifo[*Conn] // with bytes in Conn.unsent and credit for them
	paused  bool        // the tx queue, as replies is full
}

// reset queues a reset of the connection k of packets of type typ. mu is held.
func (d *Device) reset(k key, typ uint16) {
	if d.out.replies.len() >= 2*maxReplies {
		// Only our own aborted dials come here. The guest will hear of
		// it when it next uses the connection.
		return
	}
	d.out.replies.push(header{
		SrcCID: hostCID, DstCID: d.guestCID, SrcPort: k.host, DstPort: k.guest,
		Type: typ, Op: opReset,
	})
}

// control queues packets without data for c. mu is held; pump must follow.
func (d *Device) control(c *Conn, bits ctl) {
	if c.ctl == 0 {
		d.out.control.tidy(2*len(d.conns), func(c *Conn) bool { return c.state != gone })
		d.out.control.push(c)
	}
	c.ctl |= bits
}

// offer queues c if it has data that it may send. mu is held; pump must follow.
func (d *Device) offer(c *Conn) {
	if !c.queued && c.sendable() > 0 {
		c.queued, c.turn = true, turn
		d.out.data.tidy(2*len(d.conns), func(c *Conn) bool { return c.state != gone })
		d.out.data.push(c)
	}
}

// waiting reports whether there is anything to send, and drops what has become
// void from the heads of the queues. mu is held.
func (d *Device) waiting() bool {
	o := &d.out
	for o.control.len() > 0 {
		if c := o.control.head(); c.state == gone {
			c.ctl = 0
			o.control.pop()
			continue
		}
		break
	}
	for o.data.len() > 0 {
		if c := o.data.head(); c.sendable() == 0 {
			c.queued = false
			o.data.pop()
			continue
		}
		break
	}
	return o.replies.len()+o.control.len()+o.data.len() > 0
}

// pump moves what waits into the guest's buffers, as far as there are any.
// Whoever queues something calls it, and so does the rx queue's goroutine when
// the guest gives buffers. mu is held, which is what keeps the hint to the
// guest right: kicks are on whenever something waits and the ring is empty.
func (d *Device) pump() {
	q := d.queues[rxQueue]
	if q == nil {
		return
	}
	for n := 1; d.waiting(); n++ {
		ok, err := q.Pop(&d.outChain)
		if err != nil {
			d.violated()
			return
		}
		if !ok {
			if q.EnableKicks() {
				continue
			}
			break
		}
		room := total(d.outChain.Write) - headerSize
		if room <= 0 || len(d.outChain.Read) > 0 {
			_ = q.Fail("a receive buffer of %d bytes, %d of them read-only", total(d.outChain.Write), total(d.outChain.Read))
			q.Push(&d.outChain, 0)
			d.violated()
			return
		}
		q.Push(&d.outChain, d.next(d.outChain.Write, room))
		if n%notifyEvery == 0 {
			q.Notify()
		}
	}
	q.Notify()
	if d.out.paused && d.out.replies.len() < maxReplies/2 {
		d.out.paused = false
		if tx := d.queues[txQueue]; tx != nil {
			tx.Poke()
		}
	}
}

// next writes the next packet to dst, which has room for a header and room
// more bytes, and returns its length. waiting has just said that there is one.
func (d *Device) next(dst [][]byte, room int) uint32 {
	o := &d.out
	var b [headerSize]byte
	if o.replies.len() > 0 {
		h := o.replies.pop()
		h.put(&b)
		scatter(dst, b[:])
		return headerSize
	}
	if o.control.len() > 0 {
		c := o.control.head()
		h := c.header(opCreditUpdate)
		switch {
		case c.ctl&ctlRequest != 0:
			h.Op, c.requested = opRequest, true
			c.ctl &^= ctlRequest
		case c.ctl&ctlResponse != 0:
			h.Op = opResponse
			c.ctl &^= ctlResponse
		case c.ctl&ctlShutdown != 0:
			h.Op, h.Flags = opShutdown, c.shut
			c.ctl &^= ctlShutdown
		}
		c.ctl &^= ctlCredit
		if c.ctl == 0 {
			o.control.pop()
		}
		h.put(&b)
		scatter(dst, b[:])
		return headerSize
	}
	c := o.data.head()
	n := min(room, c.sendable())
	h := c.header(opData)
	h.Len = uint32(n)
	h.put(&b)
	scatter(scatter(dst, b[:]), c.unsent[:n])
	c.unsent = c.unsent[n:]
	c.sent += uint32(n)
	if c.sendable() == 0 {
		c.queued = false
		o.data.pop()
		if len(c.unsent) == 0 {
			c.writers.Broadcast()
		}
	} else if c.turn -= n; c.turn <= 0 {
		c.turn = turn
		o.data.push(o.data.pop())
	}
	return uint32(headerSize + n)
}

// header returns a header of c, which tells the guest c's credit.
func (c *Conn) header(o op) header {
	fwd := c.forwarded.Load()
	c.told.Store(fwd)
	return header{
		SrcCID: hostCID, DstCID: c.d.guestCID, SrcPort: c.key.host, DstPort: c.key.guest,
		Type: typeStream, Op: o, BufAlloc: c.window, FwdCnt: fwd,
	}
}

// sendable returns how many of c's unsent bytes the guest has room for. mu is
// held.
func (c *Conn) sendable() int {
	if len(c.unsent) == 0 || c.state != open || c.shut&shutSend != 0 || c.peerShut&shutReceive != 0 {
		return 0
	}
	// What is on its way; a guest that claims to have taken more than it
	// was sent gets a huge number here, and nothing more.
	flight := c.sent - c.peerFwd
	if flight >= c.peerAlloc {
		return 0
	}
	return int(min(uint64(len(c.unsent)), uint64(c.peerAlloc-flight), math.MaxUint16+1))
}

// fifo is a queue that keeps its memory while it is in use.
type fifo[T any] struct {
	items []T
	first int
}

func (f *fifo[T]) len() int { return len(f.items) - f.first }
func (f *fifo[T]) head() T  { return f.items[f.first] }

func (f *fifo[T]) push(v T) {
	if f.first > 64 && f.first > len(f.items)/2 {
		n := copy(f.items, f.items[f.first:])
		clear(f.items[n:])
		f.items, f.first = f.items[:n], 0
	}
	f.items = append(f.items, v)
}

// tidy drops what keep does not want, if there are more than n items and a
// few: dead items must not pile up behind one that waits for long.
func (f *fifo[T]) tidy(n int, keep func(T) bool) {
	if f.len() < n+64 {
		return
	}
	kept := f.items[:0]
	for _, v := range f.items[f.first:] {
		if keep(v) {
			kept = append(kept, v)
		}
	}
	clear(f.items[len(kept):])
	f.items, f.first = kept, 0
}

func (f *fifo[T]) pop() T {
	var zero T
	v := f.items[f.first]
	f.items[f.first] = zero
	if f.first++; f.first == len(f.items) {
		f.items, f.first = f.items[:0], 0
	}
	return v
}
