package vsockdev

import (
	"syscall"

	"dhow/host/vm/vhost"
)

// receive takes packets from the guest until there are no more, or until too
// many answers wait. It runs on the tx queue's goroutine and waits for nobody.
func (d *Device) receive(q *vhost.Queue) {
	for {
		q.DisableKicks()
		for !d.stalled() {
			ok, err := q.Pop(&d.chain)
			if err != nil {
				d.mu.Lock()
				d.violated()
				d.mu.Unlock()
				return
			}
			if !ok {
				break
			}
			ok = d.packet(d.chain.Read, len(d.chain.Write) > 0)
			if !ok {
				_ = q.Fail("a packet of %d bytes, %d of them writable", total(d.chain.Read)+total(d.chain.Write), total(d.chain.Write))
			}
			q.Push(&d.chain, 0)
		}
		q.Notify()
		if d.stalled() || !q.EnableKicks() {
			return
		}
	}
}

// stalled reports whether packets must wait until the guest has taken our
// answers to earlier ones; pump then pokes the queue.
func (d *Device) stalled() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	// A queue that is not known here belongs to a dead device.
	if d.queues[txQueue] == nil {
		return true
	}
	if d.out.replies.len() >= maxReplies {
		d.out.paused = true
	}
	return d.out.paused
}

// packet takes one packet. It returns false if that is no packet at all.
func (d *Device) packet(parts [][]byte, writable bool) bool {
	n := total(parts)
	if n < headerSize || writable {
		return false
	}
	var b [headerSize]byte
	parts = gather(parts, b[:])
	var h header
	h.parse(&b)

	d.mu.Lock()
	if h.SrcCID != d.guestCID || h.DstCID != hostCID {
		if !d.warned {
			d.warned = true
			d.log.Warn("vsock: the guest's packets between other machines are dropped", "from", h.SrcCID, "to", h.DstCID)
		}
		d.mu.Unlock()
		return true
	}
	c := d.take(&h, n-headerSize)
	if c == nil {
		d.pump()
		d.mu.Unlock()
		return true
	}
	d.mu.Unlock()

	// The copy is made without the device's lock: writers go on meanwhile.
	switch c.deliver(parts, int(h.Len)) {
	case overrun:
		d.mu.Lock()
		d.refuse(c, &h)
		d.pump()
		d.mu.Unlock()
	case direct:
		c.credit()
	}
	return true
}

// take does what a packet says, except for its data: for those it returns the
// connection. mu is held; pump must follow.
func (d *Device) take(h *header, payload int) *Conn {
	k := key{host: h.DstPort, guest: h.SrcPort}
	c := d.conns[k]
	if h.Type != typeStream || c == nil {
		switch {
		case h.Op == opReset:
		case h.Op == opRequest && h.Type == typeStream:
			d.accept(k, h)
		default:
			d.reset(k, h.Type)
		}
		return nil
	}
	c.peerAlloc, c.peerFwd = h.BufAlloc, h.FwdCnt
	switch {
	case h.Op == opReset:
		err := syscall.ECONNRESET
		if c.state == connecting {
			err = syscall.ECONNREFUSED
		}
		d.remove(c, err)
	case h.Op == opResponse && c.state == connecting && c.requested:
		c.state, c.answered = open, true
		close(c.dialed)
	case c.state == connecting:
		d.refuse(c, h)
	case h.Op == opShutdown:
		d.shutdown(c, h.Flags)
	case h.Op == opCreditUpdate:
		d.offer(c)
	case h.Op == opCreditRequest:
		if c.state == open {
			d.control(c, ctlCredit)
		}
		d.offer(c)
	case h.Op == opData:
		d.offer(c)
		if c.state == closing {
			return nil // nobody will read it, as the guest is being told
		}
		if c.peerShut&shutSend != 0 || uint64(h.Len) > uint64(payload) {
			d.refuse(c, h)
			return nil
		}
		if c.ctl != 0 || c.queued {
			d.pump()
		}
		return c
	default:
		d.refuse(c, h)
	}
	return nil
}

// accept answers a request of the guest.
func (d *Device) accept(k key, h *header) {
	l := d.listeners[k.host]
	if l == nil || len(d.conns) >= maxConns || len(l.conns) == cap(l.conns) {
		d.reset(k, typeStream)
		return
	}
	c := d.newConn(k, open)
	c.answered = true
	c.peerAlloc, c.peerFwd = h.BufAlloc, h.FwdCnt
	d.control(c, ctlResponse)
	l.conns <- c // has room, and only we fill it, under mu
}

// shutdown takes the guest's word that it will not receive or not send.
func (d *Device) shutdown(c *Conn, flags uint32) {
	c.peerShut |= flags & shutBoth
	if c.peerShut&shutSend != 0 {
		c.finish(nil)
	}
	if c.peerShut == shutBoth {
		// Both ends of it are closed there: it waits for this reset.
		d.reset(c.key, typeStream)
		d.remove(c, nil)
		return
	}
	c.writers.Broadcast()
}

// refuse resets a connection on which the guest broke the rules.
func (d *Device) refuse(c *Conn, h *header) {
	if c.state == gone {
		return
	}
	d.log.Debug("vsock: connection reset, as the guest broke the protocol", "host port", c.key.host, "guest port", c.key.guest, "operation", h.Op, "length", h.Len)
	d.reset(c.key, typeStream)
	d.remove(c, syscall.ECONNRESET)
}
