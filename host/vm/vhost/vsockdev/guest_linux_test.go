package vsockdev

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"dhow/host/vm/vhost/vhosttest"
	"dhow/internal/testkit"

	"golang.org/x/sys/unix"
)

// guest plays a Linux guest: the driver of the device, and sockets that are
// real ones (pairs of unix sockets), so that what tests see of the guest's end
// is the kernel's doing and not ours.
type guest struct {
	t  testing.TB
	fe *vhosttest.Frontend
	rx *vhosttest.Ring
	tx *vhosttest.Ring
	wg sync.WaitGroup

	once   sync.Once
	rxBufs map[uint16]uint64 // head → address
	rxSize int

	txMu   sync.Mutex
	txFree []uint64
	txBufs map[uint16]uint64

	mu        sync.Mutex
	cond      *sync.Cond
	dead      bool
	conns     map[key]*guestConn
	listeners map[uint32]chan net.Conn
	nextPort  uint32
	hook      func(header, []byte) bool // takes a packet before the sockets do
}

type guestConn struct {
	g    *guest
	key  key
	sock *net.UnixConn // our end of the pair
	app  *net.UnixConn

	sending sync.Mutex

	// under g.mu
	up                 bool
	in                 []byte
	fwd, told          uint32
	sent, alloc, acked uint32
	peerShut, shut     uint32
	ended              bool
}

const guestWindow = 64 << 10

// startDevice serves a device on a socket of the test's own.
func startDevice(t testing.TB) (*Device, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "vsockdev")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	d := New(testkit.Log(t), testCID)
	done := make(chan error, 1)
	go func() { done <- d.Serve(l) }()
	t.Cleanup(func() {
		d.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		os.RemoveAll(dir)
	})
	return d, path
}

// boot connects a guest whose receive buffers have rxSize bytes (0: as Linux).
func boot(t testing.TB, path string, rxSize int) *guest {
	t.Helper()
	fe, err := vhosttest.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := fe.Setup(0, 2, 128); err != nil {
		fe.Close()
		t.Fatal(err)
	}
	if rxSize == 0 {
		rxSize = 4096
	}
	g := &guest{
		t: t, fe: fe, rx: fe.Rings[0], tx: fe.Rings[1], rxSize: rxSize,
		rxBufs: map[uint16]uint64{}, txBufs: map[uint16]uint64{},
		conns: map[key]*guestConn{}, listeners: map[uint32]chan net.Conn{}, nextPort: 1024,
	}
	g.cond = sync.NewCond(&g.mu)
	g.drive()
	t.Cleanup(g.off)
	return g
}

// drive is the driver's probe.
func (g *guest) drive() {
	for range g.rx.Size / 2 {
		g.give(g.fe.Alloc(headerSize + g.rxSize))
	}
	g.rx.ForceKick()
	for range 32 {
		g.txFree = append(g.txFree, g.fe.Alloc(headerSize+maxTest))
	}
	g.wg.Add(1)
	go g.work()
}

const maxTest = 32 << 10 // of one packet of this guest

func (g *guest) give(addr uint64) {
	head, ok := g.rx.Add(
		vhosttest.Buffer{Addr: addr, Len: headerSize, Write: true},
		vhosttest.Buffer{Addr: addr + headerSize, Len: uint32(g.rxSize), Write: true})
	if !ok {
		panic("the rx ring is full")
	}
	g.rxBufs[head] = addr
}

// off is the end of QEMU.
func (g *guest) off() {
	g.halt()
	g.once.Do(g.fe.Close)
}

// halt is the end of the driver.
func (g *guest) halt() {
	g.mu.Lock()
	if g.dead {
		g.mu.Unlock()
		return
	}
	g.dead = true
	for _, c := range g.conns {
		g.drop(c)
	}
	g.cond.Broadcast()
	g.mu.Unlock()
	g.rx.WakeUp()
	g.wg.Wait()
}

func (g *guest) work() {
	defer g.wg.Done()
	for {
		g.rx.Interrupts(false)
		for {
			head, n, ok := g.rx.Used()
			if !ok {
				break
			}
			addr := g.rxBufs[head]
			b := append([]byte(nil), g.fe.Bytes(addr, int(n))...)
			delete(g.rxBufs, head)
			g.give(addr)
			g.rx.Kick()
			g.packet(b)
		}
		g.mu.Lock()
		dead := g.dead
		g.mu.Unlock()
		if dead {
			return
		}
		if g.rx.Interrupts(true) {
			continue
		}
		if err := g.rx.WaitInterrupt(0); err != nil {
			return
		}
	}
}

// raw sends one packet, whatever it is. It reports false if the guest is dead.
func (g *guest) raw(h header, data []byte) bool {
	g.txMu.Lock()
	defer g.txMu.Unlock()
	for {
		for {
			head, _, ok := g.tx.Used()
			if !ok {
				break
			}
			g.txFree = append(g.txFree, g.txBufs[head])
		}
		if len(g.txFree) > 0 {
			break
		}
		g.mu.Lock()
		dead := g.dead
		g.mu.Unlock()
		if dead {
			return false
		}
		if !g.tx.Interrupts(true) {
			_ = g.tx.WaitInterrupt(100 * time.Millisecond)
		}
		g.tx.Interrupts(false)
	}
	addr := g.txFree[len(g.txFree)-1]
	g.txFree = g.txFree[:len(g.txFree)-1]
	var b [headerSize]byte
	h.put(&b)
	copy(g.fe.Bytes(addr, headerSize), b[:])
	bufs := []vhosttest.Buffer{{Addr: addr, Len: headerSize}}
	if len(data) > 0 {
		copy(g.fe.Bytes(addr+headerSize, maxTest), data)
		bufs = append(bufs, vhosttest.Buffer{Addr: addr + headerSize, Len: uint32(len(data))})
	}
	head, ok := g.tx.Add(bufs...)
	if !ok {
		panic("the tx ring is full")
	}
	g.txBufs[head] = addr
	g.tx.Kick()
	return true
}

func (g *guest) header(k key, o op) header {
	return header{SrcCID: testCID, DstCID: hostCID, SrcPort: k.guest, DstPort: k.host, Type: typeStream, Op: o, BufAlloc: guestWindow}
}

func (c *guestConn) send(o op, flags uint32, data []byte) {
	h := c.g.header(c.key, o)
	h.Flags, h.Len = flags, uint32(len(data))
	// The device hears of credit in the order in which it was given.
	c.sending.Lock()
	defer c.sending.Unlock()
	c.g.mu.Lock()
	h.FwdCnt, c.told = c.fwd, c.fwd
	c.g.mu.Unlock()
	c.g.raw(h, data)
}

func (g *guest) packet(b []byte) {
	var h header
	h.parse((*[headerSize]byte)(b))
	data := b[headerSize:]
	if h.SrcCID != hostCID || h.DstCID != testCID || int(h.Len) != len(data) {
		g.t.Errorf("the device sent %+v with %d bytes", h, len(data))
	}
	g.mu.Lock()
	hook := g.hook
	g.mu.Unlock()
	if hook != nil && hook(h, data) {
		return
	}
	k := key{host: h.SrcPort, guest: h.DstPort}
	g.mu.Lock()
	c := g.conns[k]
	if c == nil {
		l := g.listeners[k.guest]
		g.mu.Unlock()
		switch {
		case h.Op == opReset:
		case h.Op == opRequest && l != nil:
			c = g.newConn(k)
			g.mu.Lock()
			c.alloc, c.acked, c.up = h.BufAlloc, h.FwdCnt, true
			g.mu.Unlock()
			c.send(opResponse, 0, nil)
			g.relay(c)
			l <- c.app
		default:
			g.raw(g.header(k, opReset), nil)
		}
		return
	}
	defer g.mu.Unlock()
	defer g.cond.Broadcast()
	c.alloc, c.acked = h.BufAlloc, h.FwdCnt
	switch h.Op {
	case opResponse:
		c.up = true
	case opData:
		if len(c.in)+len(data) > guestWindow {
			g.t.Errorf("the device sent %d bytes beyond its credit", len(c.in)+len(data)-guestWindow)
		}
		c.in = append(c.in, data...)
	case opShutdown:
		c.peerShut |= h.Flags
	case opReset:
		c.peerShut = shutBoth
		c.ended = true
		delete(g.conns, k)
	case opCreditRequest:
		g.t.Error("the device asks for credit, which this guest does not answer")
	}
}

func (g *guest) newConn(k key) *guestConn {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	c := &guestConn{g: g, key: k}
	for i, p := range []**net.UnixConn{&c.sock, &c.app} {
		f := os.NewFile(uintptr(fds[i]), "pair")
		n, err := net.FileConn(f)
		if err != nil {
			panic(err)
		}
		f.Close()
		*p = n.(*net.UnixConn)
	}
	g.mu.Lock()
	g.conns[k] = c
	g.mu.Unlock()
	return c
}

// drop ends a connection without a word. g.mu is held.
func (g *guest) drop(c *guestConn) {
	c.ended = true
	c.sock.Close()
	delete(g.conns, c.key)
}

// relay moves bytes between the pair and packets until both ends are shut.
func (g *guest) relay(c *guestConn) {
	g.wg.Add(2)
	go func() {
		defer g.wg.Done()
		c.out()
	}()
	go func() {
		defer g.wg.Done()
		c.inward()
	}()
}

func (c *guestConn) out() {
	g := c.g
	buf := make([]byte, maxTest)
	for {
		n, err := c.sock.Read(buf)
		for b := buf[:n]; len(b) > 0; {
			g.mu.Lock()
			for !c.ended && c.peerShut&shutReceive == 0 && c.sent-c.acked >= c.alloc {
				g.cond.Wait()
			}
			if c.ended || c.peerShut&shutReceive != 0 {
				g.mu.Unlock()
				return
			}
			k := min(len(b), int(c.alloc-(c.sent-c.acked)))
			c.sent += uint32(k)
			g.mu.Unlock()
			c.send(opData, 0, b[:k])
			b = b[k:]
		}
		if err != nil {
			g.mu.Lock()
			c.shut |= shutSend
			flags, ended := c.shut, c.ended
			if c.peerShut&shutSend != 0 && len(c.in) == 0 {
				flags = shutBoth
			}
			g.mu.Unlock()
			if !ended {
				c.send(opShutdown, flags, nil)
			}
			return
		}
	}
}

func (c *guestConn) inward() {
	g := c.g
	for {
		g.mu.Lock()
		for !c.ended && len(c.in) == 0 && c.peerShut&shutSend == 0 {
			g.cond.Wait()
		}
		b := c.in
		if len(b) == 0 {
			ended, peer := c.ended, c.peerShut
			both := peer == shutBoth || c.shut&shutSend != 0
			g.mu.Unlock()
			switch {
			case ended:
				c.sock.Close()
			case peer == shutBoth:
				c.send(opReset, 0, nil)
				g.mu.Lock()
				g.drop(c)
				g.mu.Unlock()
			case both:
				c.send(opShutdown, shutBoth, nil)
				_ = c.sock.CloseWrite()
			default:
				_ = c.sock.CloseWrite()
			}
			return
		}
		g.mu.Unlock()
		if _, err := c.sock.Write(b); err != nil {
			c.send(opShutdown, shutBoth, nil)
			return
		}
		g.mu.Lock()
		c.in = c.in[len(b):]
		c.fwd += uint32(len(b))
		tell := c.fwd-c.told >= guestWindow/4 && !c.ended
		g.mu.Unlock()
		if tell {
			c.send(opCreditUpdate, 0, nil)
		}
	}
}

// listen makes the guest listen on port; connections come out of the channel.
func (g *guest) listen(port uint32) chan net.Conn {
	ch := make(chan net.Conn, 1000)
	g.mu.Lock()
	g.listeners[port] = ch
	g.mu.Unlock()
	return ch
}

// dial connects from the guest to port of the host.
func (g *guest) dial(port uint32) (net.Conn, error) {
	g.mu.Lock()
	g.nextPort++
	k := key{host: port, guest: g.nextPort}
	g.mu.Unlock()
	c := g.newConn(k)
	c.send(opRequest, 0, nil)
	g.mu.Lock()
	for !c.up && !c.ended {
		g.cond.Wait()
	}
	up := c.up
	g.mu.Unlock()
	if !up {
		c.sock.Close()
		c.app.Close()
		return nil, syscall.ECONNRESET
	}
	g.relay(c)
	return c.app, nil
}

// pair returns two ends of one connection that the host dialed.
func pair(t testing.TB, d *Device, g *guest) (host *Conn, end net.Conn) {
	t.Helper()
	host, end, err := connect(d, g)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close(); end.Close() })
	return host, end
}

func connect(d *Device, g *guest) (*Conn, net.Conn, error) {
	g.mu.Lock()
	g.nextPort++
	port := g.nextPort
	g.mu.Unlock()
	ch := g.listen(port)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := d.Dial(ctx, port)
	if err != nil {
		return nil, nil, err
	}
	select {
	case end := <-ch:
		return c.(*Conn), end, nil
	case <-ctx.Done():
		c.Close()
		return nil, nil, fmt.Errorf("the guest accepted nothing: %w", ctx.Err())
	}
}

// wantErr fails the test unless err is a *net.OpError that wraps want.
func wantErr(t testing.TB, err, want error) {
	t.Helper()
	var op *net.OpError
	if !errors.As(err, &op) || !errors.Is(err, want) {
		t.Errorf("error %v (%T), want a *net.OpError that wraps %v", err, err, want)
	}
}
