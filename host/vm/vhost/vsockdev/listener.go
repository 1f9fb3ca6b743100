package vsockdev

import (
	"net"

	"github.com/mdlayher/vsock"
)

// Listener accepts the guest's connections to one port of the host. Up to 128
// wait for Accept; the guest's further ones are reset.
type Listener struct {
	d     *Device
	addr  *vsock.Addr
	conns chan *Conn    // filled under d.mu
	done  chan struct{} // closed when the listener has ended
}

// Accept implements net.Listener; the connection is a *Conn. After Close, of
// the listener or the device, the error wraps net.ErrClosed.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, l.opError("accept")
	}
}

// Close implements net.Listener. Connections that wait are reset.
func (l *Listener) Close() error {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	if l.d.listeners[l.addr.Port] != l {
		return l.opError("close")
	}
	l.end()
	return nil
}

// end takes the listener out of the device. d.mu is held, so nothing comes in.
func (l *Listener) end() {
	delete(l.d.listeners, l.addr.Port)
	close(l.done)
	for {
		select {
		case c := <-l.conns:
			l.d.abandon(c, net.ErrClosed)
		default:
			return
		}
	}
}

// Addr returns the listener's address, a *vsock.Addr.
func (l *Listener) Addr() net.Addr { return l.addr }

func (l *Listener) opError(op string) error {
	return &net.OpError{Op: op, Net: network, Source: l.addr, Addr: l.addr, Err: net.ErrClosed}
}
