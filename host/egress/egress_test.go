package egress

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http/httpproxy"

	"dhow/internal/errdefs"
	"dhow/internal/testkit"
	"dhow/proto/control"
)

var key = bytes.Repeat([]byte{7}, control.KeySize)

// serve runs a server and returns the address that a guest dials.
func serve(t *testing.T, d Dialer) string {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(testkit.ShortDir(t), "e"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- New(Config{Key: key, Dialer: d, Log: testkit.Log(t)}).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return l.Addr().String()
}

// ask is the guest's side.
func ask(t *testing.T, at string, r control.Egress) (*net.UnixConn, control.EgressResult) {
	t.Helper()
	c, err := net.Dial("unix", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := control.ProveGuest(c, key, control.PortEgress); err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if err := control.WriteMessage(c, r); err != nil {
		t.Fatal(err)
	}
	var a control.EgressResult
	if err := control.ReadMessage(c, &a); err != nil {
		t.Fatal(err)
	}
	return c.(*net.UnixConn), a
}

// echo serves one connection at a time on loopback: it sends back what it got
// once the input has ended.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
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
	return l.Addr().String()
}

func check(t *testing.T, c *net.UnixConn) {
	t.Helper()
	want := bytes.Repeat([]byte("abc"), 100_000)
	if _, err := c.Write(want); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes came back, %v", len(got), err)
	}
}

func TestStream(t *testing.T) {
	testkit.NoLeaks(t)
	at := serve(t, newDialer(&httpproxy.Config{}))
	to := echo(t)
	_, port, _ := net.SplitHostPort(to)
	for _, address := range []string{to, "localhost:" + port} { // the host's localhost
		c, a := ask(t, at, control.Egress{Network: "tcp", Address: address})
		if a.Error != "" {
			t.Fatal(a.Error)
		}
		check(t, c)
	}
}

func TestRefused(t *testing.T) {
	testkit.NoLeaks(t)
	at := serve(t, newDialer(&httpproxy.Config{}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	_ = l.Close()
	for _, test := range []struct {
		r     control.Egress
		class errdefs.Class
		text  string
	}{
		{control.Egress{Network: "tcp", Address: closed}, errdefs.Unavailable, "connection refused"},
		{control.Egress{Network: "udp", Address: closed}, errdefs.Invalid, "udp"},
		{control.Egress{Network: "tcp", Address: "nowhere"}, errdefs.Invalid, "nowhere"},
		{control.Egress{Network: "tcp", Address: "a:b"}, errdefs.Invalid, "a:b"},
		{control.Egress{Network: "tcp", Address: "127.0.0.1:0"}, errdefs.Invalid, ":0"},
		{control.Egress{Network: "tcp", Address: "x\r\nInjected: 1:80"}, errdefs.Invalid, "invalid address"},
	} {
		c, a := ask(t, at, test.r)
		if a.Class != string(test.class) || !strings.Contains(a.Error, test.text) {
			t.Errorf("%+v: %+v, want %s and %q", test.r, a, test.class, test.text)
		}
		if b, err := io.ReadAll(c); err != nil || len(b) > 0 {
			t.Errorf("%+v: %q, %v after the answer", test.r, b, err)
		}
	}
}

func TestStrangersGetNowhere(t *testing.T) {
	testkit.NoLeaks(t)
	dialed := make(chan string, 1)
	at := serve(t, dialFunc(func(_ context.Context, _, address string) (net.Conn, error) {
		dialed <- address
		return nil, errors.New("dialed")
	}))
	c, err := net.Dial("unix", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := control.ProveGuest(c, bytes.Repeat([]byte{8}, control.KeySize), control.PortEgress); !errors.Is(err, control.ErrPreamble) {
		t.Fatalf("another key was admitted: %v", err)
	}
	select {
	case a := <-dialed:
		t.Fatalf("dialed %s", a)
	default:
	}
	// Silent connections beyond the bound are closed; the agent's still works
	// after those have gone.
	var silent []net.Conn
	for range maxStrangers + 20 {
		c, err := net.Dial("unix", at)
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, c)
	}
	last := silent[len(silent)-1]
	_ = last.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := last.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("a connection beyond the bound was kept: %v", err)
	}
	for _, c := range silent {
		_ = c.Close()
	}
	for range 50 {
		if c, err := net.Dial("unix", at); err == nil {
			err = control.ProveGuest(c, key, control.PortEgress)
			_ = c.Close()
			if err == nil {
				return
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("the strangers' places were not given back")
}

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

func (f dialFunc) DialContext(ctx context.Context, n, a string) (net.Conn, error) {
	return f(ctx, n, a)
}

// tunnel is an HTTP proxy that tunnels every CONNECT to one address.
func tunnel(t *testing.T, to string, status int) (address string, asked chan *http.Request) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked = make(chan *http.Request, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		in := bufio.NewReader(c)
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		asked <- r
		fmt.Fprintf(c, "HTTP/1.1 %d X\r\n\r\n", status)
		if status != 200 {
			return
		}
		out, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		defer out.Close()
		_, _ = io.Copy(out, in)
		_ = out.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(c, out)
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String(), asked
}

func TestProxy(t *testing.T) {
	testkit.NoLeaks(t)
	via, asked := tunnel(t, echo(t), 200)
	at := serve(t, newDialer(&httpproxy.Config{HTTPSProxy: "http://me:secret@" + via}))
	c, a := ask(t, at, control.Egress{Network: "tcp", Address: "registry.example:443"})
	if a.Error != "" {
		t.Fatal(a.Error)
	}
	check(t, c)
	r := <-asked
	if user, _, ok := parseProxyAuth(r); r.Method != "CONNECT" || r.Host != "registry.example:443" || !ok || user != "me" {
		t.Fatalf("the proxy was asked %s %s %v", r.Method, r.Host, r.Header)
	}
}

func parseProxyAuth(r *http.Request) (string, string, bool) {
	r.Header.Set("Authorization", r.Header.Get("Proxy-Authorization"))
	return r.BasicAuth()
}

func TestProxyRefusesAndLoopbackGoesDirect(t *testing.T) {
	testkit.NoLeaks(t)
	to := echo(t)
	via, _ := tunnel(t, to, 407)
	at := serve(t, newDialer(&httpproxy.Config{HTTPSProxy: "http://" + via, HTTPProxy: "http://" + via}))
	c, a := ask(t, at, control.Egress{Network: "tcp", Address: to})
	if a.Error != "" {
		t.Fatalf("loopback went through the proxy: %s", a.Error)
	}
	check(t, c)
	if _, a = ask(t, at, control.Egress{Network: "tcp", Address: "registry.example:443"}); a.Class != string(errdefs.Denied) || !strings.Contains(a.Error, "407") {
		t.Fatalf("%+v", a)
	}
}
