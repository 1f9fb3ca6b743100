package vsock

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

func listen(port uint32) (net.Listener, error) {
	// Any local address, so that the kernel need not be asked for its own CID:
	// that needs /dev/vsock, which a minimal guest may not have.
	l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, port, nil)
	if err != nil {
		return nil, unsupported(err)
	}
	return hostOnly{l}, nil
}

func dial(ctx context.Context, port uint32) (Conn, error) {
	c, err := vsock.DialContext(ctx, vsock.Host, port, nil)
	if err != nil {
		return nil, unsupported(err)
	}
	return c, nil
}

// hostOnly drops every connection that is not from the host.
type hostOnly struct{ net.Listener }

func (l hostOnly) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if fromHost(c.RemoteAddr()) {
			return c, nil
		}
		_ = c.Close()
	}
}

func fromHost(a net.Addr) bool {
	v, ok := a.(*vsock.Addr)
	return ok && v.ContextID == vsock.Host
}

func unsupported(err error) error {
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return err
}
