package vhost

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"
)

// Descriptor and ring flags (virtio 1.1 section 2.6).
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4
	descSize     = 16

	availNoInterrupt = 1
	usedNoNotify     = 1

	maxQueueSize = 32768
	// maxChainBytes is the longest chain that a driver may make.
	maxChainBytes = 1 << 32
)

// ErrViolation is wrapped by the error of a queue that the guest broke.
var ErrViolation = errors.New("the guest broke the rules of the virtqueue")

// Chain is one request of the guest: the bytes that the device reads, and the
// space that it writes to. The slices are the guest's memory: it may change
// them at any time, so what is checked must first be copied. They are valid
// until Push.
type Chain struct {
	Read  [][]byte
	Write [][]byte

	head uint16
	mem  *Memory
}

// Queue is one split virtqueue. Its methods may be called from any goroutine.
// A queue that is not live looks empty.
type Queue struct {
	mu sync.Mutex

	// Set while live (or draining), under mu.
	mem              *Memory
	size             uint16
	desc             []byte
	avail            []byte
	used             []byte
	availHead        *uint32 // flags and index, as one word
	usedHead         *uint32
	lastAvail        uint16 // the next entry of avail to take
	usedIdx          uint16 // the next entry of used to fill
	usedFlags        uint16
	indirect         bool
	draining         bool
	unsignaled       bool // pushed since the last Notify
	err              error
	inflight         int
	drained          *sync.Cond
	call             func()      // signals the guest
	poke             func()      // signals ourselves
	fail             func(error) // told of err, under mu: must not call back
	chainsTotal      uint64
	interruptsTotal  uint64
	interruptsElided uint64
}

func newQueue(call, poke func(), fail func(error)) *Queue {
	q := &Queue{call: call, poke: poke, fail: fail}
	q.drained = sync.NewCond(&q.mu)
	return q
}

// ringConfig is what a start needs to know.
type ringConfig struct {
	size     uint16
	addr     vringAddr
	base     uint16
	indirect bool
	memory   *Memory
}

// start makes the queue live.
func (q *Queue) start(c ringConfig) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.place(c.memory, c.addr, c.size); err != nil {
		return err
	}
	q.lastAvail = c.base
	// What the device consumed is in the used ring itself; a fresh driver
	// has zeroed it.
	q.usedIdx = uint16(atomic.LoadUint32(q.usedHead) >> 16)
	q.usedFlags = 0
	q.indirect = c.indirect
	q.draining, q.unsignaled, q.err = false, false, nil
	return nil
}

// swap replaces the memory under a live queue; it does nothing on another.
func (q *Queue) swap(m *Memory, addr vringAddr) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mem == nil {
		return nil
	}
	return q.place(m, addr, q.size)
}

// place finds the three parts of the ring in memory and takes a reference to
// it, dropping the one that the queue had.
func (q *Queue) place(m *Memory, a vringAddr, size uint16) error {
	if size == 0 || size > maxQueueSize || size&(size-1) != 0 {
		return fmt.Errorf("a queue of %d entries", size)
	}
	n := uint64(size)
	desc, err := m.atUser(a.Desc, n*descSize)
	if err != nil {
		return fmt.Errorf("descriptor table: %w", err)
	}
	avail, err := m.atUser(a.Avail, 4+n*2)
	if err != nil {
		return fmt.Errorf("available ring: %w", err)
	}
	used, err := m.atUser(a.Used, 4+n*8)
	if err != nil {
		return fmt.Errorf("used ring: %w", err)
	}
	availHead, usedHead := unsafe.Pointer(&avail[0]), unsafe.Pointer(&used[0])
	if (uintptr(availHead)|uintptr(usedHead))&3 != 0 {
		return errors.New("the rings are not aligned to 4 bytes")
	}
	m.retain()
	if q.mem != nil {
		q.mem.release()
	}
	q.mem, q.size = m, size
	q.desc, q.avail, q.used = desc, avail, used
	q.availHead, q.usedHead = (*uint32)(availHead), (*uint32)(usedHead)
	return nil
}

// stop makes the queue look empty; chains that are out can still be pushed.
func (q *Queue) stop() {
	q.mu.Lock()
	q.draining = true
	q.mu.Unlock()
}

// drain waits until every chain is back, lets go of the memory and returns
// the index at which the queue can be started again.
func (q *Queue) drain() uint16 {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.inflight > 0 {
		q.drained.Wait()
	}
	if q.mem != nil {
		q.mem.release()
	}
	q.mem, q.desc, q.avail, q.used, q.availHead, q.usedHead = nil, nil, nil, nil, nil, nil
	return q.lastAvail
}

// Base returns the index of the next chain that the queue will take, modulo
// 2^16. A driver that was just loaded starts at 0, one that was paused goes on
// where it was.
func (q *Queue) Base() uint16 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.lastAvail
}

// Pop takes the next chain into c, whose old content is overwritten, and
// reports whether there was one. The chain must go back by Push. The error
// wraps ErrViolation; it stays until the guest resets the device, and has been
// logged.
func (q *Queue) Pop(c *Chain) (bool, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil {
		return false, q.err
	}
	if q.mem == nil || q.draining {
		return false, nil
	}
	n := uint16(atomic.LoadUint32(q.availHead)>>16) - q.lastAvail
	if n == 0 {
		return false, nil
	}
	if n > q.size {
		return false, q.violated("its index jumped by %d in a ring of %d", n, q.size)
	}
	c.Read, c.Write = c.Read[:0], c.Write[:0]
	c.head = binary.LittleEndian.Uint16(q.avail[4+2*int(q.lastAvail&(q.size-1)):])
	if err := q.walk(c); err != nil {
		return false, err
	}
	q.lastAvail++
	q.inflight++
	q.chainsTotal++
	q.mem.retain()
	c.mem = q.mem
	return true, nil
}

// walk follows the descriptors from c.head. Each is read once.
func (q *Queue) walk(c *Chain) error {
	table, i, total := q.desc, uint32(c.head), uint64(0)
	inTable := false // in an indirect table
	for steps := 0; ; {
		if uint64(i)*descSize+descSize > uint64(len(table)) {
			return q.violated("descriptor %d does not exist", i)
		}
		d := table[i*descSize : i*descSize+descSize]
		addr := binary.LittleEndian.Uint64(d)
		n := uint64(binary.LittleEndian.Uint32(d[8:]))
		flags := binary.LittleEndian.Uint16(d[12:])
		next := binary.LittleEndian.Uint16(d[14:])

		if flags&descIndirect != 0 {
			if !q.indirect || inTable || flags&descNext != 0 {
				return q.violated("an indirect descriptor where none may be")
			}
			if n == 0 || n%descSize != 0 || n > uint64(q.size)*descSize {
				return q.violated("an indirect table of %d bytes", n)
			}
			parts, ok := q.mem.appendGuest(nil, addr, n)
			if !ok || len(parts) != 1 {
				return q.violated("an indirect table at %#x, outside its memory", addr)
			}
			table, i, inTable = parts[0], 0, true
			continue
		}
		// Counting finds loops, too.
		if steps++; steps > int(q.size) {
			return q.violated("a chain of more than %d descriptors", q.size)
		}
		if n == 0 {
			return q.violated("a descriptor of no length")
		}
		if total += n; total > maxChainBytes {
			return q.violated("a chain of more than 4 GiB")
		}
		var ok bool
		if flags&descWrite != 0 {
			c.Write, ok = q.mem.appendGuest(c.Write, addr, n)
		} else if len(c.Write) > 0 {
			return q.violated("a readable descriptor behind a writable one")
		} else {
			c.Read, ok = q.mem.appendGuest(c.Read, addr, n)
		}
		if !ok {
			return q.violated("%d bytes at %#x, outside its memory", n, addr)
		}
		if flags&descNext == 0 {
			return nil
		}
		i = uint32(next)
	}
}

// violated breaks the queue; mu is held.
func (q *Queue) violated(format string, args ...any) error {
	q.err = fmt.Errorf("%w: %s", ErrViolation, fmt.Sprintf(format, args...))
	q.fail(q.err)
	return q.err
}

// Fail breaks the queue for a reason that the device found; format and args say
// what the guest did. It returns the error that Pop returns from now on.
func (q *Queue) Fail(format string, args ...any) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil {
		return q.err
	}
	return q.violated(format, args...)
}

// Push gives c back to the guest, with the first written bytes of c.Write
// filled. The guest sees it at once, and is told by Notify.
func (q *Queue) Push(c *Chain, written uint32) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if c.mem == nil {
		return // pushed already
	}
	c.mem.release()
	c.mem = nil
	q.inflight--
	if q.inflight == 0 {
		q.drained.Broadcast()
	}
	if q.mem == nil {
		return
	}
	e := q.used[4+8*int(q.usedIdx&(q.size-1)):]
	binary.LittleEndian.PutUint32(e, uint32(c.head))
	binary.LittleEndian.PutUint32(e[4:], written)
	q.usedIdx++
	q.publish()
	q.unsignaled = true
}

// publish writes the head of the used ring. The exchange is a full barrier:
// what comes before is visible before it, and what the guest wrote before its
// own barrier is visible after it.
func (q *Queue) publish() {
	atomic.SwapUint32(q.usedHead, uint32(q.usedFlags)|uint32(q.usedIdx)<<16)
}

// Notify tells the guest of what was pushed, unless it asked not to be told or
// there is nothing new.
func (q *Queue) Notify() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.unsignaled || q.mem == nil {
		return
	}
	q.unsignaled = false
	if atomic.LoadUint32(q.availHead)&availNoInterrupt != 0 {
		q.interruptsElided++
		return
	}
	q.interruptsTotal++
	q.call()
}

// DisableKicks asks the guest not to tell of new chains. It is a hint.
func (q *Queue) DisableKicks() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mem != nil && q.usedFlags == 0 {
		q.usedFlags = usedNoNotify
		q.publish()
	}
}

// EnableKicks asks the guest to tell of new chains, and reports whether there
// is one already, which nobody will tell of.
func (q *Queue) EnableKicks() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mem == nil || q.draining || q.err != nil {
		return false
	}
	if q.usedFlags != 0 {
		q.usedFlags = 0
		q.publish()
	}
	return uint16(atomic.LoadUint32(q.availHead)>>16) != q.lastAvail
}

// Poke makes the device's Kick be called, as if the guest had done it.
func (q *Queue) Poke() { q.poke() }

// QueueStats are totals since the Queue was made.
type QueueStats struct {
	Chains            uint64 // taken
	Interrupts        uint64 // sent to the guest
	InterruptsSkipped uint64 // that the guest did not want
}

// Stats returns the queue's totals.
func (q *Queue) Stats() QueueStats {
	q.mu.Lock()
	defer q.mu.Unlock()
	return QueueStats{q.chainsTotal, q.interruptsTotal, q.interruptsElided}
}
