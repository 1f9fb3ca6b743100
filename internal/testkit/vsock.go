package testkit

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// Vsock stands in for a machine's vsock: two sides, each of which listens on
// ports that the other dials. Connections are unix sockets, so half-closes and
// deadlines are real. Dialing a port without listener fails with ECONNREFUSED.
type Vsock struct{ dir string }

// NewVsock returns a Vsock whose sockets go with the test.
func NewVsock(t testing.TB) *Vsock { return &Vsock{dir: ShortDir(t)} }

// Side is one side of a Vsock.
type Side struct{ dir, here, there string }

// Host returns the host's side.
func (v *Vsock) Host() Side { return Side{v.dir, "h", "g"} }

// Guest returns the guest's side.
func (v *Vsock) Guest() Side { return Side{v.dir, "g", "h"} }

// Listen listens on a port of this side.
func (s Side) Listen(port uint32) (net.Listener, error) {
	return net.Listen("unix", s.path(s.here, port))
}

// Dial connects to a port of the other side.
func (s Side) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", s.path(s.there, port))
	if errors.Is(err, fs.ErrNotExist) {
		err = &net.OpError{Op: "dial", Net: "vsock", Err: syscall.ECONNREFUSED}
	}
	return c, err
}

func (s Side) path(side string, port uint32) string {
	return filepath.Join(s.dir, side+strconv.Itoa(int(port)))
}
