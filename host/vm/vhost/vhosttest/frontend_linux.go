package vhosttest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Requests of the protocol, as numbers on the wire.
const (
	GetFeatures         = 1
	SetFeatures         = 2
	SetOwner            = 3
	SetMemTable         = 5
	SetVringNum         = 8
	SetVringAddr        = 9
	SetVringBase        = 10
	GetVringBase        = 11
	SetVringKick        = 12
	SetVringCall        = 13
	SetVringErr         = 14
	GetProtocolFeatures = 15
	SetProtocolFeatures = 16
	GetQueueNum         = 17
	SetVringEnable      = 18
	GetConfig           = 24
)

const (
	version1         = 1 << 32
	protocolFeatures = 1 << 30
	replyAck         = 1 << 3
)

// The guest's memory: two regions, as on a PC with a hole, in one file.
// Addresses in QEMU's space differ from both.
const (
	RegionSize = 8 << 20
	Region0    = 0           // guest-physical
	Region1    = 0x100000000 // guest-physical
	userBase   = 0x7f0000000000
	userGap    = 0x1000000000
)

// Frontend is QEMU's end of one connection, and the guest's memory.
type Frontend struct {
	Conn  *net.UnixConn
	Mem   []byte // both regions, one behind the other
	Rings []*Ring
	file  *os.File
	next  uint64 // the next free guest address in region 1
}

// Dial connects to a back end that listens at path.
func Dial(path string) (*Frontend, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		c.Close()
		return nil, err
	}
	f := &Frontend{Conn: c, file: os.NewFile(uintptr(fd), "guest"), next: Region1}
	if err := f.file.Truncate(2 * RegionSize); err != nil {
		f.Close()
		return nil, err
	}
	f.Mem, err = unix.Mmap(fd, 0, 2*RegionSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Close ends the connection, as QEMU's end does, and frees everything.
func (f *Frontend) Close() {
	f.Conn.Close()
	for _, r := range f.Rings {
		r.close()
	}
	f.file.Close()
	if f.Mem != nil {
		_ = unix.Munmap(f.Mem)
	}
}

// Bytes returns n bytes of memory at the guest-physical address addr.
func (f *Frontend) Bytes(addr uint64, n int) []byte {
	off := addr
	if addr >= Region1 {
		off = addr - Region1 + RegionSize
	}
	return f.Mem[off : off+uint64(n) : off+uint64(n)]
}

// User returns the address in QEMU's space of the guest-physical addr.
func User(addr uint64) uint64 {
	if addr >= Region1 {
		return userBase + userGap + addr - Region1
	}
	return userBase + addr
}

// Alloc reserves n bytes of the guest's memory and returns their address.
func (f *Frontend) Alloc(n int) uint64 {
	f.next = (f.next + 15) &^ 15
	a := f.next
	f.next += uint64(n)
	if f.next > Region1+RegionSize {
		panic("vhosttest: the guest's memory is full")
	}
	return a
}

// Send sends one message.
func (f *Frontend) Send(request, flags uint32, payload []byte, fds ...int) error {
	b := binary.LittleEndian.AppendUint32(nil, request)
	b = binary.LittleEndian.AppendUint32(b, flags)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	b = append(b, payload...)
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err := f.Conn.WriteMsgUnix(b, oob, nil)
	return err
}

// Reply reads one reply to request and returns its payload.
func (f *Frontend) Reply(request uint32) ([]byte, error) {
	if err := f.Conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return nil, err
	}
	var h [12]byte
	if _, err := io.ReadFull(f.Conn, h[:]); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if le.Uint32(h[:]) != request || le.Uint32(h[4:]) != 1|4 || le.Uint32(h[8:]) > 4096 {
		return nil, fmt.Errorf("vhosttest: the reply to %d starts with % x", request, h)
	}
	p := make([]byte, le.Uint32(h[8:]))
	_, err := io.ReadFull(f.Conn, p)
	return p, err
}

// Get sends a request that has a reply, and returns its payload.
func (f *Frontend) Get(request uint32, payload []byte) ([]byte, error) {
	if err := f.Send(request, 1, payload); err != nil {
		return nil, err
	}
	return f.Reply(request)
}

// Set sends a request and waits for its acknowledgement.
func (f *Frontend) Set(request uint32, payload []byte, fds ...int) error {
	if err := f.Send(request, 1|8, payload, fds...); err != nil {
		return err
	}
	p, err := f.Reply(request)
	if err != nil {
		return err
	}
	if len(p) != 8 || binary.LittleEndian.Uint64(p) != 0 {
		return fmt.Errorf("vhosttest: request %d was refused: % x", request, p)
	}
	return nil
}

// U64 is the payload of one number.
func U64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

// State is the payload of a queue's index and a number.
func State(i, n uint32) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, i), n)
}

// MemTable is the payload of the memory table of this front end.
func (f *Frontend) MemTable() []byte {
	b := State(2, 0)
	for i, guest := range []uint64{Region0, Region1} {
		for _, v := range []uint64{guest, RegionSize, User(guest), uint64(i) * RegionSize} {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
	}
	return b
}

// SetMemory hands the guest's memory over (again).
func (f *Frontend) SetMemory() error {
	fd := int(f.file.Fd())
	return f.Set(SetMemTable, f.MemTable(), fd, fd)
}

// Setup does all that QEMU does until the driver runs, with n queues of size
// entries each. features are acknowledged beside the transport's.
func (f *Frontend) Setup(features uint64, n, size int) error {
	got, err := f.Get(GetFeatures, nil)
	if err != nil {
		return err
	}
	want := uint64(version1|protocolFeatures) | features
	if have := binary.LittleEndian.Uint64(got); have&want != want {
		return fmt.Errorf("vhosttest: features %#x of %#x", have, want)
	}
	if got, err = f.Get(GetProtocolFeatures, nil); err != nil {
		return err
	}
	// The acknowledgement of this one may not be asked for yet.
	if err := f.Send(SetProtocolFeatures, 1, got); err != nil {
		return err
	}
	if binary.LittleEndian.Uint64(got)&replyAck == 0 {
		return errors.New("vhosttest: the back end acknowledges nothing")
	}
	if err := f.Set(SetOwner, nil); err != nil {
		return err
	}
	if err := f.Set(SetFeatures, U64(want)); err != nil {
		return err
	}
	if err := f.SetMemory(); err != nil {
		return err
	}
	for i := range n {
		r, err := newRing(f, i, size)
		if err != nil {
			return err
		}
		f.Rings = append(f.Rings, r)
	}
	for i := range n {
		if err := f.Start(i, 0); err != nil {
			return err
		}
	}
	return nil
}

// Start makes queue i live at the index base.
func (f *Frontend) Start(i int, base uint32) error {
	r, n := f.Rings[i], uint32(i)
	if err := f.Set(SetVringNum, State(n, uint32(r.Size))); err != nil {
		return err
	}
	if err := f.Set(SetVringBase, State(n, base)); err != nil {
		return err
	}
	addr := State(n, 0)
	for _, v := range []uint64{User(r.DescAddr), User(r.UsedAddr), User(r.AvailAddr), 0} {
		addr = binary.LittleEndian.AppendUint64(addr, v)
	}
	if err := f.Set(SetVringAddr, addr); err != nil {
		return err
	}
	if err := f.Set(SetVringCall, U64(uint64(i)), r.callFD); err != nil {
		return err
	}
	if err := f.Set(SetVringErr, U64(uint64(i)), r.errFD); err != nil {
		return err
	}
	if err := f.Set(SetVringKick, U64(uint64(i)), r.kickFD); err != nil {
		return err
	}
	return f.Set(SetVringEnable, State(n, 1))
}

// Stop stops queue i and returns its index.
func (f *Frontend) Stop(i int) (uint32, error) {
	p, err := f.Get(GetVringBase, State(uint32(i), 0))
	if err != nil {
		return 0, err
	}
	if len(p) != 8 || binary.LittleEndian.Uint32(p) != uint32(i) {
		return 0, fmt.Errorf("vhosttest: the base of queue %d is % x", i, p)
	}
	return binary.LittleEndian.Uint32(p[4:]), nil
}
