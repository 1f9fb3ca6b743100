package vhost_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"dhow/host/vm/vhost"
	"dhow/host/vm/vhost/vhosttest"

	"golang.org/x/sys/unix"
)

// copier is a device that copies what it reads to where it may write, each
// chain on a goroutine of its own, as a file system would.
type copier struct {
	queues   int
	features uint64
	config   []byte
	block    chan struct{} // if set, each chain waits for it

	mu     sync.Mutex
	wg     sync.WaitGroup
	events []string
}

func (d *copier) Features() uint64 { return d.features }
func (d *copier) Queues() int      { return d.queues }
func (d *copier) Config() []byte   { return d.config }

func (d *copier) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.events = append(d.events, fmt.Sprintf(format, args...))
}

func (d *copier) Start(i int, q *vhost.Queue) { d.note("start %d at %d", i, q.Base()) }
func (d *copier) Stop(i int, q *vhost.Queue)  { d.note("stop %d at %d", i, q.Base()) }

func (d *copier) Kick(i int, q *vhost.Queue) {
	for {
		c := new(vhost.Chain)
		ok, err := q.Pop(c)
		if !ok || err != nil {
			return
		}
		d.wg.Add(1)
		go func() {
			defer d.wg.Done()
			if d.block != nil {
				<-d.block
			}
			b := bytes.Join(c.Read, nil)
			n := uint32(0)
			for _, w := range c.Write {
				k := copy(w, b)
				b = b[k:]
				n += uint32(k)
			}
			q.Push(c, n)
			q.Notify()
		}()
	}
}

// serve runs dev behind a socket and returns its path and what Serve returns.
func serve(t testing.TB, dev vhost.Device) (string, chan error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "vhost")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	served, ended := make(chan error, 10), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			served <- vhost.Serve(c, dev, slog.New(slog.DiscardHandler))
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-ended
		os.RemoveAll(dir)
	})
	return filepath.Join(dir, "s"), served
}

func dial(t testing.TB, path string) *vhosttest.Frontend {
	t.Helper()
	fe, err := vhosttest.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fe.Close)
	return fe
}

// roundTrip sends a request through a ring and wants it back.
func roundTrip(t testing.TB, fe *vhosttest.Frontend, r *vhosttest.Ring, text string) {
	t.Helper()
	in, out := fe.Alloc(len(text)), fe.Alloc(len(text)+10)
	copy(fe.Bytes(in, len(text)), text)
	r.Interrupts(true)
	head, _ := r.Add(vhosttest.Buffer{Addr: in, Len: uint32(len(text))}, vhosttest.Buffer{Addr: out, Len: uint32(len(text) + 10), Write: true})
	r.Kick()
	for end := time.Now().Add(5 * time.Second); ; {
		got, n, ok := r.Used()
		if ok {
			if got != head || int(n) != len(text) || string(fe.Bytes(out, int(n))) != text {
				t.Fatalf("chain %d came back as %d with %d bytes", head, got, n)
			}
			return
		}
		if err := r.WaitInterrupt(time.Until(end)); err != nil {
			t.Fatalf("no answer: %v", err)
		}
	}
}

func openFDs(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestServe(t *testing.T) {
	dev := &copier{queues: 2, config: []byte{9, 8, 7, 6}}
	path, served := serve(t, dev)
	before := openFDs(t)
	for range 3 { // QEMU goes and comes
		fe, err := vhosttest.Dial(path)
		if err != nil {
			t.Fatal(err)
		}
		dev.mu.Lock()
		dev.events = nil
		dev.mu.Unlock()
		if err := fe.Setup(0, 2, 16); err != nil {
			t.Fatal(err)
		}
		if p, err := fe.Get(vhosttest.GetQueueNum, nil); err != nil || !bytes.Equal(p, vhosttest.U64(2)) {
			t.Errorf("queues: % x, %v", p, err)
		}
		want := append(vhosttest.State(0, 4), 0, 0, 0, 0)
		if p, err := fe.Get(vhosttest.GetConfig, append(want, 0, 0, 0, 0)); err != nil || !bytes.Equal(p, append(want, 9, 8, 7, 6)) {
			t.Errorf("config: % x, %v", p, err)
		}
		for i := range 40 {
			roundTrip(t, fe, fe.Rings[i%2], fmt.Sprint("request ", i))
		}
		// A new memory table under running queues.
		if err := fe.SetMemory(); err != nil {
			t.Fatal(err)
		}
		roundTrip(t, fe, fe.Rings[0], "in the new memory")
		// A pause, and a reset.
		base, err := fe.Stop(0)
		if err != nil || base != 21 {
			t.Errorf("stopped at %d, %v", base, err)
		}
		if err := fe.Start(0, base); err != nil {
			t.Fatal(err)
		}
		roundTrip(t, fe, fe.Rings[0], "after the pause")
		if _, err := fe.Stop(1); err != nil {
			t.Fatal(err)
		}
		fe.Rings[1].Reset()
		if err := fe.Start(1, 0); err != nil {
			t.Fatal(err)
		}
		roundTrip(t, fe, fe.Rings[1], "after the reset")
		// Disabled queues do nothing; enabled again, they do what waited.
		if err := fe.Set(vhosttest.SetVringEnable, vhosttest.State(0, 0)); err != nil {
			t.Fatal(err)
		}
		a := fe.Alloc(16)
		fe.Rings[0].Add(vhosttest.Buffer{Addr: a, Len: 4}, vhosttest.Buffer{Addr: a, Len: 4, Write: true})
		fe.Rings[0].ForceKick()
		time.Sleep(20 * time.Millisecond)
		if _, _, ok := fe.Rings[0].Used(); ok {
			t.Error("a disabled queue worked")
		}
		if err := fe.Set(vhosttest.SetVringEnable, vhosttest.State(0, 1)); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			if _, _, ok := fe.Rings[0].Used(); ok {
				break
			}
			if time.Now().After(end) {
				t.Fatal("the queue does not go on")
			}
		}
		fe.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		wantEvents := []string{
			"start 0 at 0", "start 1 at 0", "stop 0 at 21", "start 0 at 21", "stop 1 at 20", "start 1 at 0",
			"stop 0 at 22", "start 0 at 22", "stop 0 at 23", "stop 1 at 1",
		}
		dev.mu.Lock()
		got := fmt.Sprint(dev.events)
		dev.mu.Unlock()
		if got != fmt.Sprint(wantEvents) {
			t.Errorf("events:\n%v, want\n%v", got, wantEvents)
		}
	}
	dev.wg.Wait()
	for end := time.Now().Add(5 * time.Second); openFDs(t) > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d file descriptors before, %d after", before, openFDs(t))
		}
	}
}

// A stop waits for the chains that are out, and the memory stays until then.
func TestStopWaits(t *testing.T) {
	dev := &copier{queues: 1, block: make(chan struct{})}
	path, served := serve(t, dev)
	fe := dial(t, path)
	if err := fe.Setup(0, 1, 16); err != nil {
		t.Fatal(err)
	}
	a := fe.Alloc(64)
	fe.Rings[0].Add(vhosttest.Buffer{Addr: a, Len: 4}, vhosttest.Buffer{Addr: a + 32, Len: 4, Write: true})
	fe.Rings[0].ForceKick()
	if err := fe.SetMemory(); err != nil { // the chain keeps the old one
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	go func() {
		base, err := fe.Stop(0)
		if base != 1 && err == nil {
			err = fmt.Errorf("stopped at %d", base)
		}
		stopped <- err
	}()
	select {
	case err := <-stopped:
		t.Errorf("stopped with a chain that is out: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(dev.block)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if _, _, ok := fe.Rings[0].Used(); !ok {
		t.Error("the chain did not come back")
	}
	fe.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// A guest that breaks the rules stops its queue and nothing else.
func TestViolation(t *testing.T) {
	dev := &copier{queues: 2}
	path, _ := serve(t, dev)
	fe := dial(t, path)
	if err := fe.Setup(0, 2, 16); err != nil {
		t.Fatal(err)
	}
	r := fe.Rings[0]
	r.SetDesc(0, vhosttest.Region1, 0x7fffffff, vhosttest.Write, 0)
	r.Publish(0)
	r.ForceKick()
	if err := r.WaitBroken(5 * time.Second); err != nil {
		t.Fatalf("QEMU is not told: %v", err)
	}
	roundTrip(t, fe, fe.Rings[1], "the other queue")
	if _, err := fe.Stop(0); err != nil {
		t.Fatal(err)
	}
	r.Reset()
	if err := fe.Start(0, 0); err != nil {
		t.Fatal(err)
	}
	roundTrip(t, fe, r, "after the reset")
}

func TestIndirect(t *testing.T) {
	dev := &copier{queues: 1, features: vhost.FeatureIndirect}
	path, _ := serve(t, dev)
	fe := dial(t, path)
	if err := fe.Setup(vhost.FeatureIndirect, 1, 16); err != nil {
		t.Fatal(err)
	}
	a := fe.Alloc(64)
	copy(fe.Bytes(a, 4), "abcd")
	vhosttest.PutDesc(fe.Bytes(a+16, 16), a, 4, vhosttest.Next, 1)
	vhosttest.PutDesc(fe.Bytes(a+32, 16), a+48, 4, vhosttest.Write, 0)
	r := fe.Rings[0]
	r.SetDesc(3, a+16, 32, vhosttest.Indirect, 0)
	r.Interrupts(true)
	r.Publish(3)
	r.ForceKick()
	if err := r.WaitInterrupt(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	if head, n, ok := r.Used(); !ok || head != 3 || n != 4 || string(fe.Bytes(a+48, 4)) != "abcd" {
		t.Errorf("chain %d, %d bytes, %v", head, n, ok)
	}
}

// Messages that QEMU never sends: each ends the connection with an error, and
// leaves no descriptor behind.
func TestBadMessages(t *testing.T) {
	dev := &copier{queues: 1}
	path, served := serve(t, dev)
	table := func(change func(f *vhosttest.Frontend, p []byte)) func(*vhosttest.Frontend) ([]byte, []int) {
		return func(f *vhosttest.Frontend) ([]byte, []int) {
			p := f.MemTable()
			fds := make([]int, 2)
			for i := range fds {
				fd, err := unix.MemfdCreate("m", unix.MFD_CLOEXEC)
				if err != nil {
					t.Fatal(err)
				}
				if err := unix.Ftruncate(fd, 2*vhosttest.RegionSize); err != nil {
					t.Fatal(err)
				}
				fds[i] = fd
				t.Cleanup(func() { unix.Close(fd) })
			}
			if change != nil {
				change(f, p)
			}
			return p, fds
		}
	}
	put := func(at int, v uint64) func(*vhosttest.Frontend, []byte) {
		return func(_ *vhosttest.Frontend, p []byte) { binary.LittleEndian.PutUint64(p[at:], v) }
	}
	plain := func(p []byte) func(*vhosttest.Frontend) ([]byte, []int) {
		return func(*vhosttest.Frontend) ([]byte, []int) { return p, nil }
	}
	withFDs := func(n int, make func(*vhosttest.Frontend) ([]byte, []int)) func(*vhosttest.Frontend) ([]byte, []int) {
		return func(f *vhosttest.Frontend) ([]byte, []int) {
			p, _ := make(f)
			fds := []int{}
			for range n {
				fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { unix.Close(fd) })
				fds = append(fds, fd)
			}
			return p, fds
		}
	}
	cases := []struct {
		name    string
		request uint32
		make    func(*vhosttest.Frontend) ([]byte, []int)
	}{
		{"unknown request", 99, plain(nil)},
		{"features that were not offered", vhosttest.SetFeatures, plain(vhosttest.U64(1 << 5))},
		{"protocol features that were not offered", vhosttest.SetProtocolFeatures, plain(vhosttest.U64(1 << 15))},
		{"short features", vhosttest.SetFeatures, plain([]byte{1})},
		{"config of a device without", vhosttest.GetConfig, plain(make([]byte, 12))},
		{"queue that does not exist", vhosttest.SetVringNum, plain(vhosttest.State(1, 8))},
		{"queue far away", vhosttest.GetVringBase, plain(vhosttest.State(0xffffffff, 0))},
		{"kick of a queue that does not exist", vhosttest.SetVringKick, withFDs(1, plain(vhosttest.U64(7)))},
		{"odd size", vhosttest.SetVringNum, plain(vhosttest.State(0, 17))},
		{"huge size", vhosttest.SetVringNum, plain(vhosttest.State(0, 1<<16))},
		{"huge base", vhosttest.SetVringBase, plain(vhosttest.State(0, 1<<16))},
		{"kick without a descriptor", vhosttest.SetVringKick, plain(vhosttest.U64(0))},
		{"kick without one, and says so", vhosttest.SetVringKick, plain(vhosttest.U64(1 << 8))},
		{"kick with two", vhosttest.SetVringKick, withFDs(2, plain(vhosttest.U64(0)))},
		{"eight descriptors for nothing", 99, withFDs(8, plain(nil))},
		{"nine descriptors", 99, withFDs(9, plain(nil))},
		{"table without descriptors", vhosttest.SetMemTable, func(f *vhosttest.Frontend) ([]byte, []int) { return f.MemTable(), nil }},
		{"table of event descriptors", vhosttest.SetMemTable, withFDs(2, func(f *vhosttest.Frontend) ([]byte, []int) { return f.MemTable(), nil })},
		{"region of no size", vhosttest.SetMemTable, table(put(16, 0))},
		{"region beyond its file", vhosttest.SetMemTable, table(put(16, 4*vhosttest.RegionSize))},
		{"region of huge size", vhosttest.SetMemTable, table(put(16, 1<<62))},
		{"offset beyond its file", vhosttest.SetMemTable, table(put(32, 2*vhosttest.RegionSize))},
		{"offset that wraps", vhosttest.SetMemTable, table(put(32, ^uint64(0)))},
		{"guest address that wraps", vhosttest.SetMemTable, table(put(8, ^uint64(0)-100))},
		{"regions that overlap", vhosttest.SetMemTable, table(put(8+32, 0))},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			fe := dial(t, path)
			// An answer shows that the server's end exists, to be counted.
			if _, err := fe.Get(vhosttest.GetFeatures, nil); err != nil {
				t.Fatal(err)
			}
			p, fds := c.make(fe)
			before := openFDs(t)
			if err := fe.Send(c.request, 1, p, fds...); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-served:
				if err == nil {
					t.Error("taken without an error")
				} else {
					t.Log(err)
				}
			case <-time.After(5 * time.Second):
				t.Fatal("the connection goes on")
			}
			// The server's end of the socket is closed, nothing is new.
			if after := openFDs(t); after != before-1 {
				t.Errorf("%d file descriptors before, %d after", before, after)
			}
		})
	}
}

// FuzzMessages is QEMU gone mad: a stream of messages, some with descriptors.
func FuzzMessages(f *testing.F) {
	msg := func(b []byte, request uint32, payload []byte) []byte {
		b = binary.LittleEndian.AppendUint32(b, request)
		b = binary.LittleEndian.AppendUint32(b, 1)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
		return append(b, payload...)
	}
	setup := msg(nil, vhosttest.GetFeatures, nil)
	setup = msg(setup, vhosttest.SetFeatures, vhosttest.U64(1<<32|1<<30))
	setup = msg(setup, vhosttest.SetMemTable, (&vhosttest.Frontend{}).MemTable())
	setup = msg(setup, vhosttest.SetVringNum, vhosttest.State(0, 16))
	setup = msg(setup, vhosttest.SetVringBase, vhosttest.State(0, 3))
	addr := vhosttest.State(0, 0)
	for _, a := range []uint64{0, 0x1000, 0x2000, 0} {
		addr = binary.LittleEndian.AppendUint64(addr, vhosttest.User(a))
	}
	setup = msg(setup, vhosttest.SetVringAddr, addr)
	setup = msg(setup, vhosttest.SetVringKick, vhosttest.U64(0))
	setup = msg(setup, vhosttest.SetVringCall, vhosttest.U64(0))
	setup = msg(setup, vhosttest.SetVringEnable, vhosttest.State(0, 1))
	f.Add(setup)
	f.Add(msg(append([]byte(nil), setup...), vhosttest.GetVringBase, vhosttest.State(0, 0)))
	f.Add(msg(msg(append([]byte(nil), setup...), vhosttest.SetMemTable, (&vhosttest.Frontend{}).MemTable()), vhosttest.SetVringEnable, vhosttest.State(0, 0)))
	f.Add(msg(nil, vhosttest.GetConfig, make([]byte, 20)))
	f.Add([]byte{1, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})

	memfd, err := unix.MemfdCreate("m", unix.MFD_CLOEXEC)
	if err != nil {
		f.Fatal(err)
	}
	defer unix.Close(memfd)
	if err := unix.Ftruncate(memfd, 2*vhosttest.RegionSize); err != nil {
		f.Fatal(err)
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		f.Fatal(err)
	}
	defer unix.Close(event)

	f.Fuzz(func(t *testing.T, b []byte) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		var ends [2]*net.UnixConn
		for i, fd := range pair {
			file := os.NewFile(uintptr(fd), "pair")
			c, err := net.FileConn(file)
			file.Close()
			if err != nil {
				t.Fatal(err)
			}
			ends[i] = c.(*net.UnixConn)
		}
		defer ends[0].Close()
		dev := &copier{queues: 2, config: make([]byte, 8), features: vhost.FeatureIndirect}
		done := make(chan struct{})
		go func() {
			_ = vhost.Serve(ends[1], dev, slog.New(slog.DiscardHandler))
			close(done)
		}()
		go func() { _, _ = io.Copy(io.Discard, struct{ io.Reader }{ends[0]}) }()
		// The stream is cut where its headers say, so that descriptors come
		// with the messages that want them.
		for len(b) > 0 {
			n, oob := len(b), []byte(nil)
			if len(b) >= 12 {
				if size := binary.LittleEndian.Uint32(b[8:]); size < uint32(len(b)-12) {
					n = 12 + int(size)
				}
				switch binary.LittleEndian.Uint32(b) {
				case vhosttest.SetMemTable:
					fds := []int{memfd}
					if n > 12 && b[12] == 2 {
						fds = append(fds, memfd)
					}
					oob = unix.UnixRights(fds...)
				case vhosttest.SetVringKick, vhosttest.SetVringCall, vhosttest.SetVringErr:
					oob = unix.UnixRights(event)
				}
			}
			if _, _, err := ends[0].WriteMsgUnix(b[:n], oob, nil); err != nil {
				break
			}
			b = b[n:]
		}
		_ = ends[0].CloseWrite()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatal("Serve does not end")
		}
		dev.wg.Wait()
	})
}
