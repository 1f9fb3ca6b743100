package vsockdev

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"dhow/host/vm/vhost/vhosttest"
	"dhow/internal/testkit"
)

// watch makes the guest's packets from the device go to a channel.
func (g *guest) watch() chan header {
	ch := make(chan header, 10000)
	g.mu.Lock()
	g.hook = func(h header, _ []byte) bool { ch <- h; return true }
	g.mu.Unlock()
	return ch
}

// Packets that no driver sends. Each is answered by a reset or by nothing, and
// never by more.
func TestHostilePackets(t *testing.T) {
	testkit.NoLeaks(t)
	d, path := startDevice(t)
	g := boot(t, path, 0)
	l, err := d.Listen(800)
	if err != nil {
		t.Fatal(err)
	}
	out := g.watch()
	// probe sends a packet to a port of nobody; its answer shows that all
	// before it was handled.
	probe := func() {
		g.raw(g.header(key{host: 12345, guest: 54321}, opCreditUpdate), nil)
	}
	for _, c := range []struct {
		name  string
		setup bool // a connection of port 1 to 800
		h     header
		data  int
		want  string // operations of the answers
		reset bool   // the connection ends by it
	}{
		{"to another guest", false, header{SrcCID: testCID, DstCID: 9, SrcPort: 1, DstPort: 800, Type: 1, Op: opRequest}, 0, "", false},
		{"to the hypervisor", false, header{SrcCID: testCID, DstCID: 0, SrcPort: 1, DstPort: 800, Type: 1, Op: opRequest}, 0, "", false},
		{"to a CID of 64 bits", false, header{SrcCID: testCID, DstCID: 1<<32 + 2, SrcPort: 1, DstPort: 800, Type: 1, Op: opRequest}, 0, "", false},
		{"from the host", false, header{SrcCID: 2, DstCID: 2, SrcPort: 1, DstPort: 800, Type: 1, Op: opRequest}, 0, "", false},
		{"from another guest", true, header{SrcCID: 8, DstCID: 2, SrcPort: 1, DstPort: 800, Type: 1, Op: opReset}, 0, "", false},
		{"reset of nothing", false, header{Op: opReset, Type: 1}, 0, "", false},
		{"data of nothing", false, header{Op: opData, Type: 1, Len: 5}, 5, "3", false},
		{"shutdown of nothing", false, header{Op: opShutdown, Type: 1, Flags: 3}, 0, "3", false},
		{"seqpacket", false, header{Op: opRequest, Type: 2}, 0, "3", false},
		{"type 0", true, header{Op: opData, Type: 0}, 0, "3", false},
		{"op 0", true, header{Op: 0, Type: 1}, 0, "3", true},
		{"op 99", true, header{Op: 99, Type: 1}, 0, "3", true},
		{"request twice", true, header{Op: opRequest, Type: 1}, 0, "3", true},
		{"response of an open connection", true, header{Op: opResponse, Type: 1}, 0, "3", true},
		{"length that lies", true, header{Op: opData, Type: 1, Len: 6}, 5, "3", true},
		{"length of 4 GiB", true, header{Op: opData, Type: 1, Len: 0xffffffff}, 5, "3", true},
		{"no data", true, header{Op: opData, Type: 1}, 0, "", false},
		{"less than there is", true, header{Op: opData, Type: 1, Len: 2}, 500, "", false},
		{"shutdown of nothing at all", true, header{Op: opShutdown, Type: 1}, 0, "", false},
		{"odd flags", true, header{Op: opShutdown, Type: 1, Flags: 0xfffffffc}, 0, "", false},
		{"credit from nowhere", true, header{Op: opCreditUpdate, Type: 1, BufAlloc: 0xffffffff, FwdCnt: 0x80000000}, 0, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var conn net.Conn
			if c.setup {
				g.raw(g.header(key{host: 800, guest: 1}, opRequest), nil)
				if h := <-out; h.Op != opResponse {
					t.Fatalf("no response: %+v", h)
				}
				var err error
				if conn, err = l.Accept(); err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
			}
			h := c.h
			if h.SrcCID == 0 {
				h.SrcCID, h.DstCID, h.SrcPort, h.DstPort = testCID, hostCID, 1, 800
			}
			g.raw(h, make([]byte, c.data))
			probe()
			var got string
			for h := range out {
				if h.SrcPort == 12345 {
					break
				}
				if h.SrcPort != 800 || h.DstPort != 1 {
					t.Errorf("an answer to %+v", h)
				}
				if h.Op == opReset && h.Type != c.h.Type {
					t.Errorf("the answer has type %d", h.Type)
				}
				got += fmt.Sprint(h.Op)
			}
			if got != c.want {
				t.Errorf("answers %q, want %q", got, c.want)
			}
			if c.setup {
				if gone := d.known() == 0; gone != c.reset {
					t.Errorf("the connection is gone: %v", gone)
				}
				g.raw(g.header(key{host: 800, guest: 1}, opReset), nil)
				eventually(t, "the connection ends", func() bool { return d.known() == 0 })
				if c.reset {
					_, err := conn.Read(make([]byte, 1000))
					wantErr(t, err, syscall.ECONNRESET)
				}
			}
			if n := len(l.(*Listener).conns); n != 0 {
				t.Errorf("%d connections to accept", n)
			}
		})
	}
}

// A guest that sends more than its credit loses the connection, and the device
// holds no more than it promised.
func TestCreditAbuse(t *testing.T) {
	testkit.NoLeaks(t)
	d, path := startDevice(t)
	g := boot(t, path, 0)
	host, _ := pair(t, d, g)
	other, otherEnd := pair(t, d, g)
	h := g.header(host.key, opData)
	h.Len = maxTest
	for range fullWindow / maxTest {
		g.raw(h, make([]byte, maxTest))
	}
	mustWrite(t, otherEnd, "ping") // one that is stuck does not stop another
	if _, err := io.ReadFull(other, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	host.mu.Lock()
	if n := host.in.len(); n != fullWindow {
		t.Errorf("%d bytes in the window", n)
	}
	host.mu.Unlock()
	h.Len = 1
	g.raw(h, []byte("x"))
	eventually(t, "the connection is cut off", func() bool { return d.known() == 1 })
	n, err := io.Copy(io.Discard, host)
	if n != fullWindow {
		t.Errorf("read %d bytes", n)
	}
	wantErr(t, err, syscall.ECONNRESET)
	// Windows shrink when much is promised.
	d.mu.Lock()
	c := d.newConn(key{1, 1}, open)
	if c.window != fullWindow {
		t.Errorf("a window of %d", c.window)
	}
	d.promised += windowBudget
	small := d.newConn(key{1, 2}, open)
	if small.window != smallWindow {
		t.Errorf("a window of %d", small.window)
	}
	d.promised -= windowBudget
	d.remove(c, nil)
	d.remove(small, nil)
	d.mu.Unlock()
}

// Chains that are no packets and buffers that hold none stop the device, until
// the guest resets it.
func TestHostileQueues(t *testing.T) {
	const bad = vhosttest.Region1 + vhosttest.RegionSize - 10
	for _, c := range []struct {
		name  string
		queue int
		bufs  []vhosttest.Buffer
	}{
		{"half a header", txQueue, []vhosttest.Buffer{{Addr: vhosttest.Region1, Len: 43}}},
		{"a writable packet", txQueue, []vhosttest.Buffer{{Addr: vhosttest.Region1, Len: 44}, {Addr: vhosttest.Region1, Len: 44, Write: true}}},
		{"a packet outside memory", txQueue, []vhosttest.Buffer{{Addr: bad, Len: 44}}},
		{"a buffer too small", rxQueue, []vhosttest.Buffer{{Addr: vhosttest.Region1, Len: 44, Write: true}}},
		{"a read-only buffer", rxQueue, []vhosttest.Buffer{{Addr: vhosttest.Region1, Len: 4096}}},
		{"a buffer outside memory", rxQueue, []vhosttest.Buffer{{Addr: bad, Len: 4096, Write: true}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			testkit.NoLeaks(t)
			d, path := startDevice(t)
			fe, err := vhosttest.Dial(path)
			if err != nil {
				t.Fatal(err)
			}
			defer fe.Close()
			if err := fe.Setup(0, 2, 16); err != nil {
				t.Fatal(err)
			}
			dialed := make(chan error, 1)
			go func() { _, err := d.Dial(context.Background(), 1); dialed <- err }()
			eventually(t, "the dial waits", func() bool { return d.known() == 1 })
			r := fe.Rings[c.queue]
			r.Add(c.bufs...)
			r.ForceKick()
			if err := r.WaitBroken(5 * time.Second); err != nil {
				t.Fatalf("the queue goes on: %v", err)
			}
			wantErr(t, <-dialed, syscall.ECONNRESET)
			_, err = d.Dial(context.Background(), 1)
			wantErr(t, err, syscall.ECONNREFUSED)
			// Kicks of a dead device do nothing.
			for _, r := range fe.Rings {
				r.ForceKick()
			}
			for i, r := range fe.Rings {
				if _, err := fe.Stop(i); err != nil {
					t.Fatal(err)
				}
				r.Reset()
			}
			for i := range fe.Rings {
				if err := fe.Start(i, 0); err != nil {
					t.Fatal(err)
				}
			}
			go func() { _, err := d.Dial(context.Background(), 1); dialed <- err }()
			eventually(t, "the dial waits", func() bool { return d.known() == 1 })
			a := fe.Alloc(4096)
			fe.Rings[rxQueue].Add(vhosttest.Buffer{Addr: a, Len: 4096, Write: true})
			fe.Rings[rxQueue].ForceKick()
			eventually(t, "the request arrives", func() bool { _, n, ok := fe.Rings[rxQueue].Used(); return ok && n == headerSize })
			fe.Close()
			wantErr(t, <-dialed, syscall.ECONNRESET)
		})
	}
}

// A guest that floods and takes no answers: what it makes us keep is bounded,
// and when it takes answers again, all goes on.
func TestFlood(t *testing.T) {
	testkit.NoLeaks(t)
	d, path := startDevice(t)
	l, err := d.Listen(800)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	defer func() { l.Close(); <-accepted }()
	fe, err := vhosttest.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer fe.Close()
	if err := fe.Setup(0, 2, 128); err != nil {
		t.Fatal(err)
	}
	tx, rx := fe.Rings[txQueue], fe.Rings[rxQueue]
	a := fe.Alloc(headerSize)
	sent, done := 0, 0
	send := func(k key, o op) bool {
		for end := time.Now().Add(2 * time.Second); ; runtime.Gosched() {
			for {
				if _, _, ok := tx.Used(); !ok {
					break
				}
				done++
			}
			if sent == done { // one at a time: they share the memory
				break
			}
			if time.Now().After(end) {
				return false
			}
		}
		h := header{SrcCID: testCID, DstCID: hostCID, SrcPort: k.guest, DstPort: k.host, Type: typeStream, Op: o, BufAlloc: 4096}
		var b [headerSize]byte
		h.put(&b)
		copy(fe.Bytes(a, headerSize), b[:])
		tx.Add(vhosttest.Buffer{Addr: a, Len: headerSize})
		sent++
		tx.ForceKick()
		return true
	}
	// Connections that are reset at once: the responses to them are void and
	// must not pile up.
	for i := range 3000 {
		k := key{host: 800, guest: uint32(i)}
		if !send(k, opRequest) || !send(k, opReset) {
			break
		}
	}
	d.mu.Lock()
	if n := d.out.control.len(); n > 2*len(d.conns)+200 {
		t.Errorf("%d packets wait for %d connections", n, len(d.conns))
	}
	d.mu.Unlock()
	// Requests to nobody: the device stops to take them.
	n := 0
	for send(key{host: 1, guest: uint32(n)}, opRequest) {
		if n++; n > 4*maxReplies {
			t.Fatalf("the device took %d packets and had no room for answers", n)
		}
	}
	d.mu.Lock()
	if k := d.out.replies.len(); k != maxReplies {
		t.Errorf("%d answers wait", k)
	}
	d.mu.Unlock()
	// It takes the answers.
	room := fe.Alloc(4096)
	answers := 0
	for end := time.Now().Add(10 * time.Second); sent != done || answers < n; {
		if time.Now().After(end) {
			t.Fatalf("%d of %d packets taken, %d answers of %d", done, sent, answers, n)
		}
		rx.Add(vhosttest.Buffer{Addr: room, Len: 4096, Write: true})
		rx.Kick()
		eventually(t, "an answer", func() bool { _, _, ok := rx.Used(); return ok })
		answers++
		for {
			if _, _, ok := tx.Used(); !ok {
				break
			}
			done++
		}
	}
}

// Many connections at once, of both directions, of random sizes, some of them
// reset in the middle; afterwards nothing is left.
func TestStress(t *testing.T) {
	testkit.NoLeaks(t)
	d, path := startDevice(t)
	fds := openFDs(t)
	g := boot(t, path, 0)
	l, err := d.Listen(800)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var wg sync.WaitGroup
		var ends []net.Conn
		for i := range 60 {
			var host, end net.Conn
			if i%2 == 0 {
				host, end, err = connect(d, g)
			} else if end, err = g.dial(800); err == nil {
				host, err = l.Accept()
			}
			if err != nil {
				t.Fatal(err)
			}
			r := rand.New(rand.NewPCG(uint64(i), 7))
			up, down := r.IntN(700<<10), r.IntN(700<<10)
			reset := i%5 == 4
			for _, p := range []struct {
				from, to net.Conn
				n        int
			}{{host, end, up}, {end, host, down}} {
				wg.Add(2)
				go func() {
					defer wg.Done()
					buf, src := make([]byte, 30000), rand.New(rand.NewPCG(uint64(i), uint64(p.n)))
					for sent := 0; sent < p.n; {
						b := buf[:min(1+src.IntN(len(buf)), p.n-sent)]
						fill(b, i, sent)
						k, err := p.from.Write(b)
						sent += k
						if err != nil {
							if !reset {
								t.Errorf("connection %d: write: %v", i, err)
							}
							return
						}
						if reset && sent > p.n/2 {
							p.from.Close()
							return
						}
					}
					if err := p.from.(halfCloser).CloseWrite(); err != nil && !reset {
						t.Errorf("connection %d: CloseWrite: %v", i, err)
					}
				}()
				go func() {
					defer wg.Done()
					buf, want, got := make([]byte, 20000), make([]byte, 20000), 0
					for {
						k, err := p.to.Read(buf)
						fill(want[:k], i, got)
						if string(want[:k]) != string(buf[:k]) {
							t.Errorf("connection %d: bytes differ after %d", i, got)
						}
						got += k
						if err != nil {
							if !reset && (err != io.EOF || got != p.n) {
								t.Errorf("connection %d: %d of %d bytes, then %v", i, got, p.n, err)
							}
							break
						}
					}
				}()
			}
			ends = append(ends, host, end)
		}
		wg.Wait()
		for _, c := range ends {
			c.Close()
		}
	}
	eventually(t, "all is forgotten", func() bool { return d.known() == 0 })
	g.off()
	l.Close()
	eventually(t, "all file descriptors are closed", func() bool { return openFDs(t) <= fds })
}

// fill makes the bytes at offset at of connection i's stream.
func fill(b []byte, i, at int) {
	for k := range b {
		b[k] = byte((at + k) * (i + 3) >> 3)
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

// An idle device uses no CPU time and no buffers.
func TestIdle(t *testing.T) {
	d, path := startDevice(t)
	g := boot(t, path, 0)
	for range 50 {
		host, end := pair(t, d, g)
		mustWrite(t, host, "x")
		if _, err := io.ReadFull(end, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, end, "y")
		if _, err := io.ReadFull(host, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.conns {
		if c.in.buf != nil {
			t.Error("an idle connection has a buffer")
		}
	}
	before := d.queues[txQueue].Stats()
	d.mu.Unlock()
	time.Sleep(200 * time.Millisecond)
	d.mu.Lock()
	if after := d.queues[txQueue].Stats(); after != before {
		t.Errorf("idle: %+v, then %+v", before, after)
	}
}

// Tiny receive buffers make the device run out of them all the time, while the
// guest gives new ones: a wake-up that is lost leaves a Write waiting.
func TestWakeUps(t *testing.T) {
	testkit.NoLeaks(t)
	d, path := startDevice(t)
	g := boot(t, path, 40)
	g.mu.Lock()
	g.hook = func(h header, data []byte) bool {
		if h.Op != opData {
			return false
		}
		g.mu.Lock()
		c := g.conns[key{h.SrcPort, h.DstPort}]
		tell := false
		if c != nil {
			c.fwd += uint32(len(data))
			tell = c.fwd-c.told >= guestWindow/4
		}
		g.mu.Unlock()
		if tell {
			c.send(opCreditUpdate, 0, nil)
		}
		return true
	}
	g.mu.Unlock()
	var wg sync.WaitGroup
	for range 3 {
		host, _ := pair(t, d, g)
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := host.SetWriteDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Error(err)
			}
			if n, err := host.Write(make([]byte, 1<<20)); err != nil {
				t.Errorf("after %d bytes: %v", n, err)
			}
		}()
	}
	wg.Wait()
}
