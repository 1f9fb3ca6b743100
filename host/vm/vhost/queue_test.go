package vhost

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

// image is a guest's memory with one queue in it: two regions, the rings at the
// start of the first.
type image struct {
	a, b []byte
	mem  *Memory
	q    *Queue
	log  []error
	rang int
}

const (
	imageSize  = 64 << 10
	baseA      = 0x10000
	baseB      = baseA + imageSize // in the guest's view they touch
	userA      = 0x7f0000000000
	userB      = 0x7e0000000000
	queueSize  = 8
	availAt    = queueSize * descSize
	usedAt     = 512
	dataAt     = 4096
	ringsBytes = 1024
)

func newImage(t testing.TB, indirect bool) *image {
	t.Helper()
	m := &image{a: make([]byte, imageSize), b: make([]byte, imageSize)}
	var err error
	m.mem, err = newMemory([]region{{baseA, userA, m.a}, {baseB, userB, m.b}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	m.q = newQueue(func() { m.rang++ }, func() {}, func(err error) { m.log = append(m.log, err) })
	m.start(t, 0, indirect)
	return m
}

func (m *image) start(t testing.TB, base uint16, indirect bool) {
	t.Helper()
	err := m.q.start(ringConfig{
		size: queueSize, base: base, indirect: indirect, memory: m.mem,
		addr: vringAddr{Desc: userA, Avail: userA + availAt, Used: userA + usedAt},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func putDesc(b []byte, i int, addr uint64, n uint32, flags, next uint16) {
	b = b[i*descSize:]
	binary.LittleEndian.PutUint64(b, addr)
	binary.LittleEndian.PutUint32(b[8:], n)
	binary.LittleEndian.PutUint16(b[12:], flags)
	binary.LittleEndian.PutUint16(b[14:], next)
}

func (m *image) desc(i int, addr uint64, n uint32, flags, next uint16) {
	putDesc(m.a, i, addr, n, flags, next)
}

// avail makes heads available, from the entry at.
func (m *image) avail(at int, heads ...uint16) {
	for i, h := range heads {
		binary.LittleEndian.PutUint16(m.a[availAt+4+2*((at+i)%queueSize):], h)
	}
	m.index(uint16(at + len(heads)))
}

func (m *image) index(i uint16) { binary.LittleEndian.PutUint16(m.a[availAt+2:], i) }

func (m *image) used() (flags, idx uint16, last uint32, n uint32) {
	u := m.a[usedAt:]
	flags, idx = binary.LittleEndian.Uint16(u), binary.LittleEndian.Uint16(u[2:])
	e := u[4+8*(int(idx-1)%queueSize):]
	return flags, idx, binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint32(e[4:])
}

func TestQueue(t *testing.T) {
	m := newImage(t, false)
	var c Chain
	if ok, err := m.q.Pop(&c); ok || err != nil {
		t.Fatalf("an empty queue: %v, %v", ok, err)
	}
	copy(m.a[dataAt:], "request")
	m.desc(5, baseA+dataAt, 3, descNext, 2)
	m.desc(2, baseA+dataAt+3, 4, descNext, 7)
	m.desc(7, baseB-2, 10, descWrite, 0) // across the regions' border
	m.avail(0, 5)
	ok, err := m.q.Pop(&c)
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	if got := string(bytes.Join(c.Read, nil)); got != "request" {
		t.Errorf("read %q", got)
	}
	if len(c.Write) != 2 || len(c.Write[0]) != 2 || len(c.Write[1]) != 8 || &c.Write[1][0] != &m.b[0] {
		t.Errorf("write: %d parts", len(c.Write))
	}
	m.q.Notify()
	if m.rang != 0 {
		t.Error("an interrupt for nothing")
	}
	m.q.Push(&c, 10)
	if _, idx, head, n := m.used(); idx != 1 || head != 5 || n != 10 {
		t.Errorf("used: index %d, head %d, %d bytes", idx, head, n)
	}
	m.q.Notify()
	m.q.Notify()
	if m.rang != 1 {
		t.Errorf("%d interrupts", m.rang)
	}
	m.q.Push(&c, 10) // twice the same: ignored
	if _, idx, _, _ := m.used(); idx != 1 {
		t.Error("one chain was pushed twice")
	}

	// Suppression, both ways.
	m.a[availAt] = availNoInterrupt
	m.avail(1, 5)
	if ok, err := m.q.Pop(&c); !ok || err != nil {
		t.Fatal(ok, err)
	}
	m.q.Push(&c, 0)
	m.q.Notify()
	if m.rang != 1 {
		t.Error("an interrupt that the guest did not want")
	}
	m.q.DisableKicks()
	if flags, idx, _, _ := m.used(); flags != usedNoNotify || idx != 2 {
		t.Errorf("used flags %d, index %d", flags, idx)
	}
	if m.q.EnableKicks() {
		t.Error("an empty queue says it is not")
	}
	if flags, idx, _, _ := m.used(); flags != 0 || idx != 2 {
		t.Errorf("used flags %d, index %d", flags, idx)
	}
	m.avail(2, 5)
	if !m.q.EnableKicks() {
		t.Error("a chain that came before the kicks were on is not told")
	}

	// Stop and go on where it was, with the indexes about to wrap.
	m.q.stop()
	if ok, err := m.q.Pop(&c); ok || err != nil {
		t.Errorf("a stopped queue: %v, %v", ok, err)
	}
	if base := m.q.drain(); base != 2 {
		t.Errorf("base %d", base)
	}
	binary.LittleEndian.PutUint16(m.a[usedAt+2:], 0xfffe)
	m.start(t, 0xfffe, false)
	m.avail(0xfffe%queueSize, 5, 5, 5, 5)
	m.index(2)
	for range 4 {
		if ok, err := m.q.Pop(&c); !ok || err != nil {
			t.Fatal(ok, err)
		}
		m.q.Push(&c, 1)
	}
	if _, idx, _, _ := m.used(); idx != 2 || m.q.Base() != 2 {
		t.Errorf("after the wrap: used %d, base %d", idx, m.q.Base())
	}
	if s := m.q.Stats(); s != (QueueStats{6, 1, 1}) {
		t.Errorf("stats %+v", s)
	}
}

func TestQueueIndirect(t *testing.T) {
	m := newImage(t, true)
	copy(m.b, "hello")
	putDesc(m.a[dataAt:], 0, baseB, 2, descNext, 2)
	putDesc(m.a[dataAt:], 2, baseB+2, 3, descNext, 1)
	putDesc(m.a[dataAt:], 1, baseB+100, 50, descWrite, 0)
	m.desc(0, baseB, 1, descNext, 1)
	m.desc(1, baseA+dataAt, 3*descSize, descIndirect, 0)
	m.avail(0, 0)
	var c Chain
	ok, err := m.q.Pop(&c)
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	if got := string(bytes.Join(c.Read, nil)); got != "hhello" || len(c.Write) != 1 {
		t.Errorf("read %q, %d parts to write", got, len(c.Write))
	}
}

// What a hostile guest may put into a ring: each breaks the queue, once, with
// a sentence, and no byte outside its memory is touched.
func TestQueueViolations(t *testing.T) {
	const ok = baseA + dataAt
	for _, c := range []struct {
		name     string
		indirect bool
		set      func(m *image)
		want     string
	}{
		{"head out of range", false, func(m *image) { m.avail(0, queueSize) }, "descriptor 8 does not exist"},
		{"head far out of range", false, func(m *image) { m.avail(0, 0xffff) }, "descriptor 65535 does not exist"},
		{"next out of range", false, func(m *image) { m.desc(0, ok, 1, descNext, 9); m.avail(0, 0) }, "descriptor 9 does not exist"},
		{"no length", false, func(m *image) { m.desc(0, ok, 0, 0, 0); m.avail(0, 0) }, "no length"},
		{"loop of one", false, func(m *image) { m.desc(0, ok, 1, descNext, 0); m.avail(0, 0) }, "more than 8 descriptors"},
		{"loop of two", false, func(m *image) {
			m.desc(0, ok, 1, descNext, 1)
			m.desc(1, ok, 1, descNext, 0)
			m.avail(0, 0)
		}, "more than 8 descriptors"},
		{"address below memory", false, func(m *image) { m.desc(0, baseA-1, 4, 0, 0); m.avail(0, 0) }, "outside its memory"},
		{"address 0", false, func(m *image) { m.desc(0, 0, 4, descWrite, 0); m.avail(0, 0) }, "outside its memory"},
		{"end beyond memory", false, func(m *image) { m.desc(0, baseB+imageSize-4, 5, 0, 0); m.avail(0, 0) }, "outside its memory"},
		{"address that wraps", false, func(m *image) { m.desc(0, ^uint64(0)-1, 0xffffffff, descWrite, 0); m.avail(0, 0) }, "outside its memory"},
		{"length that lies", false, func(m *image) { m.desc(0, ok, 0xffffffff, descWrite, 0); m.avail(0, 0) }, "outside its memory"},
		{"more than 4 GiB", false, func(m *image) {
			// Each would be outside its memory, too, had it been looked at; the
			// first is not, so it is the sum that is found.
			m.desc(0, baseA, imageSize, descNext, 1)
			m.desc(1, ok, 0xffffffff, 0, 0)
			m.avail(0, 0)
		}, "more than 4 GiB"},
		{"readable behind writable", false, func(m *image) {
			m.desc(0, ok, 1, descNext|descWrite, 1)
			m.desc(1, ok, 1, 0, 0)
			m.avail(0, 0)
		}, "behind a writable"},
		{"index jump", false, func(m *image) { m.index(queueSize + 1) }, "jumped by 9"},
		{"index backwards", false, func(m *image) { m.index(0xffff) }, "jumped by 65535"},
		{"indirect, not negotiated", false, func(m *image) { m.desc(0, ok, 16, descIndirect, 0); m.avail(0, 0) }, "indirect descriptor where none"},
		{"indirect with next", true, func(m *image) { m.desc(0, ok, 16, descIndirect|descNext, 1); m.avail(0, 0) }, "indirect descriptor where none"},
		{"indirect in indirect", true, func(m *image) {
			putDesc(m.a[dataAt:], 0, ok, 16, descIndirect, 0)
			m.desc(0, ok, 16, descIndirect, 0)
			m.avail(0, 0)
		}, "indirect descriptor where none"},
		{"indirect, empty", true, func(m *image) { m.desc(0, ok, 0, descIndirect, 0); m.avail(0, 0) }, "table of 0 bytes"},
		{"indirect, broken length", true, func(m *image) { m.desc(0, ok, 17, descIndirect, 0); m.avail(0, 0) }, "table of 17 bytes"},
		{"indirect, huge", true, func(m *image) { m.desc(0, ok, 16<<20, descIndirect, 0); m.avail(0, 0) }, "table of 16777216 bytes"},
		{"indirect, outside", true, func(m *image) { m.desc(0, 16, 16, descIndirect, 0); m.avail(0, 0) }, "outside its memory"},
		{"indirect, in two regions", true, func(m *image) { m.desc(0, baseB-16, 32, descIndirect, 0); m.avail(0, 0) }, "outside its memory"},
		{"indirect, loop", true, func(m *image) {
			putDesc(m.a[dataAt:], 0, ok, 1, descNext, 0)
			m.desc(0, ok, 16, descIndirect, 0)
			m.avail(0, 0)
		}, "more than 8 descriptors"},
		{"indirect, next outside the table", true, func(m *image) {
			putDesc(m.a[dataAt:], 0, ok, 1, descNext, 1)
			m.desc(0, ok, 16, descIndirect, 0)
			m.avail(0, 0)
		}, "descriptor 1 does not exist"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newImage(t, c.indirect)
			c.set(m)
			var chain Chain
			ok, err := m.q.Pop(&chain)
			if ok || !errors.Is(err, ErrViolation) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("Pop: %v, %v; want %q", ok, err, c.want)
			}
			if _, again := m.q.Pop(&chain); again != err {
				t.Errorf("the second time: %v", again)
			}
			if m.q.EnableKicks() {
				t.Error("a broken queue says that it has more")
			}
			if len(m.log) != 1 {
				t.Errorf("told %d times", len(m.log))
			}
			// The guest resets it, and it works.
			m.q.stop()
			m.q.drain()
			clear(m.a[:ringsBytes])
			m.start(t, 0, c.indirect)
			m.desc(0, baseA+dataAt, 1, 0, 0)
			m.avail(0, 0)
			if ok, err := m.q.Pop(&chain); !ok || err != nil {
				t.Errorf("after a reset: %v, %v", ok, err)
			}
		})
	}
}

func TestQueuePlace(t *testing.T) {
	m := newImage(t, false)
	for name, c := range map[string]ringConfig{
		"no entries":           {size: 0, addr: vringAddr{Desc: userA, Avail: userA, Used: userA}},
		"no power of two":      {size: 3, addr: vringAddr{Desc: userA, Avail: userA, Used: userA}},
		"descriptors outside":  {size: 8, addr: vringAddr{Desc: userA + imageSize - 127, Avail: userA, Used: userA}},
		"available outside":    {size: 8, addr: vringAddr{Desc: userA, Avail: userA + imageSize - 19, Used: userA}},
		"used outside":         {size: 8, addr: vringAddr{Desc: userA, Avail: userA, Used: ^uint64(0) - 3}},
		"guest addresses":      {size: 8, addr: vringAddr{Desc: baseA, Avail: baseA, Used: baseA}},
		"available unaligned":  {size: 8, addr: vringAddr{Desc: userA, Avail: userA + 2, Used: userA}},
		"used unaligned":       {size: 8, addr: vringAddr{Desc: userA, Avail: userA, Used: userA + 1}},
		"across user's border": {size: 8, addr: vringAddr{Desc: userB + imageSize - 16, Avail: userA, Used: userA}},
	} {
		c.memory = m.mem
		q := newQueue(func() {}, func() {}, func(error) {})
		if err := q.start(c); err == nil {
			t.Errorf("%s: started", name)
		}
	}
	if n := m.mem.refs.Load(); n != 2 { // ours, and the image's queue's
		t.Errorf("%d references to the memory", n)
	}
}

func TestMemory(t *testing.T) {
	b := make([]byte, 0x1000)
	for name, r := range map[string][]region{
		"empty":              {{0, 0, nil}},
		"guest wraps":        {{^uint64(0) - 10, 0, b}},
		"user wraps":         {{0, ^uint64(0) - 10, b}},
		"guest overlap":      {{0x1000, 0, b}, {0x1fff, 0x10000, b}},
		"user overlap":       {{0x1000, 0x5000, b}, {0x10000, 0x4001, b}},
		"the same twice":     {{0, 0, b}, {0, 0, b}},
		"one in the other":   {{0x1000, 0, b}, {0x1800, 0x10000, b[:8]}},
		"second wraps guest": {{0, 0, b}, {^uint64(0) - 0x100, 0x8000, b}},
	} {
		if _, err := newMemory(r, nil); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	unmapped := 0
	m, err := newMemory([]region{{0x1000, 0x9000, b}}, func() { unmapped++ })
	if err != nil {
		t.Fatal(err)
	}
	m.retain()
	m.release()
	if unmapped != 0 {
		t.Error("unmapped while in use")
	}
	m.release()
	if unmapped != 1 {
		t.Errorf("unmapped %d times", unmapped)
	}
}

// FuzzVirtqueue takes the image's first bytes as the guest's: rings, and what
// follows them as tables and data.
func FuzzVirtqueue(f *testing.F) {
	for _, indirect := range []bool{false, true} {
		m := newImage(f, indirect)
		m.desc(0, baseA+dataAt, 64, descNext, 1)
		m.desc(1, baseB, 4096, descWrite, 0)
		m.desc(2, baseA+700, 3*descSize, descIndirect, 0)
		putDesc(m.a[700:], 0, baseB-8, 16, descNext, 1)
		putDesc(m.a[700:], 1, baseA+dataAt, 16, descNext|descWrite, 2)
		putDesc(m.a[700:], 2, baseA, 1, descWrite, 0)
		m.avail(0, 0, 2, 0)
		f.Add(m.a[:ringsBytes], indirect, uint16(0))
		m.desc(1, baseA+dataAt, 1, descNext, 0) // a loop
		f.Add(m.a[:ringsBytes], indirect, uint16(1))
		m.index(0x8000)
		f.Add(m.a[:ringsBytes], indirect, uint16(0xffff))
	}
	f.Fuzz(func(t *testing.T, rings []byte, indirect bool, base uint16) {
		m := newImage(t, indirect)
		m.q.stop()
		m.q.drain()
		copy(m.a, rings)
		m.start(t, base, indirect)
		var c Chain
		taken := 0
		for {
			ok, err := m.q.Pop(&c)
			if err != nil && (!errors.Is(err, ErrViolation) || len(m.log) != 1) {
				t.Fatalf("%v, told %d times", err, len(m.log))
			}
			if !ok {
				break
			}
			// The guest of this test does not move its index, so the queue
			// must run dry within its size.
			if taken++; taken > queueSize {
				t.Fatal("more chains than the queue has entries")
			}
			for _, part := range append(append([][]byte(nil), c.Read...), c.Write...) {
				if len(part) == 0 || len(part) > imageSize {
					t.Fatalf("a part of %d bytes", len(part))
				}
				// Both ends of it are memory of the image, or this crashes.
				part[0] ^= 0
				part[len(part)-1] ^= 0
			}
			if n := len(c.Read) + len(c.Write); n == 0 || n > 2*queueSize {
				t.Fatalf("a chain of %d parts", n)
			}
			m.q.Push(&c, 0)
		}
		m.q.Notify()
		m.q.EnableKicks()
		m.q.stop()
		m.q.drain()
		if n := m.mem.refs.Load(); n != 1 {
			t.Fatalf("%d references to the memory are left", n)
		}
	})
}
