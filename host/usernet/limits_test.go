package usernet

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"dhow/internal/testkit"
)

// holder listens on the host's loopback and gives each connection to first,
// then keeps it until the test's end.
func holder(t *testing.T, first func(net.Conn)) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var held []net.Conn
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			first(c)
			held = append(held, c)
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
		for _, c := range held {
			_ = c.Close()
		}
	})
	return l.Addr().(*net.TCPAddr).Port
}

// await waits until ok says so.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// dialAll opens n connections, which the test's end closes.
func dialAll(t *testing.T, g *played, n int, ip string, port int) []*gonet.TCPConn {
	t.Helper()
	var all []*gonet.TCPConn
	for i := range n {
		c, err := g.dial(soon(t), ip, port)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		t.Cleanup(func() { _ = c.Close() })
		all = append(all, c)
	}
	return all
}

// refused fails the test unless a connection is refused, at once.
func refused(t *testing.T, g *played, ip string, port int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := g.dial(ctx, ip, port)
	if err == nil {
		_ = c.Close()
		t.Fatal("one connection more than the limit was made")
	}
	if !strings.Contains(err.Error(), "refused") {
		t.Fatalf("not refused but %v", err)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	testkit.NoLeaks(t)
	const limit = 8
	port := holder(t, func(net.Conn) {})
	n, g := plug(t, Config{HostLoopback: true, maxStreams: limit})
	open := dialAll(t, g, limit, HostAddress, port)
	for range 3 {
		refused(t, g, HostAddress, port)
	}
	// The refused take nothing away, and who goes makes room.
	if err := open[0].Close(); err != nil {
		t.Fatal(err)
	}
	// The host's side holds it: the guest's half-close does not end it.
	if got := n.streams.Load(); got != limit {
		t.Fatalf("%d connections are counted, want %d", got, limit)
	}
}

func TestEndedConnectionsMakeRoom(t *testing.T) {
	testkit.NoLeaks(t)
	port := echo(t)
	n, g := plug(t, Config{HostLoopback: true, maxStreams: 2})
	for range 20 {
		c, err := g.dial(soon(t), HostAddress, port)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_ = c.CloseWrite()
		if _, err := io.ReadAll(c); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		await(t, "the ended connection to be forgotten", func() bool { return n.streams.Load() == 0 })
	}
}

func TestDNSConnectionsAreBounded(t *testing.T) {
	testkit.NoLeaks(t)
	n, g := plug(t, Config{resolver: names{&net.Resolver{}}})
	open := dialAll(t, g, maxDNSStreams, gatewayAddress, dnsPort)
	refused(t, g, gatewayAddress, dnsPort)
	for _, c := range open {
		_ = c.Close()
	}
	await(t, "the connections to end", func() bool { return n.dns.streams.Load() == 0 })
	if ips, err := g.resolver("tcp").LookupNetIP(soon(t), "ip4", "two.example."); err != nil || len(ips) != 2 {
		t.Errorf("%v, %v", ips, err)
	}
}

// Only the first few connections get buffers that grow.
func TestACrowdHasSmallBuffers(t *testing.T) {
	testkit.NoLeaks(t)
	port := holder(t, func(net.Conn) {})
	n, g := plug(t, Config{HostLoopback: true, roomy: 2})
	dialAll(t, g, 5, HostAddress, port)
	small := func() (count int) {
		for _, e := range n.stack.RegisteredEndpoints() {
			if ep, ok := e.(*tcp.Endpoint); ok {
				if o := ep.SocketOptions(); o.GetSendBufferSize() == crowdBuffer && o.GetReceiveBufferSize() == crowdBuffer {
					count++
				}
			}
		}
		return count
	}
	await(t, "three small ones", func() bool { return small() >= 3 })
	if got := small(); got != 3 {
		t.Errorf("%d connections of 5 have small buffers, want 3", got)
	}
}

// A small buffer, smaller than one segment may be, carries a stream all the same.
func TestACrowdsConnectionsCarry(t *testing.T) {
	testkit.NoLeaks(t)
	port := echo(t)
	_, g := plug(t, Config{HostLoopback: true, roomy: -1})
	c := dialAll(t, g, 1, HostAddress, port)[0]
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	go func() {
		_, _ = c.Write(make([]byte, 4<<20))
		_ = c.CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, c); err != nil || n != 4<<20 {
		t.Fatalf("%d bytes, %v", n, err)
	}
}

// What a guest has asked for and does not take is given up.
func TestAGuestThatDoesNotReadIsGivenUp(t *testing.T) {
	testkit.NoLeaks(t)
	sent := make(chan struct{})
	port := holder(t, func(c net.Conn) {
		_ = c.SetWriteDeadline(time.Now().Add(10 * time.Second))
		_, _ = c.Write(make([]byte, 200<<10)) // more than the guest's buffer, and not more than that and ours
		_ = c.(*net.TCPConn).CloseWrite()
		close(sent)
	})
	n, g := plug(t, Config{HostLoopback: true, linger: 300 * time.Millisecond})
	small := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 64 << 10, Max: 64 << 10}
	if err := g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &small); err != nil {
		t.Fatal(err)
	}
	c := dialAll(t, g, 1, HostAddress, port)[0]
	<-sent
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	await(t, "the connection to be forgotten", func() bool { return n.streams.Load() == 0 })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if got, err := io.Copy(io.Discard, c); err == nil {
		t.Errorf("all %d bytes arrived: the test's guest had room for them", got)
	}
}
