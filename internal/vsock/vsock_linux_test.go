package vsock

import (
	"errors"
	"net"
	"testing"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// pipeConn is a connection that claims a remote address.
type pipeConn struct {
	net.Conn
	from   net.Addr
	closed *int
}

func (c pipeConn) RemoteAddr() net.Addr { return c.from }
func (c pipeConn) Close() error         { *c.closed++; return nil }

type queue struct {
	net.Listener
	conns []net.Conn
}

func (q *queue) Accept() (net.Conn, error) {
	if len(q.conns) == 0 {
		return nil, net.ErrClosed
	}
	c := q.conns[0]
	q.conns = q.conns[1:]
	return c, nil
}

func TestOnlyTheHostIsAccepted(t *testing.T) {
	var dropped int
	conn := func(a net.Addr) net.Conn { return pipeConn{from: a, closed: &dropped} }
	host := &vsock.Addr{ContextID: 2, Port: 9}
	l := hostOnly{&queue{conns: []net.Conn{
		conn(&vsock.Addr{ContextID: 3, Port: 9}),
		conn(&vsock.Addr{ContextID: 1, Port: 9}),
		conn(&net.UnixAddr{}),
		conn(host),
		conn(&vsock.Addr{ContextID: 0, Port: 9}),
	}}}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if c.RemoteAddr() != net.Addr(host) {
		t.Errorf("accepted %v", c.RemoteAddr())
	}
	if dropped != 3 {
		t.Errorf("closed %d connections before the host's, want 3", dropped)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the last: %v", err)
	}
	if dropped != 4 {
		t.Errorf("closed %d connections in all, want 4", dropped)
	}
}

func TestAMissingTransportHasItsOwnError(t *testing.T) {
	if err := unsupported(&net.OpError{Op: "listen", Err: unix.EAFNOSUPPORT}); !errors.Is(err, ErrUnsupported) {
		t.Error(err)
	}
	if err := unsupported(unix.EADDRINUSE); errors.Is(err, ErrUnsupported) {
		t.Error(err)
	}
}
