package vhost

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Virtio feature bits that the transport knows (virtio 1.1 section 6; bit 30
// is vhost-user's own).
const (
	FeatureIndirect         = 1 << 28 // VIRTIO_F_RING_INDIRECT_DESC
	featureProtocolFeatures = 1 << 30 // VHOST_USER_F_PROTOCOL_FEATURES
	featureVersion1         = 1 << 32 // VIRTIO_F_VERSION_1
)

// Protocol feature bits.
const (
	protocolMQ       = 1 << 0
	protocolReplyAck = 1 << 3
	protocolConfig   = 1 << 9
)

// request is the number of a front-end message.
type request uint32

const (
	getFeatures         request = 1
	setFeatures         request = 2
	setOwner            request = 3
	resetOwner          request = 4
	setMemTable         request = 5
	setVringNum         request = 8
	setVringAddr        request = 9
	setVringBase        request = 10
	getVringBase        request = 11
	setVringKick        request = 12
	setVringCall        request = 13
	setVringErr         request = 14
	getProtocolFeatures request = 15
	setProtocolFeatures request = 16
	getQueueNum         request = 17
	setVringEnable      request = 18
	getConfig           request = 24
	setConfig           request = 25
)

const (
	headerSize = 12
	// maxPayload bounds the payload of one message; the largest that we
	// take is the memory table (8 + 8×32), the largest that exists is a
	// configuration space (12 + 256).
	maxPayload = 512
	// maxRegions is the protocol's limit of a memory table, and so of the
	// file descriptors of one message.
	maxRegions = 8

	flagVersion   = 1
	flagVersions  = 3 // mask
	flagReply     = 4
	flagNeedReply = 8

	// vringNoFD in the payload of KICK, CALL and ERR says that no file
	// descriptor comes along.
	vringNoFD    = 1 << 8
	vringIndexes = 0xff // mask
)

// header is what every message starts with.
type header struct {
	Request request
	Flags   uint32
	Size    uint32 // of the payload, in bytes
}

func parseHeader(b []byte) (header, error) {
	if len(b) < headerSize {
		return header{}, errShort
	}
	h := header{
		Request: request(binary.LittleEndian.Uint32(b)),
		Flags:   binary.LittleEndian.Uint32(b[4:]),
		Size:    binary.LittleEndian.Uint32(b[8:]),
	}
	if h.Flags&flagVersions != flagVersion {
		return h, fmt.Errorf("message %d has version %d, not 1", h.Request, h.Flags&flagVersions)
	}
	if h.Flags&flagReply != 0 {
		return h, fmt.Errorf("message %d is a reply, and nothing was asked", h.Request)
	}
	if h.Size > maxPayload {
		return h, fmt.Errorf("message %d has %d bytes, more than %d", h.Request, h.Size, maxPayload)
	}
	return h, nil
}

// appendReply appends the reply to request r with the payload given.
func appendReply(b []byte, r request, payload []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(r))
	b = binary.LittleEndian.AppendUint32(b, flagVersion|flagReply)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

var errShort = errors.New("the message is too short")

// u64 parses the payload of most messages: one number.
func parseU64(p []byte) (uint64, error) {
	if len(p) != 8 {
		return 0, errShort
	}
	return binary.LittleEndian.Uint64(p), nil
}

// vringState is the payload of NUM, BASE and ENABLE.
type vringState struct{ Index, Num uint32 }

func parseVringState(p []byte) (vringState, error) {
	if len(p) != 8 {
		return vringState{}, errShort
	}
	return vringState{binary.LittleEndian.Uint32(p), binary.LittleEndian.Uint32(p[4:])}, nil
}

// vringAddr is the payload of ADDR; the addresses are in QEMU's own space.
type vringAddr struct {
	Index, Flags      uint32
	Desc, Used, Avail uint64
}

func parseVringAddr(p []byte) (vringAddr, error) {
	if len(p) != 40 { // the last 8 bytes are the log's address, unused
		return vringAddr{}, errShort
	}
	return vringAddr{
		Index: binary.LittleEndian.Uint32(p),
		Flags: binary.LittleEndian.Uint32(p[4:]),
		Desc:  binary.LittleEndian.Uint64(p[8:]),
		Used:  binary.LittleEndian.Uint64(p[16:]),
		Avail: binary.LittleEndian.Uint64(p[24:]),
	}, nil
}

// regionConfig is one entry of the memory table. All in bytes.
type regionConfig struct {
	Guest  uint64 // guest-physical address
	Size   uint64
	User   uint64 // QEMU's address
	Offset uint64 // in the file
}

func parseMemTable(p []byte) ([]regionConfig, error) {
	if len(p) < 8 {
		return nil, errShort
	}
	n := binary.LittleEndian.Uint32(p)
	if n == 0 || n > maxRegions {
		return nil, fmt.Errorf("a memory table of %d regions", n)
	}
	p = p[8:]
	if len(p) < int(n)*32 {
		return nil, errShort
	}
	regions := make([]regionConfig, n)
	for i := range regions {
		e := p[i*32:]
		regions[i] = regionConfig{
			Guest:  binary.LittleEndian.Uint64(e),
			Size:   binary.LittleEndian.Uint64(e[8:]),
			User:   binary.LittleEndian.Uint64(e[16:]),
			Offset: binary.LittleEndian.Uint64(e[24:]),
		}
	}
	return regions, nil
}

// configHeader is the size of the offset, size and flags before the bytes of
// a configuration space.
const configHeader = 12

// configReply answers GET_CONFIG from the device's configuration space: the
// same header and the bytes, or no payload at all if they do not exist.
func configReply(p, space []byte) ([]byte, error) {
	if len(p) < configHeader {
		return nil, errShort
	}
	off := uint64(binary.LittleEndian.Uint32(p))
	size := uint64(binary.LittleEndian.Uint32(p[4:]))
	if off+size > uint64(len(space)) {
		return nil, nil
	}
	return append(append([]byte(nil), p[:configHeader]...), space[off:off+size]...), nil
}
