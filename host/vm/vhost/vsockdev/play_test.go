package vsockdev

import (
	"encoding/binary"
	"log/slog"
	"net"
	"slices"
	"testing"
)

// play is a device whose queues are played by the test, packet by packet.
type play struct {
	t     testing.TB
	d     *Device
	l     net.Listener
	conns []*Conn
	data  []byte
}

const (
	testCID  = 7
	playPort = 5
)

func newPlay(t testing.TB) *play {
	p := &play{t: t, d: New(slog.New(slog.DiscardHandler), testCID), data: make([]byte, 128<<10)}
	p.d.seen = [2]bool{true, true}
	var err error
	if p.l, err = p.d.Listen(playPort); err != nil {
		t.Fatal(err)
	}
	return p
}

// step does one step of FuzzPackets.
func (p *play) step(s []byte) {
	payload := int(binary.LittleEndian.Uint16(s[6:]))
	var c *Conn
	if len(p.conns) > 0 {
		c = p.conns[int(s[3])%len(p.conns)]
	}
	if s[0]%8 != 0 && s[0]%8 != 5 && c == nil {
		return
	}
	switch s[0] % 8 {
	case 0:
		p.packet(s, payload)
	case 1: // read what is there
		c.mu.Lock()
		wait := c.in.len() == 0 && !c.eof && c.readErr == nil && !c.unread
		c.mu.Unlock()
		if !wait {
			n, err := c.Read(p.data[:payload])
			if n < 0 || n > payload || (err != nil && n > 0) {
				p.t.Fatalf("Read: %d, %v", n, err)
			}
		}
	case 2: // a Write that waits: without a goroutine, so that runs can be repeated
		p.d.mu.Lock()
		if c.writeError() == nil && len(c.unsent) == 0 {
			c.unsent = p.data[:payload]
			p.d.offer(c)
			p.d.pump()
		}
		p.d.mu.Unlock()
	case 3:
		_ = c.CloseWrite()
	case 4:
		_ = c.Close()
	case 5: // dial; the answer is the fuzzer's
		p.d.mu.Lock()
		if c, err := p.d.connect(uint32(s[3] % 4)); err == nil {
			p.conns = append(p.conns, c)
		}
		p.d.mu.Unlock()
	case 6:
		p.drain()
	case 7:
		c.expire()
	}
	for {
		select {
		case c := <-p.l.(*Listener).conns:
			p.conns = append(p.conns, c)
			continue
		default:
		}
		break
	}
}

func (p *play) packet(s []byte, payload int) {
	h := header{
		SrcCID: testCID, DstCID: hostCID, SrcPort: uint32(s[3] % 4), DstPort: playPort,
		Len: uint32(binary.LittleEndian.Uint16(s[8:])), Type: uint16(s[2]), Op: op(s[1]), Flags: uint32(s[5]),
		BufAlloc: uint32(s[10]) | uint32(s[11])<<8 | uint32(s[12])<<16, FwdCnt: uint32(s[13]) | uint32(s[14])<<8 | uint32(s[15])<<16,
	}
	if s[3]&0x80 != 0 { // a connection that the host dialed
		h.DstPort = firstPort + uint32(s[3]>>4&7)
	}
	if s[4]&1 != 0 {
		h.DstCID = uint64(s[4])
	}
	if s[4]&2 != 0 {
		h.SrcCID = uint64(s[4])
	}
	// A guest's queue waits while the device has too much to say.
	p.d.mu.Lock()
	full := p.d.out.replies.len() >= maxReplies
	p.d.mu.Unlock()
	if full {
		p.drain()
	}
	var b [headerSize]byte
	h.put(&b)
	cut := int(s[0]>>3) % headerSize // the header may be in pieces
	parts := [][]byte{b[:cut], b[cut:], p.data[:payload]}
	parts = slices.DeleteFunc(parts, func(p []byte) bool { return len(p) == 0 }) // the queue knows none
	if !p.d.packet(parts, false) {
		p.t.Fatal("a packet with a whole header is said to be none")
	}
}

// drain plays the guest that takes all packets of the device.
func (p *play) drain() {
	d := p.d
	d.mu.Lock()
	defer d.mu.Unlock()
	buf := make([]byte, 4096)
	for n := 0; d.waiting(); n++ {
		if n > 1<<16 {
			p.t.Fatal("the device does not stop to send")
		}
		k := d.next([][]byte{buf[:7], buf[7:]}, len(buf)-headerSize)
		var h header
		h.parse((*[headerSize]byte)(buf))
		if h.SrcCID != hostCID || h.DstCID != testCID || h.Op < opRequest || h.Op > opCreditRequest ||
			(h.Op == opData) != (h.Len > 0) || int(k) != headerSize+int(h.Len) {
			p.t.Fatalf("the device sent %+v in %d bytes", h, k)
		}
		if h.Op == opData {
			c := d.conns[key{h.SrcPort, h.DstPort}]
			if c == nil || c.sent-c.peerFwd > c.peerAlloc {
				p.t.Fatalf("the device sent %d bytes beyond its credit", h.Len)
			}
		}
	}
}

// check looks at what must always hold.
func (p *play) check() {
	d := p.d
	d.mu.Lock()
	defer d.mu.Unlock()
	promised := 0
	for k, c := range d.conns {
		promised += int(c.window)
		c.mu.Lock()
		if c.in.len() > int(c.window) || c.state == gone || c.key != k {
			p.t.Fatalf("connection %v: %d bytes in a window of %d, state %d", k, c.in.len(), c.window, c.state)
		}
		c.mu.Unlock()
	}
	if promised != d.promised {
		p.t.Fatalf("windows of %d bytes, promised %d", promised, d.promised)
	}
	if d.out.control.len()+d.out.data.len() > 4*len(d.conns)+200 {
		p.t.Fatalf("%d connections, and %d wait to send", len(d.conns), d.out.control.len()+d.out.data.len())
	}
	for _, c := range p.conns {
		if c.state == gone && d.conns[c.key] == c {
			p.t.Fatal("a connection that is gone is known")
		}
	}
}
