package vsockdev

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"dhow/internal/testkit"

	"github.com/mdlayher/vsock"
)

func readAll(t testing.TB, c net.Conn) (string, error) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

func mustWrite(t testing.TB, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

// eventually waits until ok holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func (d *Device) known() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.conns)
}

func TestDialErrors(t *testing.T) {
	testkit.NoLeaks(t)
	d, path := startDevice(t)
	ctx := context.Background()
	_, err := d.Dial(ctx, 1)
	wantErr(t, err, syscall.ECONNREFUSED) // no guest
	g := boot(t, path, 0)
	_, err = d.Dial(ctx, 1)
	wantErr(t, err, syscall.ECONNREFUSED) // nobody listens
	var op *net.OpError
	if errors.As(err, &op) && (op.Op != "dial" || op.Net != "vsock" || op.Addr.String() != "vm(7):1") {
		t.Errorf("%#v", op)
	}

	requests, resets := make(chan key, 10), make(chan key, 10)
	g.mu.Lock()
	g.hook = func(h header, _ []byte) bool {
		switch k := (key{h.SrcPort, h.DstPort}); {
		case k.guest != 99:
			return false
		case h.Op == opRequest:
			requests <- k
		case h.Op == opReset:
			resets <- k
		}
		return true // never answered
	}
	g.mu.Unlock()
	cctx, cancel := context.WithCancel(ctx)
	go func() { <-requests; cancel() }()
	_, err = d.Dial(cctx, 99)
	wantErr(t, err, context.Canceled)
	<-resets
	dctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	_, err = d.Dial(dctx, 99)
	wantErr(t, err, context.DeadlineExceeded)
	if nerr := net.Error(nil); !errors.As(err, &nerr) || !nerr.Timeout() {
		t.Errorf("%v is no timeout", err)
	}
	_, err = d.Dial(cctx, 99)
	wantErr(t, err, context.Canceled) // before it starts
	if n := d.known(); n != 0 {
		t.Errorf("%d connections are left", n)
	}
	// A guest that goes while we wait.
	<-requests
	go func() { <-requests; g.off() }()
	_, err = d.Dial(ctx, 99)
	wantErr(t, err, syscall.ECONNRESET)
	d.Close()
	_, err = d.Dial(ctx, 1)
	wantErr(t, err, net.ErrClosed)
}

func TestListen(t *testing.T) {
	testkit.NoLeaks(t)
	d, path := startDevice(t)
	l, err := d.Listen(700) // before there is a guest
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.Listen(700)
	wantErr(t, err, syscall.EADDRINUSE)
	any1, err1 := d.Listen(0)
	any2, err2 := d.Listen(0)
	if err1 != nil || err2 != nil || any1.Addr().String() == any2.Addr().String() {
		t.Errorf("%v, %v; %v, %v", any1, any2, err1, err2)
	}
	g := boot(t, path, 0)
	end, err := g.dial(700)
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	local, remote := c.LocalAddr().(*vsock.Addr), c.RemoteAddr().(*vsock.Addr)
	if *local != (vsock.Addr{ContextID: 2, Port: 700}) || remote.ContextID != testCID || l.Addr().String() != local.String() {
		t.Errorf("from %v to %v, listening at %v", remote, local, l.Addr())
	}
	if _, err := g.dial(701); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a port of nobody: %v", err)
	}
	// The backlog is full: the next is refused, the others are served.
	for i := range maxBacklog {
		if _, err := g.dial(700); err != nil {
			t.Fatalf("number %d: %v", i, err)
		}
	}
	if _, err := g.dial(700); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a full backlog: %v", err)
	}
	for range maxBacklog / 2 {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	accepted := make(chan error, 1)
	go func() { _, err := any1.Accept(); accepted <- err }()
	time.Sleep(5 * time.Millisecond)
	any1.Close()
	wantErr(t, <-accepted, net.ErrClosed)
	// Those that nobody accepted are reset.
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	wantErr(t, l.Close(), net.ErrClosed)
	_, err = l.Accept()
	wantErr(t, err, net.ErrClosed)
	eventually(t, "the backlog is reset", func() bool { return d.known() == 1 })
	again, err := d.Listen(700)
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	_, err = again.Accept()
	wantErr(t, err, net.ErrClosed)
	_, err = d.Listen(1)
	wantErr(t, err, net.ErrClosed)
}

func TestHalfClose(t *testing.T) {
	testkit.NoLeaks(t)
	d, path := startDevice(t)
	g := boot(t, path, 0)
	host, end := pair(t, d, g)
	mustWrite(t, host, "question")
	if err := host.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := readAll(t, end); got != "question" || err != nil {
		t.Errorf("the guest read %q, %v", got, err)
	}
	_, err := host.Write([]byte("x"))
	wantErr(t, err, syscall.EPIPE)
	mustWrite(t, end, "answer")
	end.Close()
	if got, err := readAll(t, host); got != "answer" || err != nil {
		t.Errorf("the host read %q, %v", got, err)
	}
	if err := host.CloseWrite(); err != nil {
		t.Errorf("a second CloseWrite: %v", err)
	}

	// The other way round.
	host, end = pair(t, d, g)
	mustWrite(t, end, "question")
	if err := end.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := readAll(t, host); got != "question" || err != nil {
		t.Errorf("the host read %q, %v", got, err)
	}
	mustWrite(t, host, "answer")
	if err := host.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := readAll(t, end); got != "answer" || err != nil {
		t.Errorf("the guest read %q, %v", got, err)
	}
	wantErr(t, host.Close(), net.ErrClosed)
	wantErr(t, host.CloseWrite(), net.ErrClosed)
	wantErr(t, host.SetDeadline(time.Now()), net.ErrClosed)
	_, err = host.Read(nil)
	wantErr(t, err, net.ErrClosed)
	_, err = host.Write(nil)
	wantErr(t, err, net.ErrClosed)
	eventually(t, "both ends are forgotten", func() bool { return d.known() == 0 })
}

// A guest that stops to receive fails writers and not readers.
func TestPeerStopsReceiving(t *testing.T) {
	testkit.NoLeaks(t)
	d, path := startDevice(t)
	g := boot(t, path, 0)
	host, _ := pair(t, d, g)
	failed := make(chan error, 1)
	go func() {
		_, err := host.Write(make([]byte, 8<<20))
		failed <- err
	}()
	g.raw(withFlags(g.header(host.key, opShutdown), shutReceive), nil)
	wantErr(t, <-failed, syscall.EPIPE)
	h := g.header(host.key, opData)
	h.Len = 4
	g.raw(h, []byte("data"))
	b := make([]byte, 10)
	if n, err := host.Read(b); string(b[:n]) != "data" || err != nil {
		t.Errorf("read %q, %v", b[:n], err)
	}
}

func withFlags(h header, flags uint32) header { h.Flags = flags; return h }

// A reset lets what had arrived be read.
func TestReset(t *testing.T) {
	testkit.NoLeaks(t)
	d, path := startDevice(t)
	g := boot(t, path, 0)
	host, end := pair(t, d, g)
	mustWrite(t, end, "last words")
	eventually(t, "the words arrive", func() bool {
		host.mu.Lock()
		defer host.mu.Unlock()
		return host.in.len() == 10
	})
	g.raw(g.header(host.key, opReset), nil)
	eventually(t, "the reset arrives", func() bool { return d.known() == 0 })
	got, err := readAll(t, host)
	if got != "last words" {
		t.Errorf("read %q", got)
	}
	wantErr(t, err, syscall.ECONNRESET)
	_, err = host.Write([]byte("x"))
	wantErr(t, err, syscall.ECONNRESET)
	wantErr(t, host.CloseWrite(), syscall.ECONNRESET)
	if err := host.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// calls starts a Read, a Write and an Accept that wait, and a Dial that is not
// answered, and returns their errors.
func calls(t *testing.T, d *Device, g *guest, host *Conn, l net.Listener) func() (read, write, dial, accept error) {
	t.Helper()
	requested := make(chan struct{}, 1)
	g.mu.Lock()
	g.hook = func(h header, _ []byte) bool {
		if h.DstPort != 99 {
			return h.DstPort == host.key.guest // and nothing is read there
		}
		requested <- struct{}{}
		return true
	}
	g.mu.Unlock()
	var wg sync.WaitGroup
	var errs [4]error
	for i, f := range []func() error{
		func() error { _, err := host.Read(make([]byte, 1)); return err },
		func() error { _, err := host.Write(make([]byte, 8<<20)); return err },
		func() error { _, err := d.Dial(context.Background(), 99); return err },
		func() error { _, err := l.Accept(); return err },
	} {
		wg.Add(1)
		go func() { defer wg.Done(); errs[i] = f() }()
	}
	<-requested
	eventually(t, "the writer waits", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return len(host.unsent) > 0 && host.sendable() == 0
	})
	return func() (error, error, error, error) { wg.Wait(); return errs[0], errs[1], errs[2], errs[3] }
}

func TestQEMUEnds(t *testing.T) {
	testkit.NoLeaks(t)
	d, path := startDevice(t)
	l, err := d.Listen(800)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		g := boot(t, path, 0)
		eventually(t, "the guest is up", func() bool { d.mu.Lock(); defer d.mu.Unlock(); return d.seen[0] && d.seen[1] })
		host, _ := pair(t, d, g)
		wait := calls(t, d, g, host, l)
		g.off()
		eventually(t, "all is reset", func() bool { return d.known() == 0 })
		// The listener outlives it: its Accept gets a connection of the next guest.
		next := boot(t, path, 0)
		if _, err := next.dial(800); err != nil {
			t.Fatal(err)
		}
		read, write, dial, accept := wait()
		wantErr(t, read, syscall.ECONNRESET)
		wantErr(t, write, syscall.ECONNRESET)
		wantErr(t, dial, syscall.ECONNRESET)
		if accept != nil {
			t.Errorf("Accept: %v", accept)
		}
		next.off()
	}
}

func TestDeviceClose(t *testing.T) {
	testkit.NoLeaks(t)
	d, path := startDevice(t)
	l, err := d.Listen(800)
	if err != nil {
		t.Fatal(err)
	}
	g := boot(t, path, 0)
	host, _ := pair(t, d, g)
	wait := calls(t, d, g, host, l)
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	read, write, dial, accept := wait()
	wantErr(t, read, syscall.ECONNRESET)
	wantErr(t, write, syscall.ECONNRESET)
	wantErr(t, dial, syscall.ECONNRESET)
	wantErr(t, accept, net.ErrClosed)
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
}

// QEMU stops the queues for a pause and for a reset; only the latter ends the
// connections.
func TestPauseAndReset(t *testing.T) {
	testkit.NoLeaks(t)
	d, path := startDevice(t)
	g := boot(t, path, 0)
	host, end := pair(t, d, g)
	mustWrite(t, host, "before")
	b := make([]byte, 6)
	if _, err := io.ReadFull(end, b); err != nil {
		t.Fatal(err)
	}
	var base [2]uint32
	stop := func() {
		t.Helper()
		for i := range base {
			var err error
			if base[i], err = g.fe.Stop(i); err != nil {
				t.Fatal(err)
			}
		}
	}
	stop()
	wrote := make(chan error, 1)
	go func() { _, err := host.Write([]byte("during")); wrote <- err }()
	dialed := make(chan error, 1)
	g.listen(55)
	go func() { _, err := d.Dial(context.Background(), 55); dialed <- err }()
	time.Sleep(20 * time.Millisecond)
	if len(wrote)+len(dialed) > 0 {
		t.Error("a paused guest took something")
	}
	for i := range base {
		if err := g.fe.Start(i, base[i]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.ReadFull(end, b); err != nil || string(b) != "during" {
		t.Errorf("after the pause: %q, %v", b, err)
	}
	if err := errors.Join(<-wrote, <-dialed); err != nil {
		t.Error(err)
	}

	// The reset: the driver of the next boot starts at 0.
	stop()
	g.halt()
	g.rx.Reset()
	g.tx.Reset()
	for i := range base {
		if err := g.fe.Start(i, 0); err != nil {
			t.Fatal(err)
		}
	}
	_, err := host.Read(b)
	wantErr(t, err, syscall.ECONNRESET)
	if n := d.known(); n != 0 {
		t.Errorf("%d connections survived", n)
	}
}

// The guest sees all that was written before Close, however late it reads.
func TestCloseDelivers(t *testing.T) {
	testkit.NoLeaks(t)
	d, path := startDevice(t)
	for _, rxSize := range []int{0, 64 << 10, 100, 1} {
		g := boot(t, path, rxSize)
		data := bytes.Repeat([]byte("0123456789abcdef"), 2000)
		if rxSize == 1 {
			data = data[:500]
		}
		host, end := pair(t, d, g)
		if n, err := host.Write(data); n != len(data) || err != nil {
			t.Fatal(n, err)
		}
		host.Close()
		time.Sleep(10 * time.Millisecond)
		if got, err := readAll(t, end); got != string(data) || err != nil {
			t.Errorf("receive buffers of %d: %d of %d bytes, %v", rxSize, len(got), len(data), err)
		}
		g.off()
		eventually(t, "the guest is gone", func() bool { d.mu.Lock(); defer d.mu.Unlock(); return !d.seen[0] })
	}
}
