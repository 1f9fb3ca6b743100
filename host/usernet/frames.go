package usernet

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
)

// A device's stream is frames, each behind its length in 4 bytes, big-endian.
const (
	ethernetHeader = 14
	ipv4Header     = 20
	maxFrame       = ethernetHeader + 4 + 65535 // with a VLAN tag
)

// frames is a device's stream without the frames that the switch and the stack
// must not see: shorter than an Ethernet header (the switch would panic), or IPv4
// to 0.0.0.0/8 or 127.0.0.0/8, which on the host mean the host itself. A guest
// that can send raw frames can send such.
type frames struct {
	net.Conn
	in   *bufio.Reader
	left int    // bytes of the present frame not yet read
	head []byte // its length prefix, not yet read
}

func newFrames(c net.Conn) *frames { return &frames{Conn: c, in: bufio.NewReaderSize(c, 128<<10)} }

// Read returns bytes of frames that pass.
func (f *frames) Read(p []byte) (int, error) {
	for f.left == 0 {
		if err := f.next(); err != nil {
			return 0, err
		}
	}
	if len(f.head) > 0 {
		n := copy(p, f.head)
		f.head = f.head[n:]
		return n, nil
	}
	if len(p) > f.left {
		p = p[:f.left]
	}
	n, err := f.in.Read(p)
	f.left -= n
	return n, err
}

// next looks at the next frame; left stays 0 if it was dropped.
func (f *frames) next() error {
	prefix, err := f.in.Peek(4)
	if err != nil {
		return err
	}
	size := int(binary.BigEndian.Uint32(prefix))
	if size > maxFrame {
		return fmt.Errorf("the device sent a frame of %d bytes", size)
	}
	start, err := f.in.Peek(4 + min(size, ethernetHeader+ipv4Header))
	if err != nil {
		return err
	}
	if size == 0 || !passes(start[4:]) {
		_, err := f.in.Discard(4 + size)
		return err
	}
	f.head = append(f.head[:0:0], start[:4]...)
	f.left = size
	_, err = f.in.Discard(4)
	return err
}

// passes judges a frame by its first bytes, headers included if it has them.
func passes(start []byte) bool {
	if len(start) < ethernetHeader {
		return false
	}
	if binary.BigEndian.Uint16(start[12:]) != 0x0800 { // not IPv4: ARP, or dropped by the stack
		return true
	}
	if len(start) < ethernetHeader+ipv4Header {
		return false
	}
	net8 := start[ethernetHeader+16] // first byte of the destination
	return net8 != 0 && net8 != 127
}

var _ io.Reader = (*frames)(nil)
