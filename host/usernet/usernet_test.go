package usernet

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	"dhow/internal/testkit"
)

// echo listens on the host's loopback and sends back what a connection sent,
// once that has ended.
func echo(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b, _ := io.ReadAll(c)
			_, _ = c.Write(b)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().(*net.TCPAddr).Port
}

func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestTheGuestIsToldOfTheHostOnlyWhereItIsAllowed(t *testing.T) {
	for allowed, want := range map[bool]string{true: HostAddress, false: ""} {
		n, _ := plug(t, Config{HostLoopback: allowed})
		if a := n.Address(); a.Host != want || a.Gateway != gatewayAddress || a.MAC != GuestMAC {
			t.Errorf("allowed %v: %+v", allowed, a)
		}
	}
}

func TestTCPToTheHost(t *testing.T) {
	testkit.NoLeaks(t)
	port := echo(t) // first: it is waited for after the network has closed
	_, g := plug(t, Config{HostLoopback: true})
	c, err := g.dial(soon(t), HostAddress, port)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	want := bytes.Repeat([]byte("abcdefg"), 500_000)
	go func() {
		_, _ = c.Write(want)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(want), err)
	}
}

func TestTheHostsLoopbackIsOutOfReach(t *testing.T) {
	testkit.NoLeaks(t)
	port := echo(t)
	_, g := plug(t, Config{})
	for _, ip := range []string{HostAddress, gatewayAddress, "192.168.127.77", "169.254.169.254", "224.0.0.1"} {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		c, err := g.dial(ctx, ip, port)
		cancel()
		if err == nil {
			_ = c.Close()
			t.Errorf("reached %s", ip)
		}
	}
}

func TestDestination(t *testing.T) {
	n := &Network{}
	for ip, want := range map[string]bool{
		"93.184.216.34": true, "10.0.0.1": true, "192.168.1.1": true,
		"127.0.0.1": false, "127.9.9.9": false, "0.0.0.0": false, "0.1.2.3": false, "169.254.169.254": false,
		"224.0.0.251": false, "255.255.255.255": false, HostAddress: false, gatewayAddress: false, guestAddress: false,
	} {
		if _, ok := n.destination(netip.MustParseAddr(ip)); ok != want {
			t.Errorf("%s: %v, want %v", ip, ok, want)
		}
	}
	n.config.HostLoopback = true
	if to, ok := n.destination(netip.MustParseAddr(HostAddress)); !ok || to.String() != "127.0.0.1" {
		t.Errorf("the host's address goes to %s, %v", to, ok)
	}
}

func TestRefusedIsRefused(t *testing.T) {
	testkit.NoLeaks(t)
	_, g := plug(t, Config{HostLoopback: true})
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	start := time.Now()
	if c, err := g.dial(soon(t), HostAddress, port); err == nil {
		_ = c.Close()
		t.Fatal("a closed port accepted")
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("the refusal took %v", d)
	}
}

// names is a resolver with a few names of its own.
type names struct{ *net.Resolver }

func (names) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	switch host {
	case "two.example":
		return []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("::ffff:192.0.2.2")}, nil
	case "slow.example":
		return nil, &net.DNSError{Err: "timeout", Name: host, IsTimeout: true}
	case "big.example":
		var all []netip.Addr
		for i := range 100 {
			all = append(all, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
		}
		return all, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func (names) LookupTXT(context.Context, string) ([]string, error) {
	return []string{string(bytes.Repeat([]byte("t"), 300))}, nil
}

func TestDNS(t *testing.T) {
	testkit.NoLeaks(t)
	n, g := plug(t, Config{HostLoopback: true, resolver: names{&net.Resolver{}}})
	for _, network := range []string{"udp", "tcp"} {
		for name, want := range map[string]int{"two.example.": 2, "host.docker.internal.": 1, "HOST.docker.Internal.": 1, "big.example.": 100} {
			ips, err := g.resolver(network).LookupNetIP(soon(t), "ip4", name) // big ones over UDP are asked again over TCP
			if network == "udp" && name == "big.example." {
				continue // the stub has no TCP in this test
			}
			if err != nil || len(ips) != want {
				t.Errorf("%s over %s: %v, %v; want %d", name, network, ips, err, want)
			}
		}
	}
	if txt, err := g.resolver("udp").LookupTXT(soon(t), "two.example."); err != nil || len(txt) != 1 || len(txt[0]) != 300 {
		t.Errorf("TXT: %v, %v", txt, err)
	}
	for name, want := range map[string]int{"none.example.": dns.RcodeNameError, "slow.example.": dns.RcodeServerFailure, "two.example.": dns.RcodeSuccess} {
		q := new(dns.Msg).SetQuestion(name, dns.TypeA)
		if m := n.dns.answer(soon(t), q); m.Rcode != want {
			t.Errorf("%s: %s, want %s", name, dns.RcodeToString[m.Rcode], dns.RcodeToString[want])
		}
		// No IPv6 here, whatever the host's resolver knows.
		q = new(dns.Msg).SetQuestion(name, dns.TypeAAAA)
		if m := n.dns.answer(soon(t), q); m.Rcode != dns.RcodeSuccess || len(m.Answer) != 0 {
			t.Errorf("%s AAAA: %v", name, m)
		}
	}
	// Over UDP an answer fits what was asked for, and says that it was cut.
	q := new(dns.Msg).SetQuestion("big.example.", dns.TypeA)
	packed, _ := q.Pack()
	var m dns.Msg
	if b := n.dns.reply(soon(t), packed, false); len(b) > 512 || m.Unpack(b) != nil || !m.Truncated {
		t.Errorf("%d bytes, truncated %v", len(b), m.Truncated)
	}
	for _, junk := range [][]byte{nil, []byte("junk"), bytes.Repeat([]byte{0xc0}, 64)} {
		_ = n.dns.reply(soon(t), junk, false) // does not panic
	}
}

func TestReverseName(t *testing.T) {
	if ip, ok := reverse("4.3.2.1.in-addr.arpa"); !ok || ip.String() != "1.2.3.4" {
		t.Error(ip, ok)
	}
	for _, bad := range []string{"3.2.1.in-addr.arpa", "x.3.2.1.in-addr.arpa", "4.3.2.1", "4.3.2.1.ip6.arpa"} {
		if _, ok := reverse(bad); ok {
			t.Error(bad)
		}
	}
}

// A second device can be plugged in after the first has gone: the machine was
// rebooted by its hypervisor.
func TestReplug(t *testing.T) {
	testkit.NoLeaks(t)
	port := echo(t) // first: it is waited for after the network has closed
	n, g := plug(t, Config{HostLoopback: true})
	c, err := g.dial(soon(t), HostAddress, port)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	_ = g.conn.Close()
	again, err := net.Dial("unix", n.config.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	// An ARP request for the gateway; the answer shows that frames flow.
	mac, _ := net.ParseMAC(GuestMAC)
	frame := append(bytes.Repeat([]byte{0xff}, 6), mac...)
	frame = append(frame, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1)
	frame = append(append(frame, mac...), 192, 168, 127, 2)
	frame = append(append(frame, make([]byte, 6)...), 192, 168, 127, 1)
	_ = again.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := again.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)); err != nil {
		t.Fatal(err)
	}
	var head [4]byte
	if _, err := io.ReadFull(again, head[:]); err != nil {
		t.Fatal(err)
	}
}

func frame(dst byte, kind uint16, size int) []byte {
	b := make([]byte, size)
	if size >= 14 {
		binary.BigEndian.PutUint16(b[12:], kind)
	}
	if size >= 34 {
		b[14], b[30] = 0x45, dst
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(size)), b...)
}

func TestFramesThatMustNotPass(t *testing.T) {
	good := [][]byte{frame(10, 0x0800, 34), frame(8, 0x0800, 65534), frame(0, 0x0806, 42)}
	bad := [][]byte{frame(127, 0x0800, 60), frame(0, 0x0800, 60), frame(0, 0, 0), frame(0, 0, 1), frame(0, 0, 13), frame(10, 0x0800, 33)}
	var in, want []byte
	for i, b := range bad {
		in = append(append(in, b...), good[i%len(good)]...)
		want = append(want, good[i%len(good)]...)
	}
	a, b := net.Pipe()
	go func() {
		for len(in) > 0 { // in pieces that don't fit the frames
			n := min(len(in), 777)
			_, _ = a.Write(in[:n])
			in = in[n:]
		}
		_ = a.Close()
	}()
	got, err := io.ReadAll(newFrames(b))
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, want %d, %v", len(got), len(want), err)
	}
	// A length that no frame has ends the stream.
	a, b = net.Pipe()
	go func() { _, _ = a.Write([]byte{0xff, 0xff, 0xff, 0xff}); _ = a.Close() }()
	if _, err := io.ReadAll(newFrames(b)); err == nil {
		t.Fatal("a frame of 4 GiB was taken")
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 2})
	f.Add(frame(127, 0x0800, 40))
	f.Fuzz(func(t *testing.T, in []byte) {
		a, b := net.Pipe()
		go func() { _, _ = a.Write(in); _ = a.Close() }()
		out, _ := io.ReadAll(newFrames(b))
		_ = b.Close()
		for len(out) >= 4 { // what passed is whole frames, each with a header
			n := int(binary.BigEndian.Uint32(out))
			if n < ethernetHeader || n > maxFrame {
				t.Fatalf("a frame of %d bytes passed", n)
			}
			if len(out) < 4+n {
				break // the stream ended inside
			}
			out = out[4+n:]
		}
	})
}

func BenchmarkFromGuest(b *testing.B) {
	_, g := plug(b, Config{HostLoopback: true})
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	c, err := g.dial(soon(b), HostAddress, l.Addr().(*net.TCPAddr).Port)
	if err != nil {
		b.Fatal(err)
	}
	h, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	block := make([]byte, 1<<20)
	b.SetBytes(int64(len(block)))
	b.ResetTimer()
	go func() {
		for range b.N {
			if _, err := c.Write(block); err != nil {
				return
			}
		}
		_ = c.CloseWrite()
	}()
	_, _ = io.Copy(io.Discard, h)
	_ = h.Close()
}

func TestUDPToTheHost(t *testing.T) {
	testkit.NoLeaks(t)
	host, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	_, g := plug(t, Config{HostLoopback: true})
	c, err := gonet.DialUDP(g.stack, nil, &tcpip.FullAddress{NIC: 1, Addr: address(HostAddress), Port: uint16(host.LocalAddr().(*net.UDPAddr).Port)}, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	_ = host.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	var b [16]byte
	n, from, err := host.ReadFrom(b[:])
	if err != nil || string(b[:n]) != "ping" {
		t.Fatalf("%q, %v", b[:n], err)
	}
	if _, err := host.WriteTo([]byte("pong"), from); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(b[:]); err != nil || string(b[:n]) != "pong" {
		t.Fatalf("%q, %v", b[:n], err)
	}
}

// A flow that is silent is forgotten, one that is used in one direction is not.
func TestFlowsEnd(t *testing.T) {
	testkit.NoLeaks(t)
	a, x := net.Pipe()
	b, y := net.Pipe()
	done := make(chan struct{})
	start := time.Now()
	const idle = 200 * time.Millisecond
	go func() { exchange(context.Background(), x, y, idle); close(done) }()
	var in [8]byte
	for range 6 {
		if _, err := a.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Read(in[:]); err != nil {
			t.Fatal(err)
		}
		time.Sleep(idle / 4)
	}
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("it did not end")
	}
	if d := time.Since(start); d < idle+idle/4*5 {
		t.Errorf("it ended after %v, while used", d)
	}
	_, _ = a.Close(), b.Close()
}
