package vhosttest

import (
	"encoding/binary"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Descriptor flags.
const (
	Next     = 1
	Write    = 2
	Indirect = 4
)

// Buffer is one descriptor's worth of the guest's memory.
type Buffer struct {
	Addr  uint64
	Len   uint32
	Write bool // for the device to write
}

// Ring is the driver's side of one queue. It is for one goroutine.
type Ring struct {
	Size                          int
	DescAddr, AvailAddr, UsedAddr uint64 // guest-physical

	f                     *Frontend
	kickFD, callFD, errFD int
	call, broken          *os.File
	free                  []uint16
	avail                 uint16 // our index
	seen                  uint16 // of used
}

func newRing(f *Frontend, i, size int) (*Ring, error) {
	r := &Ring{f: f, Size: size, kickFD: -1, callFD: -1, errFD: -1}
	r.DescAddr = f.Alloc(16 * size)
	r.AvailAddr = f.Alloc(6 + 2*size)
	r.UsedAddr = f.Alloc(6 + 8*size)
	var err error
	for _, fd := range []*int{&r.kickFD, &r.callFD, &r.errFD} {
		if *fd, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
			r.close()
			return nil, err
		}
	}
	// Files of their own, so that closing one does not close what is passed on.
	for fd, file := range map[int]**os.File{r.callFD: &r.call, r.errFD: &r.broken} {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			r.close()
			return nil, err
		}
		*file = os.NewFile(uintptr(dup), "event")
	}
	r.Reset()
	return r, nil
}

func (r *Ring) close() {
	for _, fd := range []int{r.kickFD, r.callFD, r.errFD} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	if r.call != nil {
		r.call.Close()
	}
	if r.broken != nil {
		r.broken.Close()
	}
}

// Reset makes the ring as a driver finds it that has just been loaded.
func (r *Ring) Reset() {
	clear(r.f.Bytes(r.DescAddr, 16*r.Size))
	clear(r.f.Bytes(r.AvailAddr, 4+2*r.Size))
	clear(r.f.Bytes(r.UsedAddr, 4+8*r.Size))
	r.avail, r.seen, r.free = 0, 0, nil
	for i := range r.Size {
		r.free = append(r.free, uint16(i))
	}
}

// SetDesc writes descriptor i.
func (r *Ring) SetDesc(i int, addr uint64, n uint32, flags, next uint16) {
	PutDesc(r.f.Bytes(r.DescAddr+16*uint64(i), 16), addr, n, flags, next)
}

// PutDesc writes a descriptor to b.
func PutDesc(b []byte, addr uint64, n uint32, flags, next uint16) {
	binary.LittleEndian.PutUint64(b, addr)
	binary.LittleEndian.PutUint32(b[8:], n)
	binary.LittleEndian.PutUint16(b[12:], flags)
	binary.LittleEndian.PutUint16(b[14:], next)
}

func (r *Ring) word(addr uint64) *uint32 {
	return (*uint32)(unsafe.Pointer(&r.f.Bytes(addr, 4)[0]))
}

// Publish makes the chain at head available, and shows it to the device.
func (r *Ring) Publish(head uint16) {
	binary.LittleEndian.PutUint16(r.f.Bytes(r.AvailAddr+4+2*uint64(int(r.avail)%r.Size), 2), head)
	r.SetAvail(r.avail + 1)
}

// SetAvail sets the available index.
func (r *Ring) SetAvail(i uint16) {
	r.avail = i
	flags := atomic.LoadUint32(r.word(r.AvailAddr)) & 0xffff
	atomic.SwapUint32(r.word(r.AvailAddr), flags|uint32(i)<<16)
}

// Add makes a chain of bufs available and returns its head; it reports false if
// there are not enough descriptors. Kick follows.
func (r *Ring) Add(bufs ...Buffer) (head uint16, ok bool) {
	if len(bufs) > len(r.free) {
		return 0, false
	}
	ids := r.free[len(r.free)-len(bufs):]
	for i, b := range bufs {
		var flags, next uint16
		if b.Write {
			flags |= Write
		}
		if i+1 < len(bufs) {
			flags |= Next
			next = ids[i+1]
		}
		r.SetDesc(int(ids[i]), b.Addr, b.Len, flags, next)
	}
	head = ids[0]
	r.free = r.free[:len(r.free)-len(bufs)]
	r.Publish(head)
	return head, true
}

// Kick tells the device, unless it asked not to be told; it reports whether it
// did.
func (r *Ring) Kick() bool {
	if atomic.LoadUint32(r.word(r.UsedAddr))&1 != 0 {
		return false
	}
	r.ForceKick()
	return true
}

// ForceKick tells the device.
func (r *Ring) ForceKick() { _, _ = unix.Write(r.kickFD, binary.NativeEndian.AppendUint64(nil, 1)) }

// Used takes the next used chain, whose descriptors become free.
func (r *Ring) Used() (head uint16, written uint32, ok bool) {
	if uint16(atomic.LoadUint32(r.word(r.UsedAddr))>>16) == r.seen {
		return 0, 0, false
	}
	e := r.f.Bytes(r.UsedAddr+4+8*uint64(int(r.seen)%r.Size), 8)
	r.seen++
	head, written = uint16(binary.LittleEndian.Uint32(e)), binary.LittleEndian.Uint32(e[4:])
	for i := head; ; {
		d := r.f.Bytes(r.DescAddr+16*uint64(i), 16)
		r.free = append(r.free, i)
		if binary.LittleEndian.Uint16(d[12:])&Next == 0 {
			return head, written, true
		}
		i = binary.LittleEndian.Uint16(d[14:])
	}
}

// Interrupts asks for interrupts or not, and reports whether used chains wait,
// of which none will tell.
func (r *Ring) Interrupts(on bool) bool {
	flags := uint32(1)
	if on {
		flags = 0
	}
	atomic.SwapUint32(r.word(r.AvailAddr), flags|uint32(r.avail)<<16)
	return uint16(atomic.LoadUint32(r.word(r.UsedAddr))>>16) != r.seen
}

// WaitInterrupt waits for an interrupt, at most d (0: as long as it takes).
// Close of the front end, or WakeUp, ends it too.
func (r *Ring) WaitInterrupt(d time.Duration) error { return wait(r.call, d) }

// WaitBroken waits until the device says that it gave the queue up.
func (r *Ring) WaitBroken(d time.Duration) error { return wait(r.broken, d) }

// WakeUp ends a WaitInterrupt as an interrupt does.
func (r *Ring) WakeUp() { _, _ = unix.Write(r.callFD, binary.NativeEndian.AppendUint64(nil, 1)) }

func wait(f *os.File, d time.Duration) error {
	var by time.Time
	if d > 0 {
		by = time.Now().Add(d)
	}
	if err := f.SetReadDeadline(by); err != nil {
		return err
	}
	var b [8]byte
	_, err := f.Read(b[:])
	return err
}
