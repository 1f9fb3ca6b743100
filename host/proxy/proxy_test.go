package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dhow/host/proxy"
	"dhow/internal/errdefs"
	"dhow/internal/testkit"
)

// start serves a proxy whose agent is the listener that it returns.
func start(t *testing.T, dial func(context.Context) (net.Conn, error), clients func(int)) (socket string, s *proxy.Server) {
	t.Helper()
	socket = filepath.Join(testkit.ShortDir(t), "docker.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s = proxy.New(proxy.Config{Dial: dial, Clients: clients, Log: testkit.Log(t)})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		_ = s.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return socket, s
}

func agent(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(testkit.ShortDir(t), "agent"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func dialer(l net.Listener) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", l.Addr().String())
	}
}

func connect(t *testing.T, socket string) *net.UnixConn {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.UnixConn)
}

func TestBootsOnTheFirstByte(t *testing.T) {
	testkit.NoLeaks(t)
	l := agent(t)
	var boots atomic.Int32
	socket, _ := start(t, func(ctx context.Context) (net.Conn, error) { boots.Add(1); return dialer(l)(ctx) }, nil)
	c := connect(t, socket)
	idle := connect(t, socket)
	_ = idle.Close()
	time.Sleep(50 * time.Millisecond) // what must not happen has no event to wait for
	if n := boots.Load(); n != 0 {
		t.Fatalf("%d boots by connections that sent nothing", n)
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	var b [1]byte
	if _, err := io.ReadFull(a, b[:]); err != nil || b[0] != 'x' {
		t.Fatalf("the agent got %q, %v", b, err)
	}
	if n := boots.Load(); n != 1 {
		t.Fatalf("%d boots", n)
	}
}

// A hijacked attach: after the upgrade both sides send raw bytes, the client
// ends its input first and still gets the rest of the output.
func TestHijack(t *testing.T) {
	testkit.NoLeaks(t)
	l := agent(t)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, buf, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
		in, err := io.ReadAll(buf) // until the client's half-close
		if err != nil {
			t.Error(err)
		}
		fmt.Fprintf(conn, "got %d bytes", len(in))
		_ = conn.(*net.UnixConn).CloseWrite()
	})}
	served := make(chan struct{})
	go func() { _ = srv.Serve(l); close(served) }()
	t.Cleanup(func() { _ = srv.Close(); <-served })
	socket, _ := start(t, dialer(l), nil)
	c := connect(t, socket)
	_, _ = io.WriteString(c, "POST /containers/x/attach HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", resp, err)
	}
	if _, err := c.Write(bytes.Repeat([]byte("i"), 300_000)); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(in)
	if err != nil || string(out) != "got 300000 bytes" {
		t.Fatalf("output %q, %v", out, err)
	}
}

func TestAgentsDeathEndsTheClient(t *testing.T) {
	testkit.NoLeaks(t)
	l := agent(t)
	socket, _ := start(t, dialer(l), nil)
	c := connect(t, socket)
	_, _ = c.Write([]byte("x"))
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = a.Close()
	if _, err := io.ReadAll(c); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Fatalf("the client's connection did not end: %v", err)
	}
}

func TestBootFailureIsADockerError(t *testing.T) {
	testkit.NoLeaks(t)
	boom := errdefs.Wrap(errdefs.Unavailable, errors.New("qemu exploded"), "the machine did not start: no kernel")
	socket, _ := start(t, func(context.Context) (net.Conn, error) { return nil, boom }, nil)
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return net.Dial("unix", socket)
	}}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://d/v1.41/containers/json")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var m struct{ Message string }
	if err := json.NewDecoder(resp.Body).Decode(&m); err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusServiceUnavailable || m.Message != "the machine did not start: no kernel" {
		t.Fatalf("%d %q: want 503 and the sentence without its cause", resp.StatusCode, m.Message)
	}
	// A large body that nobody reads doesn't hide the answer.
	resp, err = client.Post("http://d/build", "application/x-tar", bytes.NewReader(make([]byte, 8<<20)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Fatal(resp.Status)
	}
	// HEAD has no body: a ping must not leave bytes in the stream.
	c := connect(t, socket)
	_, _ = io.WriteString(c, "HEAD /_ping HTTP/1.1\r\nHost: d\r\n\r\n")
	_ = c.CloseWrite()
	raw, err := io.ReadAll(c)
	if err != nil || !bytes.HasSuffix(raw, []byte("\r\n\r\n")) {
		t.Fatalf("%q, %v", raw, err)
	}
}

func TestManyInParallelAndCount(t *testing.T) {
	testkit.NoLeaks(t)
	l := agent(t)
	var echo sync.WaitGroup
	go func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			echo.Add(1)
			go func() {
				defer echo.Done()
				_, _ = io.Copy(a, a)
				_ = a.Close()
			}()
		}
	}()
	var mu sync.Mutex
	var last, most int
	zero := make(chan struct{}, 1000)
	socket, _ := start(t, dialer(l), func(n int) {
		mu.Lock()
		last, most = n, max(most, n)
		mu.Unlock()
		if n == 0 {
			zero <- struct{}{}
		}
	})
	const n = 40
	var wg, open sync.WaitGroup
	open.Add(n)
	for i := range n {
		wg.Add(1)
		c := connect(t, socket)
		go func() {
			defer wg.Done()
			want := bytes.Repeat([]byte{byte(i)}, 100_000)
			go func() { _, _ = c.Write(want) }()
			got := make([]byte, len(want))
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("connection %d: %v", i, err)
			}
			open.Done()
			open.Wait() // so that all are open at once
			_ = c.CloseWrite()
			if rest, err := io.ReadAll(c); err != nil || len(rest) != 0 {
				t.Errorf("connection %d: %d more bytes, %v", i, len(rest), err)
			}
		}()
	}
	wg.Wait()
	for deadline := time.After(10 * time.Second); ; {
		mu.Lock()
		done := last == 0
		mu.Unlock()
		if done {
			break
		}
		select {
		case <-zero:
		case <-deadline:
			t.Fatal("the count did not fall to 0")
		}
	}
	if most != n {
		t.Errorf("at most %d clients were counted, want %d", most, n)
	}
	_ = l.Close()
	echo.Wait()
}

func TestCloseEndsEverything(t *testing.T) {
	testkit.NoLeaks(t)
	l := agent(t)
	socket, s := start(t, dialer(l), nil)
	c := connect(t, socket)
	_, _ = c.Write([]byte("x"))
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	silent := connect(t, socket)
	_ = s.Close()
	for _, c := range []*net.UnixConn{c, silent} {
		if _, err := io.ReadAll(c); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Fatal(err)
		}
	}
	if _, err := net.Dial("unix", socket); err == nil {
		t.Fatal("still accepts")
	}
}
