package vhost

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// session is the state of one connection of QEMU. Only Serve's goroutine
// touches it, except where noted.
type session struct {
	dev      Device
	log      *slog.Logger
	features uint64 // acknowledged
	protocol uint64
	memory   *Memory
	vrings   []*vring
}

// vring is one queue's configuration and, while it is live, its goroutine.
type vring struct {
	index   int
	q       *Queue
	size    uint16
	base    uint16
	addr    *vringAddr
	kick    *os.File // nil: the driver has not started the queue
	call    eventFD
	failed  eventFD
	enabled bool
	live    bool
	done    chan struct{} // closed when the goroutine has ended
}

func newSession(dev Device, log *slog.Logger) *session {
	s := &session{dev: dev, log: log}
	for i := range dev.Queues() {
		v := &vring{index: i, call: eventFD{fd: -1}, failed: eventFD{fd: -1}}
		v.q = newQueue(v.call.signal, v.poke, func(err error) {
			// Once per life of the queue: it takes nothing after.
			log.Error("vhost: queue stopped until the guest resets the device", "queue", i, "error", err)
			v.failed.signal()
		})
		s.vrings = append(s.vrings, v)
	}
	return s
}

// close stops every queue and frees what the session holds.
func (s *session) close() {
	for _, v := range s.vrings {
		s.stop(v)
		v.closeFiles()
		v.failed.set(-1)
	}
	if s.memory != nil {
		s.memory.release()
	}
}

// handle does what one message asks. reply is the payload of the answer, nil
// if the message has none of its own. Descriptors that it keeps, it takes out
// of fds. An error ends the session.
func (s *session) handle(h header, p []byte, fds *[]int) (reply []byte, err error) {
	switch h.Request {
	case getFeatures:
		return u64(s.offered()), nil
	case setFeatures:
		v, err := parseU64(p)
		if err == nil && v&^s.offered() != 0 {
			err = fmt.Errorf("features %#x were not offered", v&^s.offered())
		}
		if err != nil {
			return nil, err
		}
		s.features = v
		return nil, s.updateAll()
	case getProtocolFeatures:
		return u64(s.offeredProtocol()), nil
	case setProtocolFeatures:
		v, err := parseU64(p)
		if err == nil && v&^s.offeredProtocol() != 0 {
			err = fmt.Errorf("protocol features %#x were not offered", v&^s.offeredProtocol())
		}
		if err != nil {
			return nil, err
		}
		s.protocol = v
		return nil, nil
	case setOwner:
		return nil, nil
	case resetOwner:
		for _, v := range s.vrings {
			s.stop(v)
			v.enabled = false
		}
		return nil, nil
	case getQueueNum:
		return u64(uint64(len(s.vrings))), nil
	case setMemTable:
		return nil, s.setMemory(p, fds)
	case getConfig:
		if s.dev.Config() == nil {
			return nil, errors.New("the device has no configuration")
		}
		reply, err := configReply(p, s.dev.Config())
		if err == nil && reply == nil {
			reply = []byte{} // the protocol's way to say no
		}
		return reply, err
	case setVringKick, setVringCall, setVringErr:
		return nil, s.setFile(h.Request, p, fds)
	case setVringNum, setVringBase, getVringBase, setVringEnable:
		return s.vringState(h.Request, p)
	case setVringAddr:
		a, err := parseVringAddr(p)
		if err != nil {
			return nil, err
		}
		v, err := s.vring(a.Index)
		if err != nil {
			return nil, err
		}
		s.stop(v)
		v.addr = &a
		return nil, s.update(v)
	case setConfig:
		return nil, errors.New("the configuration is read-only")
	}
	return nil, errors.New("unknown")
}

func u64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

func (s *session) offered() uint64 {
	return s.dev.Features() | featureVersion1 | featureProtocolFeatures
}

func (s *session) offeredProtocol() uint64 {
	f := uint64(protocolMQ | protocolReplyAck)
	if s.dev.Config() != nil {
		f |= protocolConfig
	}
	return f
}

func (s *session) vring(i uint32) (*vring, error) {
	if i >= uint32(len(s.vrings)) {
		return nil, fmt.Errorf("queue %d does not exist", i)
	}
	return s.vrings[i], nil
}

func (s *session) vringState(r request, p []byte) ([]byte, error) {
	st, err := parseVringState(p)
	if err != nil {
		return nil, err
	}
	v, err := s.vring(st.Index)
	if err != nil {
		return nil, err
	}
	switch r {
	case setVringNum:
		if v.live {
			return nil, fmt.Errorf("the size of queue %d, while it runs", st.Index)
		}
		if st.Num == 0 || st.Num > maxQueueSize || st.Num&(st.Num-1) != 0 {
			return nil, fmt.Errorf("queue %d with %d entries", st.Index, st.Num)
		}
		v.size = uint16(st.Num)
		return nil, nil
	case setVringBase:
		if v.live {
			return nil, fmt.Errorf("the index of queue %d, while it runs", st.Index)
		}
		if st.Num > math.MaxUint16 {
			return nil, fmt.Errorf("queue %d at index %d", st.Index, st.Num)
		}
		v.base = uint16(st.Num)
		return nil, nil
	case getVringBase:
		// The front end's way to stop a queue: QEMU waits for the answer
		// at every reset and power-off.
		s.stop(v)
		v.closeFiles()
		reply := binary.LittleEndian.AppendUint32(nil, st.Index)
		return binary.LittleEndian.AppendUint32(reply, uint32(v.base)), nil
	default: // setVringEnable
		v.enabled = st.Num != 0
		return nil, s.update(v)
	}
}

// setFile takes the event file descriptor of KICK, CALL or ERR.
func (s *session) setFile(r request, p []byte, fds *[]int) error {
	n, err := parseU64(p)
	if err != nil {
		return err
	}
	v, err := s.vring(uint32(n & vringIndexes))
	if err != nil {
		return err
	}
	fd := -1
	if n&vringNoFD == 0 {
		if len(*fds) != 1 {
			return fmt.Errorf("%d file descriptors where one belongs", len(*fds))
		}
		fd = (*fds)[0]
		// QEMU makes them so already; a blocking one would block a thread.
		if err := unix.SetNonblock(fd, true); err != nil {
			return err
		}
		*fds = nil
	}
	switch r {
	case setVringCall:
		v.call.set(fd)
		if v.live {
			// An interrupt may have gone to the old one, which nobody
			// reads any more. One for nothing does no harm.
			v.call.signal()
		}
		return nil
	case setVringErr:
		v.failed.set(fd)
		return nil
	}
	if fd < 0 {
		return fmt.Errorf("queue %d without a kick descriptor: polling is not supported", v.index)
	}
	s.stop(v)
	if v.kick != nil {
		v.kick.Close()
	}
	v.kick = os.NewFile(uintptr(fd), "kick")
	return s.update(v)
}

func (s *session) updateAll() error {
	for _, v := range s.vrings {
		if err := s.update(v); err != nil {
			return err
		}
	}
	return nil
}

// update starts or stops v, as its configuration says.
func (s *session) update(v *vring) error {
	enabled := v.enabled || s.features&featureProtocolFeatures == 0
	want := enabled && v.kick != nil && v.addr != nil && v.size != 0 && s.memory != nil
	switch {
	case !want:
		s.stop(v)
		return nil
	case v.live:
		return nil
	}
	err := v.q.start(ringConfig{
		size: v.size, addr: *v.addr, base: v.base, memory: s.memory,
		indirect: s.features&FeatureIndirect != 0,
	})
	if err != nil {
		return fmt.Errorf("queue %d: %w", v.index, err)
	}
	v.live = true
	v.done = make(chan struct{})
	s.log.Debug("vhost: queue started", "queue", v.index, "entries", v.size, "base", v.base)
	s.dev.Start(v.index, v.q)
	go s.work(v)
	return nil
}

// work is the queue's goroutine: a kick, a call of the device, and again. It
// ends when stop sets a deadline in the past.
func (s *session) work(v *vring) {
	defer close(v.done)
	var counter [8]byte
	for {
		s.dev.Kick(v.index, v.q)
		if _, err := v.kick.Read(counter[:]); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				s.log.Error("vhost: queue cannot be woken", "queue", v.index, "error", err)
			}
			return
		}
	}
}

// stop ends v's goroutine and waits for the chains that are out.
func (s *session) stop(v *vring) {
	if !v.live {
		return
	}
	v.q.stop()
	if err := v.kick.SetReadDeadline(time.Unix(1, 0)); err != nil {
		v.kick.Close() // not an event descriptor; ends the read as well
	}
	<-v.done
	s.dev.Stop(v.index, v.q)
	v.base = v.q.drain()
	v.live = false
	_ = v.kick.SetReadDeadline(time.Time{})
	s.log.Debug("vhost: queue stopped", "queue", v.index, "base", v.base)
}

// closeFiles lets go of the kick and call descriptors: the front end sends new
// ones before the next start.
func (v *vring) closeFiles() {
	if v.kick != nil {
		v.kick.Close()
		v.kick = nil
	}
	v.call.set(-1)
}

// poke wakes the queue's own goroutine. Only code that runs while the queue is
// live calls it, so kick is stable.
func (v *vring) poke() {
	if _, err := v.kick.Write(one); err != nil && !errors.Is(err, os.ErrClosed) {
		// The counter is full: the goroutine is being woken anyway.
		return
	}
}

var one = binary.NativeEndian.AppendUint64(nil, 1)

// eventFD is an event descriptor to signal; its methods may be called from any
// goroutine.
type eventFD struct {
	mu sync.Mutex
	fd int // -1: none
}

// set replaces and closes the descriptor.
func (e *eventFD) set(fd int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fd >= 0 {
		unix.Close(e.fd)
	}
	e.fd = fd
}

func (e *eventFD) signal() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fd >= 0 {
		// It fails only when the counter is full, and then the other
		// side is being woken.
		_, _ = unix.Write(e.fd, one)
	}
}

// setMemory maps a new memory table and puts it under the queues that run.
func (s *session) setMemory(p []byte, fds *[]int) error {
	configs, err := parseMemTable(p)
	if err != nil {
		return err
	}
	if len(*fds) != len(configs) {
		return fmt.Errorf("%d memory regions with %d file descriptors", len(configs), len(*fds))
	}
	m, err := mapMemory(configs, *fds)
	if err != nil {
		return err
	}
	for _, v := range s.vrings {
		if v.live {
			if err := v.q.swap(m, *v.addr); err != nil {
				m.release()
				return fmt.Errorf("queue %d in the new memory: %w", v.index, err)
			}
		}
	}
	if s.memory != nil {
		s.memory.release()
	}
	s.memory = m
	return s.updateAll()
}

// mapMemory maps the regions of the files. The descriptors stay the caller's.
func mapMemory(configs []regionConfig, fds []int) (*Memory, error) {
	var maps [][]byte
	unmap := func() {
		for _, b := range maps {
			_ = unix.Munmap(b)
		}
	}
	regions := make([]region, 0, len(configs))
	for i, c := range configs {
		end := c.Size + c.Offset
		if c.Size == 0 || end < c.Size || end > math.MaxInt64 {
			unmap()
			return nil, fmt.Errorf("memory region %d of %d bytes at offset %d", i, c.Size, c.Offset)
		}
		// A mapping beyond the end of its file is a crash (SIGBUS) in waiting.
		var st unix.Stat_t
		if err := unix.Fstat(fds[i], &st); err != nil {
			unmap()
			return nil, os.NewSyscallError("fstat", err)
		}
		if st.Size < int64(end) {
			unmap()
			return nil, fmt.Errorf("memory region %d ends at %d in a file of %d bytes", i, end, st.Size)
		}
		b, err := unix.Mmap(fds[i], 0, int(end), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
		if err != nil {
			unmap()
			return nil, os.NewSyscallError("mmap", err)
		}
		maps = append(maps, b)
		// The guest's memory belongs in no core dump of ours.
		_ = unix.Madvise(b, unix.MADV_DONTDUMP)
		regions = append(regions, region{guest: c.Guest, user: c.User, bytes: b[c.Offset:end]})
	}
	m, err := newMemory(regions, unmap)
	if err != nil {
		unmap()
		return nil, err
	}
	return m, nil
}
