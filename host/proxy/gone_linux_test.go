package proxy_test

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dhow/internal/testkit"
)

// A client that dies in an idle attach is noticed without a write: the agent's
// side ends altogether. One that has only ended its input is left alone.
func TestAClientThatIsGoneIsNoticed(t *testing.T) {
	testkit.NoLeaks(t)
	l := agent(t)
	for _, half := range []bool{false, true} {
		socket, _ := start(t, dialer(l), nil)
		c := connect(t, socket)
		_, _ = c.Write([]byte("attach"))
		a, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		_ = a.SetDeadline(time.Now().Add(10 * time.Second))
		if half {
			_ = c.CloseWrite()
		} else {
			_ = c.Close()
		}
		if b, err := io.ReadAll(a); err != nil || string(b) != "attach" {
			t.Fatalf("%q, %v", b, err)
		}
		if half {
			time.Sleep(50 * time.Millisecond) // what must not happen has no event
			if _, err := a.Write([]byte("output")); err != nil {
				t.Fatalf("a client that had ended its input lost the output: %v", err)
			}
			b := make([]byte, 6)
			if _, err := io.ReadFull(c, b); err != nil || string(b) != "output" {
				t.Fatalf("%q, %v", b, err)
			}
			_ = c.Close()
		}
		// A unix socket, as vsock, tells a writer that the other side has gone.
		hup := make(chan error, 1)
		go func() { hup <- awaitEnd(a) }()
		select {
		case err := <-hup:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("half-closed first: %v: the agent's side stays open", half)
		}
	}
}

// awaitEnd returns when the peer has closed both directions of a connection. It
// writes nothing.
func awaitEnd(c net.Conn) error {
	rc, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	return rc.Read(func(fd uintptr) bool {
		return errors.Is(unix.Sendto(int(fd), nil, unix.MSG_NOSIGNAL, nil), unix.EPIPE)
	})
}
