//go:build linux

package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dhow/internal/errdefs"
	proto "dhow/proto/control"
)

var testKey = bytes.Repeat([]byte{7}, proto.KeySize)

func unixListener(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestOnlyHoldersOfTheKeyAreServed(t *testing.T) {
	inner := unixListener(t)
	l := admit(inner, testKey, proto.PortDocker)
	accepted := make(chan net.Conn, 4)
	ended := make(chan error, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				ended <- err
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("unix", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	dial() // says nothing, and holds up nobody
	if err := proto.ProveHost(dial(), bytes.Repeat([]byte{8}, proto.KeySize), proto.PortDocker); !errors.Is(err, proto.ErrPreamble) {
		t.Errorf("another key: %v", err)
	}
	if err := proto.ProveHost(dial(), testKey, proto.PortControl); !errors.Is(err, proto.ErrPreamble) {
		t.Errorf("another port: %v", err)
	}
	good := dial()
	if err := proto.ProveHost(good, testKey, proto.PortDocker); err != nil {
		t.Fatal(err)
	}
	c := <-accepted
	_, _ = good.Write([]byte("hello"))
	buf := make([]byte, 5)
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "hello" {
		t.Errorf("%q, %v", buf, err)
	}
	if len(accepted) != 0 {
		t.Error("a connection without the key was accepted")
	}
	_ = inner.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

func TestEgressAsksTheHost(t *testing.T) {
	for name, c := range map[string]struct {
		answer proto.EgressResult
		class  errdefs.Class
	}{
		"connected": {},
		"refused":   {proto.EgressResult{Error: "dial tcp 127.0.0.1:5000: connection refused", Class: "unavailable"}, errdefs.Unavailable},
	} {
		guest, host := net.Pipe()
		asked := make(chan proto.Egress, 1)
		go func() {
			defer close(asked)
			if proto.AdmitGuest(host, testKey, proto.PortEgress) != nil {
				return
			}
			var e proto.Egress
			if proto.ReadMessage(host, &e) != nil {
				return
			}
			asked <- e
			_ = proto.WriteMessage(host, c.answer)
			_, _ = host.Write([]byte("stream"))
		}()
		conn, err := ask(t.Context(), guest, testKey, "tcp", "localhost:5000")
		if c.class != "" {
			if !errdefs.Is(err, c.class) || errdefs.Sentence(err) != c.answer.Error {
				t.Errorf("%s: %v", name, err)
			}
			_ = host.Close()
			continue
		}
		if err != nil {
			t.Fatal(name, err)
		}
		if e := <-asked; e.Address != "localhost:5000" || e.Network != "tcp" {
			t.Errorf("%+v", e)
		}
		buf := make([]byte, 6)
		if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "stream" {
			t.Errorf("%q, %v", buf, err)
		}
	}
}

func TestEgressEndsWithItsContext(t *testing.T) {
	guest, host := net.Pipe()
	defer host.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := ask(ctx, guest, testKey, "tcp", "x:1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if _, err := guest.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the connection is still open: %v", err)
	}
}

func TestOrdersToInit(t *testing.T) {
	for answer, want := range map[string]string{"ok\n": "", "error: no\n": `init answered "error: no"`} {
		l := unixListener(t)
		got := make(chan string, 1)
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			buf := make([]byte, 64)
			n, _ := c.Read(buf)
			got <- string(buf[:n])
			_, _ = io.WriteString(c, answer)
		}()
		err := order(l.Addr().String(), "poweroff")
		if line := <-got; line != "poweroff\n" {
			t.Errorf("init was told %q", line)
		}
		if want == "" && err != nil || want != "" && (err == nil || err.Error() != want) {
			t.Errorf("%q: %v", answer, err)
		}
		_ = l.Close()
	}
}

func TestTheSocketIsItsOwnersAndReplacesADeadOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "docker.sock")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if _, err := listenUnix(path); err == nil || !strings.Contains(err.Error(), "another process serves") {
		t.Errorf("a second one: %v", err)
	}
}
