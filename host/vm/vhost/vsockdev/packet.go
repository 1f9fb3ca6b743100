package vsockdev

import "encoding/binary"

const (
	headerSize = 44

	hostCID = 2

	typeStream = 1
)

// op is a packet's operation.
type op uint16

const (
	opRequest       op = 1
	opResponse      op = 2
	opReset         op = 3
	opShutdown      op = 4
	opData          op = 5
	opCreditUpdate  op = 6
	opCreditRequest op = 7
)

// Flags of opShutdown: the sender will not receive, will not send.
const (
	shutReceive = 1
	shutSend    = 2
	shutBoth    = shutReceive | shutSend
)

// header is what every packet starts with.
type header struct {
	SrcCID, DstCID   uint64
	SrcPort, DstPort uint32
	Len              uint32 // of the payload, in bytes
	Type             uint16
	Op               op
	Flags            uint32
	BufAlloc         uint32 // the sender's window, in bytes
	FwdCnt           uint32 // what left the sender's window, modulo 2^32
}

func (h *header) put(b *[headerSize]byte) {
	le := binary.LittleEndian
	le.PutUint64(b[0:], h.SrcCID)
	le.PutUint64(b[8:], h.DstCID)
	le.PutUint32(b[16:], h.SrcPort)
	le.PutUint32(b[20:], h.DstPort)
	le.PutUint32(b[24:], h.Len)
	le.PutUint16(b[28:], h.Type)
	le.PutUint16(b[30:], uint16(h.Op))
	le.PutUint32(b[32:], h.Flags)
	le.PutUint32(b[36:], h.BufAlloc)
	le.PutUint32(b[40:], h.FwdCnt)
}

func (h *header) parse(b *[headerSize]byte) {
	le := binary.LittleEndian
	h.SrcCID = le.Uint64(b[0:])
	h.DstCID = le.Uint64(b[8:])
	h.SrcPort = le.Uint32(b[16:])
	h.DstPort = le.Uint32(b[20:])
	h.Len = le.Uint32(b[24:])
	h.Type = le.Uint16(b[28:])
	h.Op = op(le.Uint16(b[30:]))
	h.Flags = le.Uint32(b[32:])
	h.BufAlloc = le.Uint32(b[36:])
	h.FwdCnt = le.Uint32(b[40:])
}

// total returns the bytes in parts.
func total(parts [][]byte) int {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	return n
}

// skip cuts the first n bytes off parts, in place; there are at least n.
func skip(parts [][]byte, n int) [][]byte {
	for n > 0 {
		if n < len(parts[0]) {
			parts[0] = parts[0][n:]
			return parts
		}
		n -= len(parts[0])
		parts = parts[1:]
	}
	return parts
}

// scatter copies b to the start of parts, which have the room, and returns the
// room that is left. It changes parts.
func scatter(parts [][]byte, b []byte) [][]byte {
	for len(b) > 0 {
		n := copy(parts[0], b)
		b = b[n:]
		parts = skip(parts, n)
	}
	return parts
}

// gather fills b from the start of parts, which have the bytes, and returns
// the bytes that are left. It changes parts.
func gather(parts [][]byte, b []byte) [][]byte {
	for len(b) > 0 {
		n := copy(b, parts[0])
		b = b[n:]
		parts = skip(parts, n)
	}
	return parts
}
