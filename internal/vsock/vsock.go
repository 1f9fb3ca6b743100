package vsock

import (
	"context"
	"errors"
	"net"
)

// ErrUnsupported means that this operating system has no AF_VSOCK sockets, or
// that the kernel has no transport for them (no hypervisor below it).
var ErrUnsupported = errors.New("vsock: not supported here")

// Conn is a connection with the half-close that every vsock connection has.
type Conn interface {
	net.Conn
	// CloseWrite ends the sending direction; the peer reads EOF.
	CloseWrite() error
}

// Listen listens on port (every local address) and accepts connections from
// the host only. The connections are Conns.
func Listen(port uint32) (net.Listener, error) { return listen(port) }

// Dial connects to the host's port. The error wraps the system's: ECONNRESET
// or ECONNREFUSED where nobody listens.
func Dial(ctx context.Context, port uint32) (Conn, error) { return dial(ctx, port) }
